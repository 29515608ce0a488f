//! The contracts that devices, operators and tools share: MQTT topics and payloads, the model-package manifest, and
//! what a repository publishes.
//!
//! Types and (de)serialisation only. Nothing here reads files, opens sockets or asks for the time.
//! Every payload carries [`VERSION`]; every manifest carries [`manifest::FORMAT`].

pub mod health;
pub mod id;
pub mod manifest;
pub mod message;
pub mod model_state;
pub mod repository;
pub mod time;
pub mod topic;

pub use id::{Id, InvalidId};

/// The payload version written as `"v"` in every MQTT message.
pub const VERSION: u32 = 1;
