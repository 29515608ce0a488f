//! Runs a quantised ONNX model: tract is the host, delegates are guests.

pub mod delegate;
pub mod graph;
