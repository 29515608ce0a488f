//! What is fuzzed: every parser that bytes from outside reach. A target panics on a finding. Also run by `tests/fuzz.rs` over the
//! corpus and mutations of it.

use std::time::Instant;

use ocelli::agent::commands::Commands;
use ocelli::model::Package;
use ocelli_protocol::health::Health;
use ocelli_protocol::manifest::Manifest;
use ocelli_protocol::message::{FrameResult, Status};
use ocelli_protocol::model_state::ModelState;
use ocelli_protocol::repository::{ChunkIndex, Head, Rollout};
use ocelli_tuf::repository::Document;
use ocelli_tuf::schema::{Root, Snapshot, Targets, Timestamp};
use ocelli_tuf::{DateTime, Limits, Refresh};

/// TUF metadata; what is read must be written the same.
pub fn metadata(bytes: &[u8]) {
    drop(Refresh::start(bytes, DateTime::from_unix_seconds(0), Limits::default()));
    if let Ok(root) = Document::<Root>::parse("root.json", bytes) {
        assert_eq!(Document::parse("root.json", &root.to_bytes()), Ok(root));
    }
    if let Ok(targets) = Document::<Targets>::parse("targets.json", bytes) {
        assert_eq!(Document::parse("targets.json", &targets.to_bytes()), Ok(targets));
    }
    drop(Document::<Snapshot>::parse("snapshot.json", bytes));
    drop(Document::<Timestamp>::parse("timestamp.json", bytes));
}

/// A package's manifest.
pub fn manifest(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        drop(toml::from_str::<Manifest>(text));
    }
}

/// Chunk index, roll-out and head.
pub fn documents(bytes: &[u8]) {
    if let Ok(index) = ChunkIndex::parse(bytes) {
        let end = index.places().last().map_or(0, |(at, chunk)| at + u64::from(chunk.length));
        assert_eq!(end, index.length);
    }
    drop(Rollout::parse(bytes));
    drop(Head::parse(bytes));
}

/// A package; what is accepted has one canonical tar.
pub fn tar(bytes: &[u8]) {
    if let Ok(package) = Package::read_tar(bytes, "fuzz") {
        let mut canonical = Vec::new();
        package.write_tar(&mut canonical).expect("memory takes everything");
        let again = Package::read_tar(&canonical[..], "fuzz").expect("the canonical tar is valid");
        assert_eq!(again.spec().sha256(), package.spec().sha256());
    }
}

/// Payloads over MQTT.
pub fn messages(bytes: &[u8]) {
    #[expect(clippy::disallowed_methods, reason = "any moment will do")]
    let now = Instant::now();
    for verb in ["ping", "snapshot", "set-rate", "audit"] {
        drop(Commands::default().receive(verb, bytes, false, now));
    }
    drop(serde_json::from_slice::<FrameResult>(bytes));
    drop(serde_json::from_slice::<Health>(bytes));
    drop(serde_json::from_slice::<ModelState>(bytes));
    drop(serde_json::from_slice::<Status>(bytes));
}
