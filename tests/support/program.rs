//! The device binary that the tests start: the one cargo built along with them, or another one in an emulator.
//!
//! `OCELLI_BINARY` names another binary, `OCELLI_RUNNER` the words that go before it, as `qemu-aarch64-static`. Both are set by
//! `cross/test.sh`, so that the same tests judge the ARM binary.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// The binary's path.
pub fn binary() -> PathBuf {
    if let Some(path) = env::var_os("OCELLI_BINARY") {
        return path.into();
    }
    if let Some(path) = option_env!("CARGO_BIN_EXE_ocelli") {
        return path.into();
    }
    // Tests of other packages lie in `deps`, beside which the workspace's binaries are.
    let own = env::current_exe().unwrap();
    own.ancestors().nth(2).unwrap().join("ocelli")
}

/// What runs the binary and the processes it starts, as in the configuration's `runner`; empty: the kernel.
pub fn runner() -> Vec<String> {
    let words = env::var("OCELLI_RUNNER").unwrap_or_default();
    words.split_whitespace().map(str::to_owned).collect()
}

/// Runner and binary: what to start.
pub fn words() -> Vec<OsString> {
    runner().into_iter().map(OsString::from).chain([binary().into()]).collect()
}

/// A command that starts the binary.
pub fn ocelli() -> Command {
    let words = words();
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}
