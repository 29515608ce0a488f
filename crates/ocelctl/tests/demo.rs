//! The demonstration as a user runs it: what it prints, what it writes, and that it fails when the pictures are wrong.
//!
//! Needs the binary `ocelli` beside `ocelctl`: build the workspace.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::path::Path;
use std::process::{Command, Output};

const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models");

fn demo(models: &Path, out: &Path, further: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocelctl"));
    command.arg("demo").arg("--models").arg(models).arg("--out").arg(out).args(further);
    command.env_remove("OCELLI_LOG").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_demonstration_finds_what_the_pictures_show() {
    let out = tempfile::tempdir().unwrap();
    let output = demo(Path::new(MODELS), out.path(), &[]);
    let (told, failed) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{told}\n{failed}");
    let row = |picture: &str| told.lines().find(|line| line.trim().starts_with(picture));
    for (picture, label) in
        [("astronaut", "person"), ("chelsea", "cat"), ("coffee", "cup"), ("horse", "horse")]
    {
        let row = row(picture).unwrap_or_default();
        assert!(row.contains(label), "{picture}: {told}");
        let original = std::fs::read(Path::new(MODELS).join(format!("pictures/{picture}.jpg")));
        let drawn = std::fs::read(out.path().join(format!("{picture}.jpg"))).unwrap();
        assert!(drawn.starts_with(&[0xFF, 0xD8]) && drawn != original.unwrap(), "{picture}");
    }
    assert!(row("rocket").unwrap().contains("nothing"), "{told}");
    for words in [
        "1.1.0 confirmed",
        "snapshot.json does not have the signed sha256 digest",
        "timestamp has 0 valid signatures",
        "none missing",
        "Found as expected",
        "cat, cup, horse, person (2)",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
}

/// The same folder, where the reference says that the cat is elsewhere.
#[test]
fn the_demonstration_fails_when_an_object_is_not_where_it_should_be() {
    let models = tempfile::tempdir().unwrap();
    let pictures = models.path().join("pictures");
    std::fs::create_dir(&pictures).unwrap();
    let from = Path::new(MODELS);
    let package = from.join("nanodet-g-coco").canonicalize().unwrap();
    std::os::unix::fs::symlink(package, models.path().join("nanodet-g-coco")).unwrap();
    for name in ["astronaut", "camera", "chelsea", "coffee", "horse"] {
        let name = format!("pictures/{name}.jpg");
        std::fs::copy(from.join(&name), models.path().join(&name)).unwrap();
    }
    let reference = std::fs::read(from.join("pictures/expected.json")).unwrap();
    let mut reference: serde_json::Value = serde_json::from_slice(&reference).unwrap();
    reference["nanodet-g-coco"]["chelsea.jpg"][0]["box"]["w"] = 0.3.into();
    std::fs::write(pictures.join("expected.json"), reference.to_string()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let output = demo(models.path(), out.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    let failed = text(&output.stderr);
    assert!(failed.contains("no cat in chelsea (best overlap 0.3"), "{failed}");
    assert_eq!(failed.lines().count(), 1, "{failed}");
}

#[test]
fn what_the_demonstration_lacks_is_named() {
    let out = tempfile::tempdir().unwrap();
    let cases: [(&Path, &[&str], &str); 3] = [
        (&out.path().join("absent"), &[], "see --models"),
        (
            Path::new(MODELS),
            &["--agent", "/nowhere/ocelli"],
            "cannot start the agent /nowhere/ocelli",
        ),
        (Path::new(MODELS), &["--agent", "/bin/false"], "the agent ended by itself"),
    ];
    for (models, further, says) in cases {
        let output = demo(models, out.path(), further);
        let failed = text(&output.stderr);
        assert!(output.status.code() == Some(1) && failed.contains(says), "{says}: {failed}");
    }
}
