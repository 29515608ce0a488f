//! The client workflow for the top-level roles (§5.1 to §5.6.6) as a state machine. It does no I/O: it says what it
//! wants ([`Action`]) and takes what came ([`Answer`]). An error ends the cycle; what was persisted before it stays trusted.

use std::sync::Arc;

use crate::action::{Action, Answer, Limits, Progress, Wanted, done, listed, loaded, persist};
use crate::check::{self, Authority, CheckedTimestamp, Remembered, Verified};
use crate::schema::{Root, Snapshot, Targets, Timestamp};
use crate::{DateTime, Error};

#[derive(Debug)]
enum State {
    FetchRoot,
    PersistRoot,
    RemoveTimestamp,
    RemoveSnapshot,
    LoadTimestamp,
    FetchTimestamp(Option<Remembered<Timestamp>>),
    PersistTimestamp(Verified<Timestamp>),
    LoadSnapshot(Verified<Timestamp>),
    FetchSnapshot(Verified<Timestamp>, Option<Remembered<Snapshot>>, Wanted),
    PersistSnapshot(Verified<Timestamp>, Verified<Snapshot>),
    LoadTargets(Verified<Timestamp>, Verified<Snapshot>),
    FetchTargets(Verified<Timestamp>, Verified<Snapshot>, Wanted),
    PersistTargets(Verified<Timestamp>, Verified<Snapshot>, Verified<Targets>),
}

/// One update cycle of the top-level roles.
///
/// ```no_run
/// # use ocelli_tuf::{Action, Answer, DateTime, Error, Limits, Progress, Refresh, Trusted};
/// # fn read(_: &str) -> Answer { Answer::Absent }
/// # fn get(_: &str, _: u64) -> Answer { Answer::Absent }
/// # fn write(_: &str, _: &[u8]) -> Answer { Answer::Done }
/// # fn remove(_: &str) -> Answer { Answer::Done }
/// fn refresh(root: &[u8], now: DateTime) -> Result<Trusted, Error> {
///     let mut refresh = Refresh::start(root, now, Limits::default())?;
///     loop {
///         let answer = match refresh.action() {
///             Action::Load { file } => read(&file),
///             Action::Fetch { file, max_bytes } => get(&file, max_bytes),
///             Action::Persist { file, bytes } => write(&file, bytes),
///             Action::Remove { file } => remove(&file),
///         };
///         refresh = match refresh.answer(answer)? {
///             Progress::Continue(refresh) => refresh,
///             Progress::Done(trusted) => return Ok(trusted),
///         };
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Refresh {
    now: DateTime,
    limits: Limits,
    root: Verified<Root>,
    roots: u32,
    rotated: bool,
    state: State,
}

/// The top-level metadata after a whole update cycle: all verified, all current at its start time.
/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Trusted {
    pub(crate) now: DateTime,
    pub(crate) limits: Limits,
    root: Arc<Verified<Root>>,
    timestamp: Arc<Verified<Timestamp>>,
    snapshot: Arc<Verified<Snapshot>>,
    targets: Arc<Verified<Targets>>,
}

impl Trusted {
    /// The trusted root.
    #[must_use]
    pub fn root(&self) -> &Verified<Root> {
        &self.root
    }

    /// The trusted timestamp.
    #[must_use]
    pub fn timestamp(&self) -> &Verified<Timestamp> {
        &self.timestamp
    }

    /// The trusted snapshot.
    #[must_use]
    pub fn snapshot(&self) -> &Verified<Snapshot> {
        &self.snapshot
    }

    /// The trusted top-level targets.
    #[must_use]
    pub fn targets(&self) -> &Verified<Targets> {
        &self.targets
    }
}

impl Refresh {
    /// Begins a cycle with the stored `root.json` (the first one came with the device).
    ///
    /// # Errors
    /// The root is malformed or not signed by itself.
    pub fn start(root: &[u8], now: DateTime, limits: Limits) -> Result<Self, Error> {
        // TUF 1.0.34 §5.1: `now` stays the same for the whole cycle
        // TUF 1.0.34 §5.2: the trusted root; whether it expired does not matter yet
        let root = check::trusted_root(root)?;
        Ok(Self { now, limits, root, roots: 0, rotated: false, state: State::FetchRoot })
    }

    /// What to do next.
    #[must_use]
    pub fn action(&self) -> Action<'_> {
        let load = |file: &str| Action::Load { file: file.to_owned() };
        let remove = |file: &str| Action::Remove { file: file.to_owned() };
        match &self.state {
            State::FetchRoot => self.wanted_root().action(),
            // TUF 1.0.34 §5.3.8
            State::PersistRoot => persist("root.json", &self.root),
            // TUF 1.0.34 §5.3.11
            State::RemoveTimestamp => remove("timestamp.json"),
            State::RemoveSnapshot => remove("snapshot.json"),
            State::LoadTimestamp => load("timestamp.json"),
            State::FetchTimestamp(_) => self.wanted_timestamp().action(),
            // TUF 1.0.34 §5.4.5
            State::PersistTimestamp(timestamp) => persist("timestamp.json", timestamp),
            State::LoadSnapshot(_) => load("snapshot.json"),
            State::FetchSnapshot(_, _, wanted) | State::FetchTargets(_, _, wanted) => {
                wanted.action()
            }
            // TUF 1.0.34 §5.5.7
            State::PersistSnapshot(_, snapshot) => persist("snapshot.json", snapshot),
            State::LoadTargets(..) => load("targets.json"),
            // TUF 1.0.34 §5.6.6
            State::PersistTargets(_, _, targets) => persist("targets.json", targets),
        }
    }

    /// Takes the answer to [`Self::action`].
    ///
    /// # Errors
    /// The cycle is over, for the reason given. Begin a new one later, with the root stored last.
    pub fn answer(mut self, answer: Answer) -> Result<Progress<Self, Trusted>, Error> {
        self.state = match std::mem::replace(&mut self.state, State::FetchRoot) {
            State::FetchRoot => self.root_came(answer)?,
            State::PersistRoot => {
                done("persist", &answer)?;
                self.roots += 1;
                // TUF 1.0.34 §5.3.9, and the number Y of §5.3.3
                if self.roots < self.limits.roots { State::FetchRoot } else { self.roots_end()? }
            }
            State::RemoveTimestamp => {
                done("remove", &answer)?;
                State::RemoveSnapshot
            }
            State::RemoveSnapshot => {
                done("remove", &answer)?;
                State::LoadTimestamp
            }
            State::LoadTimestamp => {
                let stored = loaded(answer, self.limits.timestamp_bytes)?;
                State::FetchTimestamp(
                    stored.and_then(|bytes| check::remember(&self.root, "timestamp", &bytes)),
                )
            }
            State::FetchTimestamp(remembered) => {
                let bytes = self.wanted_timestamp().take(answer)?;
                match check::timestamp(&self.root, remembered, &bytes, self.now)? {
                    CheckedTimestamp::Newer(timestamp) => State::PersistTimestamp(timestamp),
                    CheckedTimestamp::Same(timestamp) => State::LoadSnapshot(timestamp),
                }
            }
            State::PersistTimestamp(timestamp) => {
                done("persist", &answer)?;
                State::LoadSnapshot(timestamp)
            }
            State::LoadSnapshot(timestamp) => self.snapshot_loaded(timestamp, answer)?,
            State::FetchSnapshot(timestamp, remembered, wanted) => {
                let bytes = wanted.take(answer)?;
                let floor = remembered.as_ref();
                let snapshot = check::snapshot(&self.root, &timestamp, floor, &bytes, self.now)?;
                State::PersistSnapshot(timestamp, snapshot)
            }
            State::PersistSnapshot(timestamp, snapshot) => {
                done("persist", &answer)?;
                State::LoadTargets(timestamp, snapshot)
            }
            State::LoadTargets(timestamp, snapshot) => {
                return self.targets_loaded(timestamp, snapshot, answer);
            }
            State::FetchTargets(timestamp, snapshot, wanted) => {
                let targets = self.check_targets(&snapshot, &wanted.take(answer)?)?;
                State::PersistTargets(timestamp, snapshot, targets)
            }
            State::PersistTargets(timestamp, snapshot, targets) => {
                done("persist", &answer)?;
                return Ok(Progress::Done(self.trusted(timestamp, snapshot, targets)));
            }
        };
        Ok(Progress::Continue(self))
    }

    fn wanted_root(&self) -> Wanted {
        // TUF 1.0.34 §5.3.2 and §5.3.3: version N+1, up to W bytes
        let next = self.root.version.get().saturating_add(1);
        Wanted { file: format!("{next}.root.json"), max_bytes: self.limits.root_bytes }
    }

    fn wanted_timestamp(&self) -> Wanted {
        // TUF 1.0.34 §5.4.1: up to X bytes, never versioned
        Wanted { file: "timestamp.json".to_owned(), max_bytes: self.limits.timestamp_bytes }
    }

    fn root_came(&mut self, answer: Answer) -> Result<State, Error> {
        if answer == Answer::Absent {
            return self.roots_end();
        }
        let root = check::next_root(&self.root, &self.wanted_root().take(answer)?)?;
        for role in ["timestamp", "snapshot"] {
            self.rotated |= check::is_rotated(&self.root, &root, role);
        }
        // TUF 1.0.34 §5.3.6: its expiry does not matter yet; §5.3.7: it is the trusted root from here on
        self.root = root;
        Ok(State::PersistRoot)
    }

    fn roots_end(&self) -> Result<State, Error> {
        // TUF 1.0.34 §5.3.10: freeze
        check::not_expired(&*self.root, "root.json", self.now)?;
        // TUF 1.0.34 §5.3.11: recovery from a fast-forward attack
        // TUF 1.0.34 §5.3.12: `Wanted::new` reads consistent_snapshot from this root
        Ok(if self.rotated { State::RemoveTimestamp } else { State::LoadTimestamp })
    }

    fn snapshot_loaded(
        &self,
        timestamp: Verified<Timestamp>,
        answer: Answer,
    ) -> Result<State, Error> {
        let limit = self.limits.snapshot_bytes;
        let stored = loaded(answer, limit)?;
        let root = &self.root;
        if let Some(bytes) = &stored
            && let Ok(snapshot) = check::snapshot(root, &timestamp, None, bytes, self.now)
        {
            return Ok(State::LoadTargets(timestamp, snapshot));
        }
        let remembered = stored.and_then(|bytes| check::remember(root, "snapshot", &bytes));
        let wanted = Wanted::new(root, "snapshot", timestamp.snapshot(), limit)?;
        Ok(State::FetchSnapshot(timestamp, remembered, wanted))
    }

    fn targets_loaded(
        mut self,
        timestamp: Verified<Timestamp>,
        snapshot: Verified<Snapshot>,
        answer: Answer,
    ) -> Result<Progress<Self, Trusted>, Error> {
        let limit = self.limits.targets_bytes;
        if let Some(bytes) = loaded(answer, limit)?
            && let Ok(targets) = self.check_targets(&snapshot, &bytes)
        {
            return Ok(Progress::Done(self.trusted(timestamp, snapshot, targets)));
        }
        let wanted = Wanted::new(&self.root, "targets", listed(&snapshot, "targets")?, limit)?;
        self.state = State::FetchTargets(timestamp, snapshot, wanted);
        Ok(Progress::Continue(self))
    }

    fn check_targets(&self, snapshot: &Snapshot, bytes: &[u8]) -> Result<Verified<Targets>, Error> {
        let authority = Authority::of_root(&self.root, "targets").expect("validate demands it");
        check::targets(authority, listed(snapshot, "targets")?, bytes, self.now)
    }

    fn trusted(
        &self,
        timestamp: Verified<Timestamp>,
        snapshot: Verified<Snapshot>,
        targets: Verified<Targets>,
    ) -> Trusted {
        Trusted {
            now: self.now,
            limits: self.limits,
            root: Arc::new(self.root.clone()),
            timestamp: Arc::new(timestamp),
            snapshot: Arc::new(snapshot),
            targets: Arc::new(targets),
        }
    }
}
