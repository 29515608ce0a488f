//! Hosts one accelerator plug-in: loads it behind a safe interface, fences the process in, serves the agent.
//!
//! The plug-in is foreign code that may do anything to this process. What matters lives in the agent: this program keeps
//! nothing, decides nothing, and ends when the agent is gone.

#[expect(unsafe_code, reason = "system calls without a safe wrapper")]
mod fence;
#[expect(unsafe_code, reason = "the C ABI of plug-ins")]
pub mod host;
pub mod serve;
