//! Two of three people sign a release on different machines, passing files; then one key is lost.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::site::{ONLINE, ROLES, ok, ok_with, package, refused};

#[test]
fn a_ceremony_of_two_of_three_people_passes_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for name in ["anna", "ben", "cleo"].into_iter().chain(ROLES) {
        ok(path, &["keys", "new", &format!("keys/{name}")]);
    }
    let mut words = vec!["repo", "init", "--id", "factory-a", "--threshold", "releases=2"];
    for (role, file) in [
        ("--root", "keys/root.pub"),
        ("--targets", "keys/targets.pub"),
        ("--rollout", "keys/rollout.pub"),
        ("--snapshot", "keys/snapshot.pub"),
        ("--timestamp", "keys/timestamp.pub"),
        ("--releases", "keys/anna.pub"),
        ("--releases", "keys/ben.pub"),
        ("--releases", "keys/cleo.pub"),
        ("--key", "keys/root.key"),
        ("--key", "keys/targets.key"),
        ("--key", "keys/rollout.key"),
    ] {
        words.extend([role, file]);
    }
    ok(path, &words);
    package(path, "0.2.0", |_| {});
    let told = ok(path, &["repo", "add", "package-0.2.0", "--key", "keys/anna.key"]);
    assert!(told.contains("releases has 1 valid signatures of the 2"), "{told}");
    assert!(told.contains("; repo/staged/releases.json"), "{told}");
    // Ben works on another machine: he gets metadata and what is staged, and his own file comes back.
    let elsewhere = tempfile::tempdir().unwrap();
    let tar = |folder: &Path, words: &[&str]| {
        assert!(Command::new("tar").args(words).current_dir(folder).status().unwrap().success());
    };
    tar(path, &["-cf", "to-ben.tar", "repo/ocelctl.json", "repo/metadata", "repo/staged", "keys"]);
    tar(elsewhere.path(), &["-xf", &path.join("to-ben.tar").display().to_string()]);
    let told = ok(elsewhere.path(), &["repo", "sign", "--key", "keys/ben.key"]);
    assert!(told.contains("+ releases/tiny-classifier/tiny-classifier-0.2.0.tar"), "{told}");
    let file = "repo/metadata/1.releases.json";
    assert!(told.contains(&format!("releases 1: signed and published; {file}")), "{told}");
    std::fs::copy(elsewhere.path().join(file), path.join("1.releases.json")).unwrap();
    let told = ok(path, &["repo", "sign", "--merge", "1.releases.json"]);
    assert!(told.contains("releases 1: signed and published"), "{told}");
    ok_with(path, &["repo", "refresh"], &ONLINE);
    let told = ok(path, &["repo", "status"]);
    assert!(
        told.contains("release      releases/tiny-classifier/tiny-classifier-0.2.0.tar"),
        "{told}"
    );
    // What is released stays as it is.
    let told = ok(path, &["repo", "add", "package-0.2.0", "--key", "keys/anna.key"]);
    assert!(told.contains("released already, the same to the byte"), "{told}");
    let manifest = path.join("package-0.2.0/manifest.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text + "# Another content.\n").unwrap();
    let told = refused(path, &["repo", "add", "package-0.2.0", "--key", "keys/anna.key"]);
    assert!(told.contains("is released with another content"), "{told}");
    // Ben's key is lost: the targets key lets the others go on.
    let public: Value =
        serde_json::from_slice(&std::fs::read(path.join("keys/ben.pub")).unwrap()).unwrap();
    assert_eq!(public["keytype"], "ed25519");
    let targets = std::fs::read_to_string(path.join("repo/metadata/1.targets.json")).unwrap();
    let targets: Value = serde_json::from_str(&targets).unwrap();
    let known = targets["signed"]["delegations"]["keys"].as_object().unwrap();
    let (id, _) = known.iter().find(|(_, key)| key["keyval"] == public["keyval"]).unwrap();
    for slip in ["0000000000", ""] {
        let told = refused(path, &["repo", "rotate", "releases", "--remove", slip]);
        assert!(told.contains("keys of releases have an id that begins with"), "{told}");
        assert!(told.contains(id), "{told}");
    }
    let words =
        ["repo", "rotate", "releases", "--remove", "keys/ben.pub", "--key", "keys/targets.key"];
    ok(path, &[&words[..], &["--key", "keys/anna.key", "--key", "keys/cleo.key"]].concat());
    let targets = std::fs::read_to_string(path.join("repo/metadata/2.targets.json")).unwrap();
    assert!(!targets.contains(id.as_str()), "{targets}");
    ok_with(path, &["repo", "refresh"], &ONLINE);
    let told = refused(path, &["repo", "rotate", "releases", "--threshold", "3"]);
    assert!(told.contains("would have 2 keys, of which 3 must sign"), "{told}");
}
