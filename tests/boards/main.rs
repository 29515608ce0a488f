//! The agent on emulated boards: Debian's kernel in QEMU, our binary as its service, a broker on this machine.
//!
//! `make test-boards` builds what is needed and runs them; `tests/boards/run.sh NAME…` runs those whose name contains NAME.

#![allow(clippy::unwrap_used, reason = "tests may panic, and so may what only they use")]
#![allow(unreachable_pub, reason = "modules of one program")]

mod camera;
mod console;
mod disk;
mod hardware;
mod machine;
mod power;
mod qmp;
mod scene;
mod site;
#[path = "../support/mod.rs"]
mod support;
mod trouble;
mod update;
