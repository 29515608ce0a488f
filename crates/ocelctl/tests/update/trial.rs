//! The child process of a trial as it ships: its memory budget, and the limits that the kernel holds it to.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::support::agent::project;
use super::support::{program, wait_until};

const MODEL: &str = "nanodet-g-coco";

/// A model of the zoo, with a budget of its own.
fn package(folder: &Path, memory_mib: u32) {
    let from = project("models").join(MODEL);
    let copied = Command::new("cp").arg("-r").arg(from).arg(folder.join("package")).status();
    assert!(copied.unwrap().success());
    let path = folder.join("package/manifest.toml");
    let manifest = std::fs::read_to_string(&path).unwrap();
    let (before, _) = manifest.split_once("[budget]").unwrap_or((&manifest, ""));
    let budget = format!("{before}\n[budget]\nmemory_mib = {memory_mib}\n");
    std::fs::write(path, budget).unwrap();
}

fn child(folder: &Path) -> Command {
    let mut command = program::ocelli();
    command.arg("try-model").arg("--package").arg(folder.join("package"));
    command.args(["--delegates", "int8"]).stdin(Stdio::null());
    command
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_model_above_its_memory_budget_fails_its_trial() {
    let folder = tempfile::tempdir().unwrap();
    for (budget, says) in [(1, "its budget is 1 MiB"), (1000, "passed")] {
        let _ = std::fs::remove_dir_all(folder.path().join("package"));
        package(folder.path(), budget);
        let output = child(folder.path()).output().unwrap();
        assert!(told(&output).contains(says), "{budget}: {output:?}");
        assert_eq!(output.status.success(), budget == 1000, "{output:?}");
    }
}

#[test]
fn the_child_of_a_trial_is_confined() {
    let folder = tempfile::tempdir().unwrap();
    package(folder.path(), 1000);
    let mut child =
        child(folder.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let file = format!("/proc/{}/limits", child.id());
    let limit = |limits: &str, name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line[name.len().min(line.len())..].split_whitespace().next().map(str::to_owned)
    };
    let mut limits = String::new();
    let confined = wait_until(std::time::Duration::from_secs(60), || {
        limits = std::fs::read_to_string(&file).unwrap_or(limits.clone());
        limit(&limits, "Max file size").as_deref() == Some("0")
            && limit(&limits, "Max open files").as_deref() == Some("64")
    });
    // It may have ended by itself.
    let _ = child.kill();
    child.wait().unwrap();
    assert!(confined, "{limits}");
    for (name, value) in
        [("Max address space", "2147483648"), ("Max cpu time", "600"), ("Max core file size", "0")]
    {
        assert_eq!(limit(&limits, name).as_deref(), Some(value), "{limits}");
    }
}
