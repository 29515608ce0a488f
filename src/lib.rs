//! Ocelli: an on-device vision inference agent. Camera frames in, findings out over MQTT, batch size one.
//!
//! Data flows one way: camera, frame, preprocess, session, head, report, outbox, broker. Each module imports only
//! modules above it in the table of `tests/architecture.rs`.

pub use ocelli_vision as vision;
pub use ocelli_vision::{frame, tensor};

pub mod clock;
pub mod detection;
pub mod file;
pub mod processor;
pub mod telemetry;

pub mod agent;
pub mod board;
pub mod camera;
pub mod cli;
pub mod config;
pub mod inference;
pub mod model;
pub mod mqtt;
pub mod pipeline;
pub mod report;
pub mod store;
pub mod update;
