//! Runs a quantised ONNX model: tract is the host, delegates are guests.
//!
//! `graph` reads and checks the file, delegates claim nodes, `partition` cuts segments, `session` runs them in order
//! and goes on with the next alternative where one fails.

pub mod delegate;
pub mod graph;
pub mod partition;
pub mod session;
mod tract;

pub use session::{Session, SessionOptions};
