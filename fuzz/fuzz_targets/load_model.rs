//! Any bytes as a model file: a session or an error, never a panic, and never memory beyond the caps.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use ocelli::clock::SystemClock;
use ocelli::inference::graph::{Graph, Limits};
use ocelli::inference::{Session, SessionOptions};

fuzz_target!(|file: &[u8]| {
    // Small enough that one input is answered in milliseconds.
    let limits = Limits { macs: 1 << 22, ..Limits::default() };
    if Graph::parse(file, &limits).is_ok() {
        let options = SessionOptions { limits, ..SessionOptions::default() };
        drop(Session::load(file, &[], options, Arc::new(SystemClock)));
    }
});
