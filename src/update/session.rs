//! The update session: events and the time in, actions out. Whatever happens, the model that runs is the confirmed one or one
//! on probation, and an update that fails leaves the way free for the next.

use std::time::{Duration, Instant};

use ocelli_protocol::model_state::{LastUpdate, UpdateOutcome, UpdatePhase, UpdateState};
use ocelli_protocol::repository::{Digest, Head, MAX_CHUNK_BYTES, Release};
use ocelli_protocol::topic::RepoTopics;
use ocelli_tuf::Limits;
use serde_json::json;

use crate::model::disk::Disk;
use crate::model::slots::{Candidate, MOST_STARTS, Slot, Slots, Stage, StageError};
use crate::update::check::{self, Check, Choice, Look, Watch};
use crate::update::chunks::{Taken, Transfer};
use crate::update::mailbox::{ABSENT_AFTER, Mailbox};
use crate::update::time::trusted_now;
use crate::update::{Action, Clock, ClockRule, Error, Event, Moment, Sample, Settings};

/// First wait after a failure; doubles up to [`LONGEST_RETRY`], and never holds back news.
const FIRST_RETRY: Duration = Duration::from_secs(15);
const LONGEST_RETRY: Duration = Duration::from_secs(1800);
/// Between two looks, whatever the broker sends.
const REST: Duration = Duration::from_secs(2);
/// The watched topics are subscribed to again, so that a message lost on the way to us is made good.
const ASK_AGAIN: Duration = Duration::from_secs(900);
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
    /// The agent goes back to the confirmed model.
    Reverting,
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
    reason: Option<String>,
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
        let slots = Slots::open(disk, &settings.model);
        let topics = RepoTopics::new(&settings.topic_root, &settings.repo);
        Self {
            settings,
            slots,
            topics,
            mailbox: Mailbox::default(),
            watch: Watch::default(),
            phase: Phase::Idle,
            running: Digest([0; 32]),
            reason: None,
            news: true,
            failures: 0,
            retry: None,
            rest_until: None,
            told: None,
            watched_at: None,
            awaited: None,
            actions: Vec::new(),
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
        match self.slots.package(slot).cloned().filter(|_| on_trial) {
            Some(candidate) => {
                self.reject(&candidate, UpdateOutcome::RolledBack, why, moment);
                self.slots.confirmed().filter(|slot| self.slots.is_whole(*slot))
            }
            None => {
                self.audit("slots", json!({ "decision": "configured-model", "reason": why }));
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
            Phase::Idle | Phase::Reverting => (UpdatePhase::Idle, None, None),
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

    /// Whether a new model runs that may still be taken back.
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
            Event::CheckNow => self.hear_news(),
        }
        while let Some(topic) = self.mailbox.expired(moment.now) {
            self.actions.push(Action::Unsubscribe(topic.clone()));
            self.on_answer(&topic, None, moment);
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
            self.fail(&Error::Absent { topic }, moment);
        }
    }

    /// Ends a trial or probation; `false` when there is none.
    #[must_use]
    pub fn abort(&mut self, moment: &Moment) -> Option<Vec<Action>> {
        const WHY: &str = "aborted by command";
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Trying(_, candidate) => {
                self.actions.push(Action::StopTrial);
                self.reject(&candidate, UpdateOutcome::Rejected, WHY, moment);
            }
            Phase::Probation { candidate, .. } => self.roll_back(&candidate, WHY, moment),
            other => {
                self.phase = other;
                return None;
            }
        }
        Some(std::mem::take(&mut self.actions))
    }

    fn watch(&mut self, moment: &Moment) {
        let recent = |at: Instant| moment.now.saturating_duration_since(at) < ASK_AGAIN;
        if !self.watched_at.is_some_and(recent) {
            self.watched_at = Some(moment.now);
            self.actions.push(Action::Subscribe(self.topics.head()));
            self.actions.push(Action::Subscribe(self.topics.metadata("timestamp.json")));
        }
    }

    fn is_watched(&self, topic: &str) -> bool {
        topic == self.topics.head() || topic == self.topics.metadata("timestamp.json")
    }

    fn on_message(&mut self, topic: &str, payload: Vec<u8>, moment: &Moment) {
        if topic == self.topics.head() {
            let head = Head::parse(&payload).ok();
            if head.is_some() && head != self.watch.head {
                self.watch.head = head;
                self.hear_news();
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

    fn begin_when_due(&mut self, moment: &Moment) {
        let passed = |at: Option<Instant>| at.is_none_or(|at| moment.now >= at);
        let due = self.news || self.retry.is_some_and(|at| moment.now >= at);
        let ready = matches!(self.phase, Phase::Idle) && self.watch.timestamp.is_some();
        if !(due && ready && passed(self.rest_until)) {
            return;
        }
        (self.news, self.retry) = (false, None);
        self.rest_until = Some(moment.now + REST);
        if self.settings.clock == ClockRule::Refuse && moment.clock == Clock::Unverified {
            return self.fail(&Error::Clock, moment);
        }
        let now = trusted_now(self.slots.disk(), &self.settings.first_root, moment);
        match Check::start(&self.settings, self.slots.disk(), now) {
            Ok(check) => {
                self.phase = Phase::Checking(Box::new(check), 0);
                self.drive(moment);
            }
            Err(error) => self.fail(&error, moment),
        }
    }

    fn drive(&mut self, moment: &Moment) {
        let Phase::Checking(check, max) = &mut self.phase else { return };
        match check.drive(&self.settings, self.slots.disk(), &self.watch) {
            Ok(Look::Needs { topic, max_bytes }) => {
                *max = max_bytes;
                self.ask(topic, moment);
            }
            Ok(Look::Chose(choice)) => self.chose(choice, moment),
            Err(error) => self.fail(&error, moment),
        }
    }

    fn on_answer(&mut self, topic: &str, payload: Option<Vec<u8>>, moment: &Moment) {
        match &mut self.phase {
            Phase::Checking(check, max) => {
                let limit = *max;
                if payload.as_ref().is_some_and(|bytes| bytes.len() as u64 > limit) {
                    let file = topic.rsplit('/').next().unwrap_or_default().to_owned();
                    return self.fail(&ocelli_tuf::Error::TooLong { file, limit }.into(), moment);
                }
                match check.came(&self.settings, topic, payload) {
                    Ok(None) => self.drive(moment),
                    Ok(Some(choice)) => self.chose(choice, moment),
                    Err(error) => self.fail(&error, moment),
                }
            }
            Phase::Index(..) => match payload {
                Some(bytes) => self.index_came(bytes, moment),
                None => self.fail(&Error::Absent { topic: topic.to_owned() }, moment),
            },
            Phase::Fetching(transfer) => {
                let Some(bytes) = payload else {
                    return self.fail(&Error::Absent { topic: topic.to_owned() }, moment);
                };
                let digest = topic.rsplit('/').next().and_then(|name| name.parse().ok());
                let Some(digest) = digest.filter(|_| bytes.len() <= MAX_CHUNK_BYTES) else {
                    return self.fail(&Error::Damaged { topic: topic.to_owned() }, moment);
                };
                match transfer.take(&mut self.slots, &digest, &bytes) {
                    Ok(Taken::Stored) => self.fetch(moment),
                    Ok(Taken::Unasked) => {}
                    Ok(Taken::Damaged) => {
                        self.fail(&Error::Damaged { topic: topic.to_owned() }, moment);
                    }
                    Err(error) => self.fail(&error.into(), moment),
                }
            }
            _ => {}
        }
    }

    fn chose(&mut self, choice: Choice, moment: &Moment) {
        let (candidate, release) = match choice {
            Choice::Nothing(why) => return self.rest(why),
            Choice::Package(candidate, release) => (candidate, release),
        };
        if candidate.sha256 == self.running {
            return self.rest(format!("{} runs", candidate.title()));
        }
        if let Some(why) = self.slots.rejection(&candidate) {
            let (title, attempt) = (candidate.title(), candidate.attempt);
            let why = format!("{title} was rejected in attempt {attempt}: {why}");
            return self.rest(why);
        }
        let detail = json!({ "decision": "received", "sha256": candidate.sha256, "attempt": candidate.attempt });
        self.audit(&candidate.title(), detail);
        if let Some(slot) = self.slots.holding(&candidate.sha256) {
            return self.begin_trial(slot, candidate, moment);
        }
        let topic = self.topics.chunk(&release.index.sha256);
        self.phase = Phase::Index(candidate, release);
        self.ask(topic, moment);
        self.tell();
    }

    fn index_came(&mut self, bytes: Vec<u8>, moment: &Moment) {
        let Phase::Index(candidate, release) = std::mem::replace(&mut self.phase, Phase::Idle)
        else {
            return;
        };
        let index = match check::index(&candidate, &release, &bytes) {
            Ok(index) => index,
            Err(error) => return self.fail(&error, moment),
        };
        match Transfer::begin(&mut self.slots, candidate, &index, bytes) {
            Ok(transfer) => {
                self.phase = Phase::Fetching(Box::new(transfer));
                self.fetch(moment);
            }
            Err(error) => self.fail(&error.into(), moment),
        }
    }

    fn fetch(&mut self, moment: &Moment) {
        let Phase::Fetching(transfer) = &mut self.phase else { return };
        if transfer.is_complete() {
            return self.fetched(moment);
        }
        for digest in transfer.next() {
            let topic = self.topics.chunk(&digest);
            self.ask(topic, moment);
        }
        // Progress is told once a second at most.
        let recent = |at: Instant| moment.now.saturating_duration_since(at).as_secs() < 1;
        if !self.told.is_some_and(recent) {
            self.told = Some(moment.now);
            self.tell();
        }
    }

    fn fetched(&mut self, moment: &Moment) {
        let Phase::Fetching(transfer) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return;
        };
        let Transfer { candidate, index_bytes, .. } = *transfer;
        let checked = match self.slots.check_incoming(&candidate, &index_bytes) {
            Ok(checked) => checked,
            Err(StageError::Disk(error)) => return self.fail(&error.into(), moment),
            Err(refused) => {
                // What the keys signed will not become better by fetching it again.
                if let Err(error) = self.slots.discard_incoming() {
                    log::warn!("update: the refused package stays until the next one: {error}");
                }
                let why = refused.to_string();
                return self.reject(&candidate, UpdateOutcome::Rejected, &why, moment);
            }
        };
        match self.slots.stage(checked) {
            Ok(slot) => {
                self.audit(
                    &candidate.title(),
                    json!({ "decision": "verified", "sha256": candidate.sha256, "slot": slot }),
                );
                self.begin_trial(slot, candidate, moment);
            }
            Err(error) => self.fail(&error.into(), moment),
        }
    }

    fn begin_trial(&mut self, slot: Slot, candidate: Candidate, moment: &Moment) {
        let begun = self
            .slots
            .begin(slot, Stage::Trial, candidate.attempt)
            .and_then(|()| self.slots.count_start());
        if let Err(error) = begun {
            return self.fail(&error.into(), moment);
        }
        if self.slots.on_trial().is_some_and(|trial| trial.starts > MOST_STARTS) {
            let why = format!("the agent ended in each of {MOST_STARTS} trials");
            return self.reject(&candidate, UpdateOutcome::Rejected, &why, moment);
        }
        self.audit(&candidate.title(), json!({ "decision": "trial", "slot": slot }));
        self.actions.push(Action::Try(slot));
        self.phase = Phase::Trying(slot, candidate);
        self.reason = None;
        self.tell();
    }

    fn on_tried(&mut self, outcome: Result<(), String>, moment: &Moment) {
        let Phase::Trying(slot, candidate) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return log::debug!("update: a trial ended that nobody waits for");
        };
        if let Err(why) = outcome {
            return self.reject(&candidate, UpdateOutcome::Rejected, &why, moment);
        }
        if let Err(error) = self.slots.begin(slot, Stage::Probation, candidate.attempt) {
            return self.fail(&error.into(), moment);
        }
        self.actions.push(Action::Run(Some(slot)));
        self.phase = Phase::Swapping(slot, candidate);
        self.tell();
    }

    fn on_running(&mut self, outcome: Result<(), String>, moment: &Moment) {
        match (std::mem::replace(&mut self.phase, Phase::Idle), outcome) {
            (Phase::Swapping(slot, candidate), Ok(())) => {
                self.running = candidate.sha256;
                self.audit(&candidate.title(), json!({ "decision": "probation", "slot": slot }));
                self.phase = Phase::Probation { slot, candidate, since: moment.now };
                self.tell();
            }
            (Phase::Swapping(_, candidate), Err(why)) => {
                self.reject(&candidate, UpdateOutcome::Rejected, &why, moment);
            }
            (Phase::Reverting, Ok(())) => self.tell(),
            (Phase::Reverting, Err(why)) => {
                // The model on trial goes on; the next start of the agent begins with the confirmed one.
                log::error!("update: the confirmed model does not load: {why}");
                self.audit("slots", json!({ "decision": "revert-failed", "reason": why }));
            }
            (other, _) => self.phase = other,
        }
    }

    fn on_sample(&mut self, sample: &Sample, moment: &Moment) {
        let Phase::Probation { slot, candidate, since } = &self.phase else { return };
        let (slot, candidate) = (*slot, candidate.clone());
        let elapsed = moment.now.saturating_duration_since(*since);
        if sample.faults > 0 {
            let why = format!("{} frames failed during probation", sample.faults);
            return self.roll_back(&candidate, &why, moment);
        }
        if let (Some(p90), Some(budget)) = (sample.p90, sample.budget)
            && sample.finished >= FRAMES_FOR_LATENCY
            && p90 > budget
        {
            let [p90, budget] = [p90, budget].map(|time| time.as_micros() as f64 / 1000.0);
            let why = format!("p90 of inference is {p90:.1} ms, allowed are {budget:.1} ms");
            return self.roll_back(&candidate, &why, moment);
        }
        let rule = self.settings.probation;
        let enough = sample.finished >= rule.frames && elapsed >= rule.time;
        if enough || elapsed >= rule.longest {
            let why = format!("{} frames without fault", sample.finished);
            let last = last(&candidate, UpdateOutcome::Confirmed, &why, moment);
            if let Err(error) = self.slots.confirm(last) {
                // Still on probation: tried again with the next sample.
                return log::error!("update: cannot confirm {}: {error}", candidate.title());
            }
            log::info!("update confirmed target={} slot={}", candidate.title(), slot.name());
            self.audit(&candidate.title(), json!({ "decision": "confirmed", "reason": why }));
            self.phase = Phase::Idle;
            self.settle();
        }
    }

    fn roll_back(&mut self, candidate: &Candidate, why: &str, moment: &Moment) {
        self.reject(candidate, UpdateOutcome::RolledBack, why, moment);
        let confirmed = self.slots.confirmed();
        let package = confirmed.and_then(|slot| self.slots.package(slot));
        // Unknown for the configured model; the agent tells it with the swap.
        self.running = package.map_or(Digest([0; 32]), |package| package.sha256);
        self.phase = Phase::Reverting;
        self.actions.push(Action::Run(confirmed));
    }

    /// The model that runs is the configured one, with this digest.
    pub fn runs_configured(&mut self, digest: Digest) {
        self.running = digest;
    }

    fn reject(
        &mut self,
        candidate: &Candidate,
        outcome: UpdateOutcome,
        why: &str,
        moment: &Moment,
    ) {
        log::warn!("update {outcome:?} target={} reason={why}", candidate.title());
        let decision = serde_json::to_value(outcome).expect("an outcome is a word");
        self.audit(&candidate.title(), json!({ "decision": decision, "sha256": candidate.sha256, "attempt": candidate.attempt, "reason": why }));
        if let Err(error) = self.slots.reject(candidate, last(candidate, outcome, why, moment)) {
            log::error!("update: the rejection is not remembered: {error}");
        }
        self.phase = Phase::Idle;
        self.settle();
    }

    /// Nothing to do until there are news.
    fn rest(&mut self, why: String) {
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
        let why = error.to_string();
        let wait = FIRST_RETRY.saturating_mul(1 << self.failures.min(10)).min(LONGEST_RETRY);
        self.failures += 1;
        self.retry = Some(moment.now + wait);
        if self.reason.as_ref() == Some(&why) {
            log::debug!("update: {why}");
        } else {
            log::warn!("update: {why}; next attempt in {} s or with news", wait.as_secs());
            self.audit("metadata", json!({ "decision": "refused", "reason": why }));
        }
        self.reason = Some(why);
        self.leave();
    }

    fn leave(&mut self) {
        self.actions.extend(self.mailbox.clear().map(Action::Unsubscribe));
        self.phase = Phase::Idle;
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

fn last(candidate: &Candidate, outcome: UpdateOutcome, why: &str, moment: &Moment) -> LastUpdate {
    let (target, reason, at) = (candidate.title(), why.to_owned(), moment.wall.to_string());
    LastUpdate { target, outcome, reason, at }
}
