//! What a model finds, in parts of the source picture. The wire form is the same: see `ocelli-protocol`.

pub use ocelli_protocol::message::{BoundingBox, Classification, Detection, Findings};
