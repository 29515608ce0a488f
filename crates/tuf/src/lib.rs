//! The Update Framework 1.0 (specification 1.0.34): client and schema, sans-I/O, on ring and serde.
//!
//! Bytes and the time come in as arguments; verified metadata and errors come out. [`Refresh`] runs the client workflow for
//! the top-level roles, [`Search`] finds a target through the delegations, [`Target`] says what its bytes must be. What is
//! stored or fetched, and how, is the caller's business. Deviations from the specification are marked `Off-spec`.

mod action;
mod check;
mod digest;
mod error;
mod json;
mod key;
mod path;
mod refresh;
#[cfg(feature = "repository")]
pub mod repository;
pub mod schema;
mod search;
mod spki;
mod time;

pub use action::{Action, Answer, Limits, Progress};
pub use check::{Authority, Verified, verify_threshold};
pub use digest::{FileCheck, Hashes};
pub use error::Error;
pub use json::Json;
pub use key::{Key, KeyId, Signature};
pub use path::{TargetPath, metadata_file};
pub use refresh::{Refresh, Trusted};
pub use search::{Search, Target};
pub use time::{DateTime, InvalidDateTime};
