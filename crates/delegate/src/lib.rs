//! How accelerators plug into Ocelli.
//!
//! [`abi`] mirrors `include/ocelli_delegate.h`, what a vendor's plug-in is built against. [`wire`] is what the agent and
//! `ocelli-npu-worker`, the process that hosts one plug-in, tell each other, [`link`] the socket between them.

pub mod abi;
#[expect(unsafe_code, reason = "system calls without a safe form")]
pub mod link;
pub mod wire;
