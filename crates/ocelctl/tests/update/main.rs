//! Model updates with everything real: `ocelctl`, mosquitto and the shipped agent.
//!
//! Needs `mosquitto`, `mosquitto_pub`, `mosquitto_sub`, `systemd-analyze`, and the binary `ocelli` beside `ocelctl`: build the workspace.
//! `OCELLI_KILL_ROUNDS` sets how often the agent is killed, `OCELLI_FLEET` how many devices update at once;
//! `-- --nocapture` shows the figures.

#![allow(clippy::unwrap_used, reason = "tests may panic, and so may what only they use")]

#[path = "../../../../tests/support/mod.rs"]
mod support;

mod access;
mod attacks;
mod ceremony;
mod figures;
mod kill;
mod race;
mod site;
mod staged;
mod swap;
mod timer;
mod trial;
