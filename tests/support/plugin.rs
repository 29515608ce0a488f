//! Plug-ins of `crates/delegate/plugins`, compiled from C, and the worker's program.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use super::agent::project;
use super::program;

/// A plug-in as a shared library.
pub fn library(name: &str) -> PathBuf {
    compiled(&format!("crates/delegate/plugins/{name}.c"))
}

/// A C file of the project as a shared library, compiled once by each test. Another test may have it open meanwhile: it is
/// put in place whole.
pub fn compiled(source: &str) -> PathBuf {
    static DONE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let source = project(source);
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(source.file_name().unwrap());
    let library = library.with_extension("so");
    let mut done = DONE.lock().unwrap();
    if done.insert(library.clone()) {
        let fresh = library.with_extension(std::process::id().to_string());
        let compiled = Command::new("cc")
            .args(["-std=c11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-I"])
            .arg(project("crates/delegate/include"))
            .arg(source)
            .arg("-o")
            .arg(&fresh)
            .args(["-lm", "-ldl"])
            .status();
        assert!(compiled.expect("cc is there").success());
        std::fs::rename(fresh, &library).unwrap();
    }
    library
}

/// Beside the binary under test.
pub fn worker() -> PathBuf {
    let path = program::binary().with_file_name("ocelli-npu-worker");
    assert!(path.exists(), "{} is missing; run cargo build --workspace", path.display());
    path
}
