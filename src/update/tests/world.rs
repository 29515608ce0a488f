//! A signed repository in memory, and a device that follows it in virtual time. Keys are for tests only.

use std::collections::{BTreeMap, VecDeque};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use ocelli_protocol::model_state::{Trust, UpdateState};
use ocelli_protocol::repository::{
    Chunk, ChunkIndex, Digest, Head, IndexFile, Release, Rollout, RolloutEntry, release_path,
    rollout_path,
};
use ocelli_protocol::topic::RepoTopics;
use ocelli_tuf::repository::{Document, SigningKey};
use ocelli_tuf::schema::{MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp, Version};
use ocelli_tuf::{DateTime, Json};

use crate::clock::UnixTime;
use crate::model::disk::Disk;
use crate::model::power_cut::PowerCut;
use crate::model::slots::Slot;
use crate::model::{Package, Sha256};
use crate::update::trial::Failure;
use crate::update::{
    Action, Clock, ClockRule, Event, Moment, Probation, RELEASED, Sample, Session, Settings,
};

pub(super) const MODEL: &str = "tiny-classifier";
/// Bytes of a chunk: several make a package.
pub(super) const CHUNK: usize = 6 * 1024;

/// The canonical tar of the test package under another version.
pub(super) fn package(version: &str) -> Vec<u8> {
    package_with(version, "Apache-2.0")
}

/// The same with another licence: another content of the version, and as good.
pub(super) fn package_with(version: &str, license: &str) -> Vec<u8> {
    static FILES: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-classifier");
        let package = Package::open(folder.as_ref()).unwrap();
        package.files().map(|(name, bytes)| (name.to_owned(), bytes.to_vec())).collect()
    });
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in FILES.iter() {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let bytes = match name.as_str() {
            "manifest.toml" => {
                let text = String::from_utf8(bytes.clone()).unwrap();
                text.replace("0.1.0", version).replace("Apache-2.0", license).into_bytes()
            }
            _ => bytes.clone(),
        };
        std::fs::write(path, bytes).unwrap();
    }
    let mut tar = Vec::new();
    Package::open(folder.path()).unwrap().write_tar(&mut tar).unwrap();
    tar
}

pub(super) fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::of(bytes).0)
}

pub(super) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

pub(super) fn now() -> DateTime {
    DateTime::from_unix_seconds(RELEASED)
}

/// Root 1, timestamp 2, snapshot 3, targets 4, releases 5, rollout 6: seeds of the keys.
#[derive(Clone)]
pub(super) struct Repository {
    pub(super) root: Document<Root>,
    timestamp: Document<Timestamp>,
    timestamp_seed: u8,
    snapshot: Document<Snapshot>,
    roles: BTreeMap<&'static str, Document<Targets>>,
    pub(super) topics: RepoTopics,
    /// What the broker holds.
    pub(super) broker: BTreeMap<String, Vec<u8>>,
    pub(super) first_root: Vec<u8>,
}

impl Repository {
    pub(super) fn new() -> Self {
        let expires = now().plus_days(30);
        let mut root = Root::new(expires);
        for (role, seed) in [("root", 1), ("timestamp", 2), ("snapshot", 3), ("targets", 4)] {
            root.allow(role, key(seed).public());
        }
        let mut targets = Targets::new(expires);
        targets.delegate("releases", &[key(5).public()], 1, &["releases/*/*"]);
        targets.delegate("rollout", &[key(6).public()], 1, &["rollout/*"]);
        let nothing = MetaFile { version: Version::MIN, length: None, hashes: None };
        let mut repository = Self {
            root: Document::new(root),
            timestamp: Document::new(Timestamp::new(nothing, expires)),
            timestamp_seed: 2,
            snapshot: Document::new(Snapshot::new(expires)),
            roles: BTreeMap::from([
                ("targets", Document::new(targets)),
                ("releases", Document::new(Targets::new(expires))),
                ("rollout", Document::new(Targets::new(expires))),
            ]),
            topics: RepoTopics::new("ocelli", &"factory-a".parse().unwrap()),
            broker: BTreeMap::new(),
            first_root: Vec::new(),
        };
        repository.root.sign(&key(1));
        repository.first_root = repository.root.to_bytes();
        repository
    }

    /// Adds a release; its custom data may lie.
    pub(super) fn release(&mut self, version: &str, tar: &[u8]) {
        self.release_as(version, tar, tar.len() as u64, |_| {});
    }

    pub(super) fn release_as(
        &mut self,
        version: &str,
        tar: &[u8],
        index_length: u64,
        lie: impl FnOnce(&mut Release),
    ) {
        let chunk = |bytes: &[u8]| Chunk { length: bytes.len() as u32, sha256: digest(bytes) };
        for bytes in tar.chunks(CHUNK) {
            self.broker.insert(self.topics.chunk(&digest(bytes)), bytes.to_vec());
        }
        let chunks: Vec<_> = tar.chunks(CHUNK).map(chunk).collect();
        let index = ChunkIndex { v: 1, length: index_length, chunks };
        let index = serde_json::to_vec(&index).unwrap();
        self.broker.insert(self.topics.chunk(&digest(&index)), index.clone());
        let file = IndexFile { length: index.len() as u64, sha256: digest(&index) };
        let mut release =
            Release { model: MODEL.parse().unwrap(), version: version.to_owned(), index: file };
        lie(&mut release);
        let mut target = TargetFile::of(tar);
        let custom = serde_json::to_vec(&serde_json::json!({ "ocelli": release })).unwrap();
        target.custom = Some(Json::parse(&custom).unwrap());
        let path = release_path(MODEL, version).parse().unwrap();
        self.roles.get_mut("releases").unwrap().amend().add(&path, target);
    }

    pub(super) fn withdraw(&mut self, version: &str) {
        let targets = self.roles.get_mut("releases").unwrap().amend();
        targets.targets.remove(&release_path(MODEL, version));
    }

    /// Makes the roll-out name a version for all devices, and publishes everything.
    pub(super) fn roll_out(&mut self, version: &str, attempt: u32) {
        let entry = RolloutEntry {
            target: release_path(MODEL, version),
            percent: 100.0,
            labels: Vec::new(),
            salt: String::new(),
            attempt,
        };
        self.roll_out_entries(vec![entry]);
    }

    pub(super) fn roll_out_entries(&mut self, entries: Vec<RolloutEntry>) {
        let channels = BTreeMap::from([("stable".parse().unwrap(), entries)]);
        let rollout = Rollout { v: 1, model: MODEL.parse().unwrap(), channels };
        self.roll_out_bytes(serde_json::to_vec(&rollout).unwrap());
    }

    pub(super) fn roll_out_bytes(&mut self, bytes: Vec<u8>) {
        let path = rollout_path(MODEL).parse().unwrap();
        self.broker.insert(self.topics.chunk(&digest(&bytes)), bytes.clone());
        self.roles.get_mut("rollout").unwrap().amend().add(&path, TargetFile::of(&bytes));
        self.publish(now().plus_days(30));
    }

    /// The next version of everything, signed and on the broker.
    pub(super) fn publish(&mut self, expires: DateTime) {
        let seeds = [("targets", 4), ("releases", 5), ("rollout", 6)];
        let mut listed = Vec::new();
        for (role, seed) in seeds {
            let document = self.roles.get_mut(role).unwrap();
            document.next_version(expires).unwrap();
            document.sign(&key(seed));
            let bytes = document.to_bytes();
            listed.push((role, MetaFile::of(document.signed().version, &bytes)));
            self.broker.insert(self.topics.metadata(&document.file(role)), bytes);
        }
        let snapshot = self.snapshot.next_version(expires).unwrap();
        listed.into_iter().for_each(|(role, file)| snapshot.list(role, file));
        self.snapshot.sign(&key(3));
        let bytes = self.snapshot.to_bytes();
        let file = MetaFile::of(self.snapshot.signed().version, &bytes);
        self.broker.insert(self.topics.metadata(&self.snapshot.file("snapshot")), bytes);
        self.timestamp.next_version(expires).unwrap().set_snapshot(file);
        self.timestamp.sign(&key(self.timestamp_seed));
        self.serve_timestamp();
    }

    /// A timestamp that says when it was issued.
    pub(super) fn claim_issued(&mut self, time: &Json) {
        let signed = self.timestamp.next_version(now().plus_days(30_000)).unwrap();
        signed.extra.insert("x-ocelli-issued".to_owned(), time.clone());
        self.timestamp.sign(&key(self.timestamp_seed));
        self.serve_timestamp();
    }

    /// The key that signs timestamps from now on; what the old one claimed is forgotten.
    pub(super) fn timestamp_key(&mut self, seed: u8) {
        self.timestamp_seed = seed;
        self.timestamp.amend().extra.clear();
    }

    fn serve_timestamp(&mut self) {
        let bytes = self.timestamp.to_bytes();
        self.broker.insert(self.topics.metadata("timestamp.json"), bytes);
        let timestamp = self.timestamp.signed().version.get();
        let head = Head { v: 1, root: self.root.signed().version.get(), timestamp };
        self.broker.insert(self.topics.head(), serde_json::to_vec(&head).unwrap());
    }

    /// The next root, on the broker, with the timestamp it goes with.
    pub(super) fn rotate(&mut self, change: impl FnOnce(&mut Root), signers: &[u8]) {
        change(self.root.next_version(now().plus_days(30)).unwrap());
        signers.iter().for_each(|seed| self.root.sign(&key(*seed)));
        let bytes = self.root.to_bytes();
        self.broker.insert(self.topics.metadata(&self.root.file("root")), bytes);
        self.serve_timestamp();
    }

    pub(super) fn settings(&self) -> Settings {
        Settings {
            topic_root: "ocelli".to_owned(),
            repo: "factory-a".parse().unwrap(),
            model: MODEL.parse().unwrap(),
            channel: "stable".parse().unwrap(),
            device: "dock-3".parse().unwrap(),
            labels: Vec::new(),
            first_root: self.first_root.clone(),
            clock: ClockRule::UseFloor,
            probation: Probation {
                frames: 10,
                time: Duration::from_secs(5),
                longest: Duration::from_secs(60),
            },
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "any instant will do as the origin")]
fn start() -> Instant {
    Instant::now()
}

/// A device in virtual time. The trial, the swap and the frames behave as the fields say.
pub(super) struct Device<D> {
    pub(super) session: Session<D>,
    pub(super) now: Instant,
    pub(super) wall: UnixTime,
    pub(super) clock: Clock,
    pub(super) trial: Result<(), Failure>,
    pub(super) trial_ends: bool,
    pub(super) swap: Result<(), String>,
    /// Slot that does not load.
    pub(super) damaged: Option<Slot>,
    pub(super) sample: Sample,
    /// What was asked of the broker since it was last cleared.
    pub(super) asked: Vec<String>,
    /// Audit rows: subject and detail.
    pub(super) audit: Vec<(String, serde_json::Value)>,
    /// Slot that runs.
    pub(super) runs: Option<Slot>,
    /// Most chunks waited for at once.
    pub(super) most_subscribed: usize,
    /// Digest of the configured model.
    configured: Digest,
    subscribed: Vec<String>,
    events: VecDeque<Event>,
}

impl<D: Disk> Device<D> {
    /// A start of the agent, whose configured model is `configured`.
    pub(super) fn boot(settings: Settings, disk: D, configured: &[u8]) -> Self {
        let mut device = Self {
            session: Session::open(settings, disk),
            now: start(),
            wall: UnixTime::from_micros(RELEASED * 1_000_000),
            clock: Clock::Unverified,
            trial: Ok(()),
            trial_ends: true,
            swap: Ok(()),
            damaged: None,
            sample: Sample { finished: 1000, ..Sample::default() },
            asked: Vec::new(),
            audit: Vec::new(),
            runs: None,
            most_subscribed: 0,
            configured: digest(configured),
            subscribed: Vec::new(),
            events: VecDeque::from([Event::Connected]),
        };
        let moment = device.moment();
        device.runs = device.session.boot(&moment);
        let running = device.running(device.runs);
        let actions = device.session.started(device.runs, running, &moment);
        device.perform(actions, &BTreeMap::new());
        device
    }

    fn running(&self, slot: Option<Slot>) -> Digest {
        slot.map_or(self.configured, |slot| self.session.package(slot).unwrap().sha256)
    }

    /// The broker answers a subscription that the device keeps: it may not read this.
    pub(super) fn refuse(&mut self, filter: String) {
        self.events.push_back(Event::Subscribed { filter, granted: false });
    }

    /// The child that did not end comes to its end.
    pub(super) fn end_trial(&mut self) {
        self.events.push_back(Event::Tried(self.trial.clone()));
    }

    pub(super) fn trust(&self) -> Trust {
        self.session.trust(self.runs)
    }

    pub(super) fn moment(&self) -> Moment {
        Moment { now: self.now, wall: self.wall, clock: self.clock }
    }

    pub(super) fn state(&self) -> UpdateState {
        self.session.state()
    }

    /// Lets `seconds` pass, with a broker that holds `topics`.
    pub(super) fn live(&mut self, topics: &BTreeMap<String, Vec<u8>>, seconds: u64) {
        // What was published since reaches who subscribed.
        for topic in self.subscribed.clone() {
            self.deliver(&topic, topics);
        }
        self.pass(topics, seconds);
    }

    /// The same, and nothing was published since.
    pub(super) fn pass(&mut self, topics: &BTreeMap<String, Vec<u8>>, seconds: u64) {
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            self.events.push_back(Event::Tick);
            if self.session.on_probation() {
                self.events.push_back(Event::Sample(self.sample));
            }
            while let Some(event) = self.events.pop_front() {
                let moment = self.moment();
                let actions = self.session.handle(event, &moment);
                self.perform(actions, topics);
            }
        }
    }

    pub(super) fn abort(&mut self, topics: &BTreeMap<String, Vec<u8>>) -> bool {
        let moment = self.moment();
        let Some(actions) = self.session.abort(&moment) else { return false };
        self.perform(actions, topics);
        true
    }

    /// An event of the agent's own.
    pub(super) fn happens(&mut self, event: Event) {
        self.events.push_back(event);
    }

    pub(super) fn send(&mut self, topic: &str, payload: &[u8]) {
        let (topic, payload) = (topic.to_owned(), payload.to_vec());
        self.events.push_back(Event::Message { topic, payload });
    }

    fn deliver(&mut self, topic: &str, topics: &BTreeMap<String, Vec<u8>>) {
        if let Some(payload) = topics.get(topic).cloned() {
            self.events.push_back(Event::Message { topic: topic.to_owned(), payload });
        }
    }

    fn perform(&mut self, actions: Vec<Action>, topics: &BTreeMap<String, Vec<u8>>) {
        for action in actions {
            match action {
                Action::Subscribe(topic) => {
                    self.asked.push(topic.clone());
                    self.subscribed.push(topic.clone());
                    self.most_subscribed = self.most_subscribed.max(self.subscribed.len());
                    self.deliver(&topic, topics);
                    self.events.push_back(Event::Subscribed { filter: topic, granted: true });
                }
                Action::Unsubscribe(topic) => self.subscribed.retain(|other| *other != topic),
                Action::Try(_) if !self.trial_ends => {}
                Action::Try(_) => self.events.push_back(Event::Tried(self.trial.clone())),
                Action::Run(slot) => {
                    let outcome = match slot.filter(|slot| self.damaged == Some(*slot)) {
                        Some(_) => Err("it is not the package that was verified".to_owned()),
                        None => self.swap.clone().map(|()| self.running(slot)),
                    };
                    if outcome.is_ok() {
                        self.runs = slot;
                    }
                    self.events.push_back(Event::Running(outcome));
                }
                Action::StopTrial => self.events.retain(|event| !matches!(event, Event::Tried(_))),
                Action::Tell => {}
                Action::Audit { subject, detail } => self.audit.push((subject, detail)),
            }
        }
    }
}

/// A repository in which 2.0.0 is rolled out.
pub(super) fn two() -> Repository {
    let mut repository = Repository::new();
    repository.release("2.0.0", &package("2.0.0"));
    repository.roll_out("2.0.0", 1);
    repository
}

/// A start of a device whose configured model is 1.0.0.
pub(super) fn boot(repository: &Repository, disk: &PowerCut) -> Device<PowerCut> {
    Device::boot(repository.settings(), disk.clone(), &package("1.0.0"))
}
