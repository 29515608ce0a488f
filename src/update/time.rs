//! The time that expiry is checked against, on boards whose clock may have stopped in 1970.

use ocelli_tuf::DateTime;
use serde::Deserialize;

use crate::clock::UnixTime;
use crate::model::disk::Disk;
use crate::update::{Clock, METADATA_FOLDER, Moment};

/// No update is checked at an earlier time than this: 2026-11-01, before this version was released.
pub const RELEASED: u64 = 1_793_491_200;
/// Roles whose `x-ocelli-issued` proves that a time has passed.
const PROOFS: [&str; 5] = ["root", "timestamp", "snapshot", "targets", "releases"];
const MAX_BYTES: u64 = 1024 * 1024;

#[derive(Deserialize)]
struct Document {
    signed: Signed,
}

#[derive(Deserialize)]
struct Signed {
    expires: DateTime,
    #[serde(rename = "x-ocelli-issued")]
    issued: Option<DateTime>,
}

/// `max(floor, the system's time if it is synchronised)`.
///
/// The floor is read from metadata that was verified when it was stored; the system's time is never remembered. No
/// role can prove a time after the end of the trusted root, so that a stolen online key cannot expire the root itself, and what
/// it claimed goes away with its file when the key is rotated.
pub(super) fn trusted_now(disk: &dyn Disk, first_root: &[u8], moment: &Moment) -> DateTime {
    let stored = |role: &str| disk.read(&format!("{METADATA_FOLDER}/{role}.json"), MAX_BYTES).ok();
    let root = stored("root").unwrap_or_else(|| first_root.to_vec());
    let last = serde_json::from_slice::<Document>(&root).ok().map(|root| root.signed.expires);
    let before_end = last.map_or(u64::MAX, |expires| expires.unix_seconds().saturating_sub(1));
    let proved = PROOFS.iter().filter_map(|role| {
        let document: Document = serde_json::from_slice(&stored(role)?).ok()?;
        Some(document.signed.issued?.unix_seconds().min(before_end))
    });
    let floor = proved.max().unwrap_or(0).max(RELEASED);
    let system = (moment.clock == Clock::Synchronised).then_some(moment.wall);
    DateTime::from_unix_seconds(floor.max(system.map_or(0, UnixTime::as_secs)))
}
