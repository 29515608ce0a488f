//! Other people's repositories read by us, and ours in the form that python-tuf has read.
//!
//! `crates/tuf/conformance.sh` runs both directions live; here are its recordings, see tests/fixtures/README.md.

#![allow(clippy::unwrap_used, reason = "tests may, and all here is part of tests")]

mod support;

#[path = "interop/repository.rs"]
mod repository;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ocelli_tuf::Json;
use support::{World, version};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// All files below a folder, by their path in it.
fn read(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(inner) = open.pop() {
        for entry in fs::read_dir(&inner).unwrap() {
            let place = entry.unwrap().path();
            if place.is_dir() {
                open.push(place);
            } else {
                let name = place.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read(&place).unwrap());
            }
        }
    }
    files
}

/// A device with the first root only, before a repository of `metadata/…` files.
fn device(files: &BTreeMap<String, Vec<u8>>) -> World {
    let mut world = World::new();
    let metadata = files.iter().filter_map(|(name, bytes)| {
        Some((name.strip_prefix("metadata/")?.to_owned(), bytes.clone()))
    });
    world.served = metadata.collect();
    world.stored = [("root.json".into(), world.served["1.root.json"].clone())].into();
    world
}

// RSA-PSS, ECDSA P-256 and P-384, Ed25519; thresholds; root rotation; patterns and hash prefixes; sha256 and sha512
#[test]
fn reads_what_python_tuf_wrote() {
    let folder = std::env::var_os("TUF_INTEROP_REPOSITORY")
        .map_or_else(|| fixture("written-by-python-tuf"), PathBuf::from);
    let files = read(&folder);
    let mut world = device(&files);
    let trusted = world.refresh().unwrap();
    assert_eq!(trusted.root().version, version(2));
    assert!(trusted.snapshot().extra.contains_key("x-note"));
    for (role, path) in [("targets", "top.txt"), ("team", "team/a b.bin"), ("bins", "bins/0")] {
        let target = world.search(&trusted, path).unwrap();
        assert_eq!(target.role(), role);
        let bytes = &files[&format!("targets/{}", target.repository_path())];
        assert_eq!(target.verify(bytes), Ok(()), "{path}");
        assert_eq!(bytes, format!("named by {role}").as_bytes());
    }
    let custom = world.search(&trusted, "team/a b.bin").unwrap().custom().cloned();
    let expected = Json::parse(br#"{"n":[1,-2,null,true],"note":"\u00e9 \"quoted\" \\ \n"}"#);
    assert_eq!(custom, expected.ok());
}

#[test]
fn writes_what_python_tuf_has_read() {
    let recorded = read(&fixture("written-by-ocelli"));
    assert_eq!(repository::files(), recorded, "record it again with crates/tuf/conformance.sh");
}

#[test]
fn reads_what_it_wrote() {
    let files = repository::files();
    let mut world = device(&files);
    let trusted = world.refresh().unwrap();
    assert_eq!(trusted.root().version, version(2));
    for (role, path, content) in repository::TARGETS {
        let target = world.search(&trusted, path).unwrap();
        assert_eq!(target.role(), role);
        let bytes = &files[&format!("targets/{}", target.repository_path())];
        assert_eq!(target.verify(bytes), Ok(()));
        assert_eq!(bytes, content.as_bytes());
    }
}
