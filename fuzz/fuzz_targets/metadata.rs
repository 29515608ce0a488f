//! Fuzzes `targets::metadata`.
#![no_main]

#[path = "../src/targets.rs"]
#[allow(dead_code, reason = "each target uses its function")]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::metadata(bytes));
