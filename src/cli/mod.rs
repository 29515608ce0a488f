//! The device binary's commands.

pub mod bench;
mod npy;
