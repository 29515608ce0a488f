//! The update session: events and the time in, actions out. Whatever happens, the model that runs is the confirmed one or one
//! on probation, and an update that fails leaves the way free for the next.

mod fetch;
mod trial;

use std::time::{Duration, Instant};

use ocelli_protocol::model_state::{Trust, UpdateOutcome, UpdatePhase, UpdateState};
use ocelli_protocol::repository::{Digest, Head, Release};
use ocelli_protocol::topic::RepoTopics;
use ocelli_tuf::Limits;
use serde_json::json;

use crate::model::disk::Disk;
use crate::model::slots::{Candidate, Slot, Slots, Stage};
use crate::update::check::{Check, Watch};
use crate::update::chunks::Transfer;
use crate::update::mailbox::{ABSENT_AFTER, Mailbox};
use crate::update::{Action, Error, Event, Floods, Moment, Settings, in_short};

/// First wait after a failure; doubles up to [`LONGEST_RETRY`], and never holds back news.
const FIRST_RETRY: Duration = Duration::from_secs(15);
const LONGEST_RETRY: Duration = Duration::from_secs(1800);
/// Between two looks, whatever the broker sends.
const REST: Duration = Duration::from_secs(2);
/// The watched topics are subscribed to again, so that a message lost on the way to us is made good.
const ASK_AGAIN: Duration = Duration::from_secs(900);
/// Refusals of one kind share a row of the audit log for so long, and longer while they go on.
const REFUSALS_SHARE: Duration = Duration::from_secs(3600);
/// Frames before the latency of a new model counts.
const FRAMES_FOR_LATENCY: u64 = 30;

#[derive(Debug)]
enum Phase {
    Idle,
    Checking(Box<Check>, u64),
    Index(Candidate, Release),
    Fetching(Box<Transfer>),
    /// A child process tries the slot.
    Trying(Slot, Candidate),
    /// The agent loads the slot.
    Swapping(Slot, Candidate),
    Probation {
        slot: Slot,
        candidate: Candidate,
        since: Instant,
    },
    /// The agent goes back to the confirmed model, or to the configured one, `None`.
    Reverting(Option<Slot>),
}

/// A package that the device could not try: later, whatever the news.
#[derive(Debug)]
struct Delayed {
    sha256: Digest,
    attempt: u32,
    /// Trials that could not be held.
    times: u32,
    until: Instant,
    why: String,
}

/// Follows a repository. See [`crate::update`].
#[derive(Debug)]
pub struct Session<D> {
    settings: Settings,
    slots: Slots<D>,
    topics: RepoTopics,
    mailbox: Mailbox,
    watch: Watch,
    phase: Phase,
    /// Digest of the model that runs, whatever it lies in.
    running: Digest,
    /// Version of the root that the last look ended with.
    root: u64,
    reason: Option<String>,
    refusals: Floods,
    /// Package and attempt that the newest row on a received release is about.
    received: Option<(Digest, u32)>,
    /// A package that the device could not try.
    delayed: Option<Delayed>,
    /// When messages were dropped on their way here.
    dropped: Option<Instant>,
    /// A look is wanted.
    news: bool,
    failures: u32,
    retry: Option<Instant>,
    rest_until: Option<Instant>,
    told: Option<Instant>,
    watched_at: Option<Instant>,
    /// When the broker granted the timestamp's subscription, as long as none came.
    awaited: Option<Instant>,
    actions: Vec<Action>,
}

impl<D: Disk> Session<D> {
    /// A session over the update folder. Nothing is subscribed to yet.
    pub fn open(settings: Settings, disk: D) -> Self {
        let mut slots = Slots::open(disk, &settings.model);
        let topics = RepoTopics::new(&settings.topic_root, &settings.repo);
        let restored = slots.restored().map(|why| {
            log::error!("update: {why}");
            let detail = json!({ "decision": "restored", "reason": in_short(&why) });
            Action::Audit { subject: "slots".to_owned(), detail }
        });
        Self {
            settings,
            slots,
            topics,
            mailbox: Mailbox::default(),
            watch: Watch::default(),
            phase: Phase::Idle,
            running: Digest([0; 32]),
            root: 0,
            reason: None,
            refusals: Floods::new(REFUSALS_SHARE),
            received: None,
            delayed: None,
            dropped: None,
            news: true,
            failures: 0,
            retry: None,
            rest_until: None,
            told: None,
            watched_at: None,
            awaited: None,
            actions: restored.into_iter().collect(),
        }
    }

    /// Which slot to start with; `None` is the configured model. To be called once, before [`Session::started`].
    pub fn boot(&mut self, moment: &Moment) -> Option<Slot> {
        let trial = self.slots.on_trial().cloned();
        let candidate = trial.as_ref().and_then(|trial| self.slots.package(trial.slot).cloned());
        match self.slots.start() {
            Ok((slot, None)) => slot,
            Ok((slot, Some(why))) => {
                match candidate.filter(|_| self.slots.on_trial().is_some()) {
                    Some(candidate) => {
                        self.reject(&candidate, UpdateOutcome::RolledBack, why, moment);
                    }
                    None => self.audit("slots", json!({ "decision": "repaired", "reason": why })),
                }
                slot
            }
            Err(error) => {
                log::error!("update: {error}; starting with what is confirmed");
                self.slots.confirmed().filter(|slot| self.slots.is_whole(*slot))
            }
        }
    }

    /// The slot given by [`Session::boot`] cannot be loaded: the next one to try, `None` being the configured model.
    pub fn boot_failed(&mut self, slot: Slot, why: &str, moment: &Moment) -> Option<Slot> {
        let on_trial = self.slots.on_trial().is_some_and(|trial| trial.slot == slot);
        let whole = self.slots.is_whole(slot);
        match self.slots.package(slot).cloned().filter(|_| on_trial) {
            Some(_) if !whole => {
                self.withdraw(slot);
                let reason = "the slot on trial is damaged";
                self.audit("slots", json!({ "decision": "repaired", "reason": reason }));
                self.slots.confirmed().filter(|slot| self.slots.is_whole(*slot))
            }
            Some(candidate) => {
                self.reject(&candidate, UpdateOutcome::RolledBack, why, moment);
                self.slots.confirmed().filter(|slot| self.slots.is_whole(*slot))
            }
            None => {
                let detail = json!({ "decision": "configured-model", "reason": in_short(why) });
                self.audit("slots", detail);
                None
            }
        }
    }

    /// The agent serves: `slot` runs, a package with this digest.
    pub fn started(&mut self, slot: Option<Slot>, running: Digest, moment: &Moment) -> Vec<Action> {
        self.running = running;
        let trial = self.slots.on_trial().filter(|trial| trial.stage == Stage::Probation);
        if let (Some(slot), Some(trial)) = (slot, trial)
            && slot == trial.slot
            && let Some(candidate) = self.slots.package(slot).cloned()
        {
            self.phase = Phase::Probation { slot, candidate, since: moment.now };
        }
        self.watch(moment);
        self.tell();
        std::mem::take(&mut self.actions)
    }

    /// The package that a slot holds.
    #[must_use]
    pub fn package(&self, slot: Slot) -> Option<&Candidate> {
        self.slots.package(slot)
    }

    /// How the update stands, for the `model` topic.
    #[must_use]
    pub fn state(&self) -> UpdateState {
        let (state, target, progress) = match &self.phase {
            Phase::Idle | Phase::Reverting(_) => (UpdatePhase::Idle, None, None),
            Phase::Checking(..) => (UpdatePhase::Checking, None, None),
            Phase::Index(candidate, _) => (UpdatePhase::Fetching, Some(candidate), None),
            Phase::Fetching(transfer) => {
                (UpdatePhase::Fetching, Some(&transfer.candidate), Some(transfer.progress()))
            }
            Phase::Trying(_, candidate) | Phase::Swapping(_, candidate) => {
                (UpdatePhase::Trial, Some(candidate), None)
            }
            Phase::Probation { candidate, .. } => (UpdatePhase::Probation, Some(candidate), None),
        };
        UpdateState {
            state,
            target: target.map(Candidate::title),
            progress,
            reason: self.reason.clone(),
            last: self.slots.last().cloned(),
        }
    }

    /// Whether the model of a slot may still be taken back; the configured one, `None`, may not.
    #[must_use]
    pub fn trust(&self, slot: Option<Slot>) -> Trust {
        let confirmed = slot.is_none() || slot == self.slots.confirmed();
        if confirmed { Trust::Confirmed } else { Trust::Trial }
    }

    /// Whether a new model is being watched.
    #[must_use]
    pub fn on_probation(&self) -> bool {
        matches!(self.phase, Phase::Probation { .. })
    }

    /// Takes an event; the actions are to be done in order.
    #[must_use]
    pub fn handle(&mut self, event: Event, moment: &Moment) -> Vec<Action> {
        match event {
            Event::Tick => {}
            Event::Connected => self.mailbox.set_connected(true, moment.now),
            Event::Disconnected => self.mailbox.set_connected(false, moment.now),
            Event::Message { topic, payload } => self.on_message(&topic, payload, moment),
            Event::Subscribed { filter, granted: true } => {
                if filter == self.topics.metadata("timestamp.json") {
                    self.awaited = Some(moment.now);
                }
                self.mailbox.granted(&filter, moment.now);
            }
            Event::Subscribed { filter, granted: false } => {
                if self.mailbox.take(&filter) || self.is_watched(&filter) {
                    self.fail(&Error::Refused { topic: filter }, moment);
                }
            }
            Event::Tried(outcome) => self.on_tried(outcome, moment),
            Event::Running(outcome) => self.on_running(outcome, moment),
            Event::Sample(sample) => self.on_sample(&sample, moment),
            Event::CheckNow => self.look_anew(moment),
            Event::Dropped => self.dropped = Some(moment.now),
        }
        while let Some(topic) = self.mailbox.expired(moment.now) {
            self.actions.push(Action::Unsubscribe(topic.clone()));
            self.on_answer(&topic, None, moment);
        }
        for (kind, more) in self.refusals.ended(moment.now) {
            self.audit("metadata", json!({ "decision": "refused", "kind": kind, "more": more }));
        }
        self.miss_timestamp(moment);
        self.watch(moment);
        self.begin_when_due(moment);
        std::mem::take(&mut self.actions)
    }

    /// A broker that has no repository, or shows none to this device, is told of; MQTT itself does not.
    fn miss_timestamp(&mut self, moment: &Moment) {
        let over = |at: Instant| moment.now.saturating_duration_since(at) >= ABSENT_AFTER;
        if self.watch.timestamp.is_some() {
            self.awaited = None;
        } else if self.awaited.is_some_and(over) {
            self.awaited = None;
            let topic = self.topics.metadata("timestamp.json");
            self.fail(&self.absent(topic, moment), moment);
        }
    }

    fn watch(&mut self, moment: &Moment) {
        let recent = |at: Instant| moment.now.saturating_duration_since(at) < ASK_AGAIN;
        if !self.watched_at.is_some_and(recent) {
            self.watched_at = Some(moment.now);
            self.actions.push(Action::Subscribe(self.topics.head()));
            self.actions.push(Action::Subscribe(self.topics.metadata("timestamp.json")));
        }
    }

    /// Whatever is known of the repository is asked for again: it may be no longer what the broker keeps.
    fn look_anew(&mut self, moment: &Moment) {
        (self.watch, self.watched_at) = (Watch::default(), None);
        if let Some(delayed) = &mut self.delayed {
            delayed.until = moment.now;
        }
        if matches!(self.phase, Phase::Checking(..)) {
            self.leave();
        }
        self.hear_news();
    }

    fn is_watched(&self, topic: &str) -> bool {
        topic == self.topics.head() || topic == self.topics.metadata("timestamp.json")
    }

    fn on_message(&mut self, topic: &str, payload: Vec<u8>, moment: &Moment) {
        if topic == self.topics.head() {
            let head = Head::parse(&payload).ok();
            if let Some(new) = head
                && head != self.watch.head
            {
                self.watch.head = head;
                // It follows the timestamp that it tells of: without a new root there is nothing in it that ends a transfer.
                if new.root > self.root {
                    self.hear_news();
                } else {
                    self.news = true;
                }
            }
        } else if topic == self.topics.metadata("timestamp.json") {
            let fits = payload.len() as u64 <= Limits::default().timestamp_bytes;
            if fits && !payload.is_empty() && self.watch.timestamp.as_ref() != Some(&payload) {
                self.watch.timestamp = Some(payload);
                self.hear_news();
            }
        } else if self.mailbox.take(topic) {
            self.actions.push(Action::Unsubscribe(topic.to_owned()));
            // A topic that was emptied has no message.
            let payload = Some(payload).filter(|payload| !payload.is_empty());
            self.on_answer(topic, payload, moment);
        }
    }

    /// News are looked at once nothing else is under way; chunks of what may be outdated are given up for them.
    fn hear_news(&mut self) {
        self.news = true;
        if matches!(self.phase, Phase::Index(..) | Phase::Fetching(_)) {
            self.leave();
        }
    }

    /// Nothing to do until there are news.
    fn rest(&mut self, why: &str) {
        let why = in_short(why);
        log::info!("update: {why}");
        self.reason = Some(why);
        self.leave();
        self.failures = 0;
    }

    /// An update ended, well or not; another may have been waiting.
    fn settle(&mut self) {
        self.reason = None;
        self.failures = 0;
        self.news = true;
        self.tell();
    }

    /// Tried again later, sooner with news.
    fn fail(&mut self, error: &Error, moment: &Moment) {
        let wait = back_off(self.failures);
        self.failures += 1;
        self.fail_for(error, wait, moment);
    }

    fn fail_for(&mut self, error: &Error, wait: Duration, moment: &Moment) {
        let why = in_short(&error.to_string());
        self.retry = Some(moment.now + wait);
        if self.reason.as_ref() == Some(&why) {
            log::debug!("update: {why}");
        } else {
            log::warn!("update: {why}; next attempt in {} s at the latest", wait.as_secs());
        }
        let kind = error.kind();
        if self.refusals.admit(kind, moment.now) {
            let detail = json!({ "decision": "refused", "kind": kind, "reason": why });
            self.audit("metadata", detail);
        }
        self.reason = Some(why);
        self.leave();
    }

    /// A topic has no message, or it was among those that were dropped.
    fn absent(&self, topic: String, moment: &Moment) -> Error {
        let recent = |at: Instant| moment.now.saturating_duration_since(at) < 2 * ABSENT_AFTER;
        match self.dropped.is_some_and(recent) {
            true => Error::Flooded { topic },
            false => Error::Absent { topic },
        }
    }

    /// Ends a look at the repository. A model on trial stays what it is: nothing that a broker does or leaves undone
    /// ends a probation.
    fn leave(&mut self) {
        self.actions.extend(self.mailbox.clear().map(Action::Unsubscribe));
        if matches!(self.phase, Phase::Checking(..) | Phase::Index(..) | Phase::Fetching(_)) {
            self.phase = Phase::Idle;
        }
        self.tell();
    }

    fn ask(&mut self, topic: String, moment: &Moment) {
        self.mailbox.ask(topic.clone(), moment.now);
        self.actions.push(Action::Subscribe(topic));
    }

    fn tell(&mut self) {
        if !self.actions.contains(&Action::Tell) {
            self.actions.push(Action::Tell);
        }
    }

    fn audit(&mut self, subject: &str, detail: serde_json::Value) {
        self.actions.push(Action::Audit { subject: subject.to_owned(), detail });
    }
}

/// Wait after so many failures in a row.
fn back_off(failures: u32) -> Duration {
    FIRST_RETRY.saturating_mul(1 << failures.min(10)).min(LONGEST_RETRY)
}
