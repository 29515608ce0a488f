//! A small repository in memory and a device's storage beside it, for tests: the client runs against them for real.
//! The keys come from one-byte seeds and are for tests only.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "tests may, and this is part of tests")]

use std::collections::BTreeMap;

use ocelli_tuf::repository::{Document, SigningKey};
use ocelli_tuf::schema::{MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp, Version};
use ocelli_tuf::{
    Action, Answer, DateTime, Error, Limits, Progress, Refresh, Search, Target, TargetPath, Trusted,
};

pub const ROOT: u8 = 1;
pub const TIMESTAMP: u8 = 2;
pub const SNAPSHOT: u8 = 3;
pub const TARGETS: u8 = 4;
pub const STRANGER: u8 = 99;

pub const TOP_LEVEL: [(&str, u8); 4] =
    [("root", ROOT), ("timestamp", TIMESTAMP), ("snapshot", SNAPSHOT), ("targets", TARGETS)];

/// A signing key for tests only.
pub fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

pub fn path(text: &str) -> TargetPath {
    text.parse().unwrap()
}

pub fn version(number: u64) -> Version {
    Version::new(number).unwrap()
}

/// Repository, device and clock.
pub struct World {
    pub now: DateTime,
    pub expires: DateTime,
    pub limits: Limits,
    pub root: Document<Root>,
    pub timestamp: Document<Timestamp>,
    pub snapshot: Document<Snapshot>,
    pub targets: BTreeMap<String, Document<Targets>>,
    /// Seeds of the keys that sign each role.
    pub signers: BTreeMap<String, Vec<u8>>,
    /// Files the repository serves.
    pub served: BTreeMap<String, Vec<u8>>,
    /// Files the device has stored.
    pub stored: BTreeMap<String, Vec<u8>>,
    /// What the client asked for, in order.
    pub log: Vec<String>,
    /// After so many persisted or removed files the power goes.
    pub power_for: usize,
}

impl World {
    /// Version 1 of everything is published; the device has the first root only.
    pub fn new() -> Self {
        let now = DateTime::from_unix_seconds(1_795_000_000);
        let expires = now.plus_days(30);
        let mut root = Root::new(expires);
        for (role, seed) in TOP_LEVEL {
            root.allow(role, key(seed).public());
        }
        let nothing = MetaFile { version: version(1), length: None, hashes: None };
        let mut world = Self {
            now,
            expires,
            limits: Limits::default(),
            root: Document::new(root),
            timestamp: Document::new(Timestamp::new(nothing, expires)),
            snapshot: Document::new(Snapshot::new(expires)),
            targets: BTreeMap::from([("targets".into(), Document::new(Targets::new(expires)))]),
            signers: TOP_LEVEL.map(|(role, seed)| (role.to_owned(), vec![seed])).into(),
            served: BTreeMap::new(),
            stored: BTreeMap::new(),
            log: Vec::new(),
            power_for: usize::MAX,
        };
        world.serve_root();
        world.serve_targets("targets");
        world.serve_snapshot();
        world.serve_timestamp();
        world.stored.insert("root.json".into(), world.served["1.root.json"].clone());
        world
    }

    /// A device that has made one good update.
    pub fn updated() -> Self {
        let mut world = Self::new();
        world.refresh().unwrap();
        world.log.clear();
        world
    }

    pub fn serve_root(&mut self) {
        sign(&mut self.root, &self.signers["root"]);
        self.served.insert(self.root.file("root"), self.root.to_bytes());
    }

    pub fn serve_targets(&mut self, role: &str) {
        let document = self.targets.get_mut(role).unwrap();
        sign(document, &self.signers[role]);
        let bytes = document.to_bytes();
        let file = document.file(role);
        let listed = MetaFile::of(document.signed().version, &bytes);
        self.snapshot.amend().list(role, listed);
        self.serve(role, file, bytes);
    }

    pub fn serve_snapshot(&mut self) {
        sign(&mut self.snapshot, &self.signers["snapshot"]);
        let bytes = self.snapshot.to_bytes();
        let listed = MetaFile::of(self.snapshot.signed().version, &bytes);
        self.timestamp.amend().set_snapshot(listed);
        self.serve("snapshot", self.snapshot.file("snapshot"), bytes);
    }

    pub fn serve_timestamp(&mut self) {
        sign(&mut self.timestamp, &self.signers["timestamp"]);
        self.served.insert("timestamp.json".into(), self.timestamp.to_bytes());
    }

    fn serve(&mut self, role: &str, versioned: String, bytes: Vec<u8>) {
        if !self.root.signed().consistent_snapshot {
            self.served.insert(ocelli_tuf::metadata_file(role), bytes.clone());
        } else {
            self.served.insert(versioned, bytes);
        }
    }

    /// The next version of root, changed and served.
    pub fn next_root(&mut self, change: impl FnOnce(&mut Root)) {
        change(self.root.next_version(self.expires).unwrap());
        self.serve_root();
    }

    /// The next version of a targets role, changed and served, but in no published snapshot yet.
    pub fn next_targets(&mut self, role: &str, change: impl FnOnce(&mut Targets)) {
        change(self.targets.get_mut(role).unwrap().next_version(self.expires).unwrap());
        self.serve_targets(role);
    }

    /// The next snapshot, changed, and the next timestamp for it.
    pub fn publish_with(&mut self, change: impl FnOnce(&mut Snapshot)) {
        change(self.snapshot.next_version(self.expires).unwrap());
        self.serve_snapshot();
        self.next_timestamp(|_| {});
    }

    pub fn publish(&mut self) {
        self.publish_with(|_| {});
    }

    pub fn next_timestamp(&mut self, change: impl FnOnce(&mut Timestamp)) {
        change(self.timestamp.next_version(self.expires).unwrap());
        self.serve_timestamp();
    }

    /// A new delegated role, served but not published; its key's seed signs it.
    pub fn delegate(&mut self, from: &str, role: &str, seed: u8, paths: &[&str]) {
        self.next_targets(from, |targets| targets.delegate(role, &[key(seed).public()], 1, paths));
        if !self.targets.contains_key(role) {
            self.targets.insert(role.into(), Document::new(Targets::new(self.expires)));
            self.signers.insert(role.into(), vec![seed]);
            self.serve_targets(role);
        }
    }

    /// Adds a target to a role's next version.
    pub fn add_target(&mut self, role: &str, name: &str, content: &[u8]) {
        self.next_targets(role, |targets| targets.add(&path(name), TargetFile::of(content)));
    }

    /// Runs a whole update of the top-level roles.
    pub fn refresh(&mut self) -> Result<Trusted, Error> {
        let mut refresh = Refresh::start(&self.stored["root.json"], self.now, self.limits)?;
        loop {
            let answer = self.carry_out(&refresh.action());
            refresh = match refresh.answer(answer)? {
                Progress::Continue(refresh) => refresh,
                Progress::Done(trusted) => return Ok(trusted),
            };
        }
    }

    /// Searches a target in what an update found.
    pub fn search(&mut self, trusted: &Trusted, name: &str) -> Result<Target, Error> {
        let mut progress = Search::start(trusted, &path(name))?;
        loop {
            progress = match progress {
                Progress::Done(target) => return Ok(target),
                Progress::Continue(search) => {
                    let answer = self.carry_out(&search.action());
                    search.answer(answer)?
                }
            };
        }
    }

    /// Update and search; the log holds the search only.
    pub fn find(&mut self, name: &str) -> Result<Target, Error> {
        let trusted = self.refresh()?;
        self.log.clear();
        self.search(&trusted, name)
    }

    /// `role version` of everything the device has stored.
    pub fn trusted(&self) -> String {
        let version = |bytes: &[u8]| {
            let json = ocelli_tuf::Json::parse(bytes).unwrap();
            json.get("signed").and_then(|signed| signed.get("version")?.as_u64()).unwrap()
        };
        let line = |(file, bytes): (&String, &Vec<u8>)| {
            format!("{} {}", file.trim_end_matches(".json"), version(bytes))
        };
        self.stored.iter().map(line).collect::<Vec<_>>().join(", ")
    }

    /// A power cut answers a write with the wrong answer, which ends the cycle.
    fn carry_out(&mut self, action: &Action<'_>) -> Answer {
        let found = |files: &BTreeMap<String, Vec<u8>>, file: &String| {
            files.get(file).cloned().map_or(Answer::Absent, Answer::Bytes)
        };
        let (line, answer) = match action {
            Action::Load { file } => (format!("load {file}"), found(&self.stored, file)),
            Action::Fetch { file, .. } => (format!("fetch {file}"), found(&self.served, file)),
            _ if self.power_for == 0 => return Answer::Absent,
            Action::Persist { file, bytes } => {
                self.stored.insert(file.clone(), bytes.to_vec());
                self.power_for -= 1;
                (format!("persist {file}"), Answer::Done)
            }
            Action::Remove { file } => {
                self.stored.remove(file);
                self.power_for -= 1;
                (format!("remove {file}"), Answer::Done)
            }
        };
        self.log.push(line);
        answer
    }
}

fn sign<T: ocelli_tuf::schema::Role>(document: &mut Document<T>, seeds: &[u8]) {
    document.amend();
    for seed in seeds {
        document.sign(&key(*seed));
    }
}
