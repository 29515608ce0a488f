//! Two people, or a person and a timer, at work on one repository: no order of their commands takes devices back.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::site::{MODEL, ONLINE, Site, ok, ok_with, refused};

#[test]
fn a_push_from_an_older_copy_is_refused_and_the_devices_keep_the_newer() {
    let site = Site::new();
    site.add("0.2.0", |_| {});
    let copy = tempfile::tempdir().unwrap();
    let copied =
        Command::new("cp").args(["-r", "."]).arg(copy.path()).current_dir(site.path()).status();
    assert!(copied.unwrap().success());
    site.roll_out("0.2.0", 1);
    ok_with(site.path(), &["repo", "refresh"], &ONLINE);
    site.push();
    let agent = site.agent(20.0);
    site.watcher.wait_confirmed("0.2.0", &agent);
    // The copy knows nothing of that, and makes an older timestamp, then another one of the same version.
    let port = site.broker.port.to_string();
    let push = ["push", "--port", &port];
    for _ in 0..2 {
        ok_with(copy.path(), &["repo", "refresh"], &ONLINE);
        let told = refused(copy.path(), &push);
        assert!(told.contains("somebody pushed from another copy"), "{told}");
    }
    assert_eq!(site.watcher.model().unwrap().running.version, "0.2.0");
    agent.terminate();
}

#[test]
fn a_push_from_a_copy_made_before_a_rotation_of_the_timestamp_key_is_refused() {
    let site = Site::new();
    site.add("0.2.0", |_| {});
    site.roll_out("0.2.0", 1);
    site.push();
    let copy = tempfile::tempdir().unwrap();
    let copied =
        Command::new("cp").args(["-r", "."]).arg(copy.path()).current_dir(site.path()).status();
    assert!(copied.unwrap().success());
    let root = std::fs::read(site.path().join("repo/metadata/1.root.json")).unwrap();
    let root: Value = serde_json::from_slice(&root).unwrap();
    let old = root["signed"]["roles"]["timestamp"]["keyids"][0].as_str().unwrap().to_owned();
    ok(site.path(), &["keys", "new", "keys/timestamp-2"]);
    let words = ["repo", "rotate", "timestamp", "--add", "keys/timestamp-2.pub", "--remove", &old];
    ok_with(site.path(), &words, &["root", "snapshot", "timestamp-2"]);
    site.push();
    let agent = site.agent(20.0);
    site.watcher.wait_confirmed("0.2.0", &agent);
    // The copy goes far ahead with the old key; what it would write or remove stays.
    let port = site.broker.port.to_string();
    for command in [["push", "--port", &port], ["prune", "--port", &port]] {
        ok_with(copy.path(), &["repo", "refresh"], &ONLINE);
        let told = refused(copy.path(), &command);
        assert!(
            told.contains("the broker holds root 2, signed by the keys of this repository"),
            "{told}"
        );
        assert!(told.contains("somebody pushed from another copy, nothing was written"), "{told}");
    }
    assert!(site.push().contains("pushed factory-a to 127.0.0.1: 0 messages"));
    agent.terminate();
}

#[test]
fn two_pushes_at_once_both_end_well_and_devices_get_the_update() {
    let site = Site::new();
    site.add("0.2.0", |_| {});
    site.roll_out("0.2.0", 1);
    let port = site.broker.port.to_string();
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ocelctl"));
        command.args(["push", "--port", &port]).current_dir(site.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let pushes = [start(), start(), start()];
    for push in pushes {
        let output = push.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(site.push().contains("pushed factory-a to 127.0.0.1: 0 messages"));
    let agent = site.agent(20.0);
    site.watcher.wait_confirmed("0.2.0", &agent);
    agent.terminate();
}

#[test]
fn a_push_that_is_broken_off_goes_on_where_it_was() {
    let site = Site::new();
    for version in ["0.2.0", "0.3.0", "0.4.0"] {
        site.add(version, |_| {});
    }
    site.roll_out("0.4.0", 1);
    let port = site.broker.port.to_string();
    for _ in 0..3 {
        let mut push = Command::new(env!("CARGO_BIN_EXE_ocelctl"))
            .args(["push", "--port", &port])
            .current_dir(site.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(60));
        push.kill().unwrap();
        push.wait().unwrap();
    }
    let told = site.push();
    assert!(told.contains("100 %") && told.contains("all verified"), "{told}");
    assert!(site.push().contains(": 0 messages, 0 bytes"));
    let agent = site.agent(20.0);
    site.watcher.wait_confirmed("0.4.0", &agent);
    agent.terminate();
}

#[test]
fn a_second_command_on_the_same_folder_is_told_to_wait() {
    let site = Site::new();
    let marker = std::fs::File::open(site.path().join("repo/ocelctl.json")).unwrap();
    marker.lock().unwrap();
    let told = refused(site.path(), &["repo", "rollout", MODEL, "0.2.0"]);
    assert!(told.contains("another ocelctl is at work here"), "{told}");
    drop(marker);
    ok_with(site.path(), &["repo", "refresh"], &["releases", "rollout", "snapshot", "timestamp"]);
}
