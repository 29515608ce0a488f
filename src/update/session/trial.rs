//! From a package in a slot to a model that is trusted, or to the one before: trial, swap, probation, rejection.

use std::time::Duration;

use ocelli_protocol::model_state::{LastUpdate, UpdateOutcome};
use ocelli_protocol::repository::Digest;
use serde_json::json;

use super::{Delayed, FRAMES_FOR_LATENCY, Phase, Session, back_off};
use crate::model::disk::Disk;
use crate::model::slots::{Candidate, MOST_STARTS, Slot, Stage};
use crate::update::trial::Failure;
use crate::update::{Action, Error, Moment, Sample, in_short};

/// Trials that the device could not hold, before it waits a day for the next.
const MOST_TIMES: u32 = 8;
const DAY: Duration = Duration::from_secs(24 * 3600);

impl<D: Disk> Session<D> {
    /// Ends a trial or probation; `None` when there is none.
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

    pub(super) fn begin_trial(&mut self, slot: Slot, candidate: Candidate, moment: &Moment) {
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

    pub(super) fn on_tried(&mut self, outcome: Result<(), Failure>, moment: &Moment) {
        if !matches!(self.phase, Phase::Trying(..)) {
            return log::debug!("update: a trial ended that nobody waits for");
        }
        let Phase::Trying(slot, candidate) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return;
        };
        match outcome {
            Err(Failure::Device(why)) => return self.put_off(slot, &candidate, why, moment),
            // Also what passed: the child may have read it before it was damaged.
            _ if !self.slots.is_whole(slot) => {
                return self.put_off(slot, &candidate, damaged(slot), moment);
            }
            Ok(()) => self.delayed = None,
            Err(Failure::Model(why)) => {
                return self.reject(&candidate, UpdateOutcome::Rejected, &why, moment);
            }
        }
        if let Err(error) = self.slots.begin(slot, Stage::Probation, candidate.attempt) {
            return self.fail(&error.into(), moment);
        }
        self.actions.push(Action::Run(Some(slot)));
        self.phase = Phase::Swapping(slot, candidate);
        self.tell();
    }

    pub(super) fn on_running(&mut self, outcome: Result<Digest, String>, moment: &Moment) {
        match (std::mem::replace(&mut self.phase, Phase::Idle), outcome) {
            (Phase::Swapping(slot, candidate), Ok(running)) => {
                self.running = running;
                self.audit(&candidate.title(), json!({ "decision": "probation", "slot": slot }));
                self.phase = Phase::Probation { slot, candidate, since: moment.now };
                self.tell();
            }
            (Phase::Swapping(slot, candidate), Err(_)) if !self.slots.is_whole(slot) => {
                self.put_off(slot, &candidate, damaged(slot), moment);
            }
            (Phase::Swapping(_, candidate), Err(why)) => {
                self.reject(&candidate, UpdateOutcome::Rejected, &why, moment);
            }
            (Phase::Reverting(_), Ok(running)) => {
                self.running = running;
                self.tell();
            }
            (Phase::Reverting(to), Err(why)) => {
                let which = to.map_or("configured", |_| "confirmed");
                log::error!("update: the {which} model does not load: {why}");
                let reason = format!("the {which} model: {}", in_short(&why));
                self.audit("slots", json!({ "decision": "revert-failed", "reason": reason }));
                // Without the configured one, too, the rejected model goes on until the agent is started anew.
                if to.is_some() {
                    self.go_back(None);
                }
            }
            (other, _) => self.phase = other,
        }
    }

    pub(super) fn on_sample(&mut self, sample: &Sample, moment: &Moment) {
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

    /// The device could not try the package: that says nothing of it. Tried again later and ever later, whatever the news; after
    /// [`MOST_TIMES`] once a day. A look that an operator asks for does not wait.
    fn put_off(&mut self, slot: Slot, candidate: &Candidate, why: String, moment: &Moment) {
        self.withdraw(slot);
        let (sha256, attempt) = (candidate.sha256, candidate.attempt);
        let before =
            self.delayed.take().filter(|one| (one.sha256, one.attempt) == (sha256, attempt));
        let times = before.map_or(0, |one| one.times) + 1;
        let wait = if times < MOST_TIMES { back_off(times - 1) } else { DAY };
        let error = Error::Local(why);
        let (until, why) = (moment.now + wait, error.to_string());
        self.delayed = Some(Delayed { sha256, attempt, times, until, why });
        self.fail_for(&error, wait, moment);
    }

    /// Ends a trial without a verdict; what is damaged of the slot is forgotten.
    pub(super) fn withdraw(&mut self, slot: Slot) {
        if let Err(error) = self.slots.withdraw(slot) {
            log::error!("update: the end of the trial is not remembered: {error}");
        }
    }

    fn roll_back(&mut self, candidate: &Candidate, why: &str, moment: &Moment) {
        self.reject(candidate, UpdateOutcome::RolledBack, why, moment);
        self.go_back(self.slots.confirmed());
    }

    fn go_back(&mut self, to: Option<Slot>) {
        self.phase = Phase::Reverting(to);
        self.actions.push(Action::Run(to));
    }

    pub(super) fn reject(
        &mut self,
        candidate: &Candidate,
        outcome: UpdateOutcome,
        why: &str,
        moment: &Moment,
    ) {
        let why = &in_short(why);
        log::warn!("update {outcome:?} target={} reason={why}", candidate.title());
        let decision = serde_json::to_value(outcome).expect("an outcome is a word");
        self.audit(&candidate.title(), json!({ "decision": decision, "sha256": candidate.sha256, "attempt": candidate.attempt, "reason": why }));
        if let Err(error) = self.slots.reject(candidate, last(candidate, outcome, why, moment)) {
            log::error!("update: the rejection is not remembered: {error}");
        }
        (self.phase, self.delayed) = (Phase::Idle, None);
        self.settle();
    }
}

fn damaged(slot: Slot) -> String {
    format!("{} was damaged on this device's disk after it was verified", slot.file())
}

fn last(candidate: &Candidate, outcome: UpdateOutcome, why: &str, moment: &Moment) -> LastUpdate {
    let (target, reason, at) = (candidate.title(), why.to_owned(), moment.wall.to_string());
    LastUpdate { target, outcome, reason, at }
}
