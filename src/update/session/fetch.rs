//! From news to a package in a slot: one look at the repository, the index, the chunks, the checks.

use std::time::Instant;

use ocelli_protocol::model_state::UpdateOutcome;
use ocelli_protocol::repository::MAX_CHUNK_BYTES;
use serde_json::json;

use super::{Delayed, Phase, REST, Session};
use crate::model::disk::Disk;
use crate::model::slots::{INCOMING, StageError};
use crate::update::check::{self, Check, Choice, Look};
use crate::update::chunks::{Taken, Transfer};
use crate::update::time::trusted_now;
use crate::update::{Clock, ClockRule, Error, Moment};

impl<D: Disk> Session<D> {
    pub(super) fn begin_when_due(&mut self, moment: &Moment) {
        let passed = |at: Option<Instant>| at.is_none_or(|at| moment.now >= at);
        let due = self.news || self.retry.is_some_and(|at| moment.now >= at);
        // What was looked at in vain may have been one message, and the broker keeps another.
        let again = !self.news && due && self.failures > 0;
        let ready = matches!(self.phase, Phase::Idle) && self.watch.timestamp.is_some();
        if !(due && ready && passed(self.rest_until)) {
            return;
        }
        if again {
            self.watched_at = None;
            self.watch(moment);
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

    pub(super) fn on_answer(&mut self, topic: &str, payload: Option<Vec<u8>>, moment: &Moment) {
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
                    Err(Error::Absent { topic }) => self.fail(&self.absent(topic, moment), moment),
                    Err(error) => self.fail(&error, moment),
                }
            }
            Phase::Index(..) => match payload {
                Some(bytes) => self.index_came(bytes, moment),
                None => self.fail(&self.absent(topic.to_owned(), moment), moment),
            },
            Phase::Fetching(transfer) => {
                let Some(bytes) = payload else {
                    return self.fail(&self.absent(topic.to_owned(), moment), moment);
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
        if let Phase::Checking(check, _) = &self.phase {
            self.root = check.root.unwrap_or(self.root);
        }
        let (candidate, release) = match choice {
            Choice::Nothing(why) => return self.rest(&why),
            Choice::Package(candidate, release) => (candidate, release),
        };
        if let Some(reason) = self.slots.contradiction(&candidate) {
            let path = candidate.title();
            return self.fail(&Error::Release { path, reason }, moment);
        }
        if candidate.sha256 == self.running {
            return self.rest(&format!("{} runs", candidate.title()));
        }
        if let Some(why) = self.slots.rejection(&candidate) {
            let (title, attempt) = (candidate.title(), candidate.attempt);
            let why = format!("{title} was rejected in attempt {attempt}: {why}");
            return self.rest(&why);
        }
        let (sha256, attempt) = (candidate.sha256, candidate.attempt);
        if let Some(Delayed { until, why, .. }) =
            self.delayed.as_ref().filter(|one| (one.sha256, one.attempt) == (sha256, attempt))
            && moment.now < *until
        {
            let (until, why) = (*until, why.clone());
            self.rest(&why);
            self.retry = Some(until);
            return;
        }
        // A broker that withholds a chunk, or has each look end in another way, does not cause a row each time.
        if self.received.replace((sha256, attempt)) != Some((sha256, attempt)) {
            let detail = json!({ "decision": "received", "sha256": sha256, "attempt": attempt });
            self.audit(&candidate.title(), detail);
        }
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
            // Each chunk had its digest when it came.
            Err(StageError::Digest { .. }) if !self.slots.has_incoming(&index_bytes) => {
                return self.fail(&Error::Spoiled { file: INCOMING }, moment);
            }
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
}
