//! What the delivery tests need: a real broker, a proxy that cuts and stalls, a subscriber that remembers.
//!
//! Ports are ephemeral on 127.0.0.1; processes end when their owner is dropped.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "a module of several test programs; each uses its part"
)]

pub mod agent;
pub mod broker;
pub mod field;
pub mod hostile;
pub mod keys;
pub mod plugin;
pub mod program;
pub mod proxy;
pub mod subscriber;

use std::time::{Duration, Instant};

use ocelli::clock::{Clock, SystemClock};

/// Time for tests.
pub fn now() -> Instant {
    SystemClock.now()
}

/// Waits until `done`, at most `limit`; says whether it came to pass.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = now() + limit;
    while !done() {
        if now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
