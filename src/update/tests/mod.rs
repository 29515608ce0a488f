//! The session against a repository in memory, a disk whose power fails, and a hostile broker.

mod attacks;
mod local;
mod power;
mod story;
mod world;
