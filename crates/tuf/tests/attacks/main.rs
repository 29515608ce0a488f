//! Attacks on the top-level roles, one row each: the step of the specification that stops it, the error it gets, and what
//! the device trusts afterwards. Every row starts from a device that made one good update.

#![allow(clippy::unwrap_used, reason = "tests may, and all here is part of tests")]

#[path = "../support/mod.rs"]
mod support;

mod documents;
mod root;
mod snapshot;
mod targets;
mod threshold;
mod timestamp;

use ocelli_tuf::Error;
use ocelli_tuf::schema::MetaFile;
use support::{World, version};

struct Case {
    name: &'static str,
    attack: fn(&mut World),
    error: Error,
    trusted: &'static str,
}

const BEFORE: &str = "root 1, snapshot 1, targets 1, timestamp 1";
const NEW_ROOT: &str = "root 2, snapshot 1, targets 1, timestamp 1";
const NEW_TIMESTAMP: &str = "root 1, snapshot 1, targets 1, timestamp 2";
const NEW_SNAPSHOT: &str = "root 1, snapshot 2, targets 1, timestamp 2";

fn check(cases: impl IntoIterator<Item = Case>) {
    let mut wrong = Vec::new();
    for Case { name, attack, error, trusted } in cases {
        let mut world = World::updated();
        attack(&mut world);
        let outcome = world.refresh().map(|_| ());
        if outcome != Err(error.clone()) {
            wrong.push(format!("{name}: {outcome:?} instead of {error:?}"));
        }
        if world.trusted() != trusted {
            wrong.push(format!("{name}: trusts {} instead of {trusted}", world.trusted()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn threshold(role: &str, needed: u64, valid: u64) -> Error {
    Error::Threshold { role: role.into(), needed, valid }
}

fn rollback(file: &str, trusted: u64, offered: u64) -> Error {
    Error::Rollback { file: file.into(), trusted, offered }
}

fn mismatch(file: &str, expected: u64, found: u64) -> Error {
    Error::VersionMismatch { file: file.into(), expected, found }
}

fn digest(file: &str) -> Error {
    Error::Digest { file: file.into(), algorithm: "sha256".into() }
}

fn expired(file: &str) -> Error {
    let now = World::new().now;
    Error::Expired { file: file.into(), expires: now, now }
}

fn absent(file: &str) -> Error {
    Error::Absent { file: file.into() }
}

/// A listing with a version only, so that the later checks are reached.
fn bare(number: u64) -> MetaFile {
    MetaFile { version: version(number), length: None, hashes: None }
}

fn replace(world: &mut World, file: &str, from: &str, to: &str) {
    let text = String::from_utf8(world.served[file].clone()).unwrap();
    assert!(text.contains(from), "{file} has no {from}");
    world.served.insert(file.into(), text.replacen(from, to, 1).into_bytes());
}
