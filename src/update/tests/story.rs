//! What becomes of updates: the good way, every kind of failure on the way, and what is possible afterwards.

use std::collections::BTreeMap;
use std::time::Duration;

use ocelli_protocol::model_state::{Trust, UpdateOutcome, UpdatePhase};
use ocelli_protocol::repository::{RolloutEntry, release_path};

use super::world::{CHUNK, Device, MODEL, Repository, boot, digest, now, package, two};
use crate::clock::UnixTime;
use crate::model::power_cut::PowerCut;
use crate::model::slots::Slot;
use crate::update::trial::Failure;
use crate::update::{Clock, ClockRule, RELEASED, Sample};

fn decisions(device: &Device<PowerCut>) -> Vec<String> {
    let word = |(_, detail): &(String, serde_json::Value)| {
        detail["decision"].as_str().unwrap_or_default().to_owned()
    };
    device.audit.iter().map(word).collect()
}

fn outcome(device: &Device<PowerCut>) -> (UpdateOutcome, String) {
    let last = device.state().last.expect("an update ended");
    (last.outcome, last.reason)
}

#[test]
fn an_update_is_verified_tried_watched_and_confirmed() {
    let (repository, disk) = (two(), PowerCut::default());
    let mut device = boot(&repository, &disk);
    device.live(&repository.broker, 1);
    assert_eq!(device.state().state, UpdatePhase::Probation, "{:?}", device.state());
    assert_eq!(device.state().target.as_deref(), Some("tiny-classifier-2.0.0"));
    assert_eq!(device.trust(), Trust::Trial);
    device.live(&repository.broker, 10);
    assert_eq!(device.trust(), Trust::Confirmed);
    assert_eq!((device.runs, outcome(&device).0), (Some(Slot::A), UpdateOutcome::Confirmed));
    assert_eq!(decisions(&device), ["received", "verified", "trial", "probation", "confirmed"]);
    // The two watched topics and a window of eight.
    assert!(device.most_subscribed <= 10, "{}", device.most_subscribed);
    // Nothing more happens.
    device.asked.clear();
    device.live(&repository.broker, 600);
    assert!(device.asked.is_empty(), "{:?}", device.asked);
}

#[test]
fn chunks_that_are_held_are_not_asked_for_again() {
    let (mut repository, disk) = (two(), PowerCut::default());
    let mut device = boot(&repository, &disk);
    device.live(&repository.broker, 20);
    let asked = |device: &Device<PowerCut>, repository: &Repository, version: &str| {
        let tar = package(version);
        let topics = tar.chunks(CHUNK).map(|bytes| repository.topics.chunk(&digest(bytes)));
        topics.map(|topic| device.asked.contains(&topic)).collect::<Vec<_>>()
    };
    let first = asked(&device, &repository, "2.0.0");
    assert!(first.len() > 1 && first.iter().all(|asked| *asked), "{first:?}");
    device.asked.clear();
    // Another version differs in the manifest only, which lies in the first chunk.
    repository.release("2.0.1", &package("2.0.1"));
    repository.roll_out("2.0.1", 1);
    device.live(&repository.broker, 20);
    assert_eq!(device.runs, Some(Slot::B), "{:?}", device.state());
    let second = asked(&device, &repository, "2.0.1");
    assert!(second[0] && second[1..].iter().all(|asked| !asked), "{second:?}");
}

#[test]
fn a_failed_trial_or_load_is_remembered_until_the_attempt_is_raised() {
    for by_trial in [true, false] {
        let (mut repository, disk) = (two(), PowerCut::default());
        let mut device = boot(&repository, &disk);
        let failure = "it eats memory".to_owned();
        if by_trial {
            device.trial = Err(Failure::Model(failure));
        } else {
            device.swap = Err(failure);
        }
        device.live(&repository.broker, 60);
        assert_eq!(outcome(&device), (UpdateOutcome::Rejected, "it eats memory".to_owned()));
        assert_eq!(device.runs, None);
        let trials = decisions(&device).iter().filter(|word| *word == "trial").count();
        assert_eq!(trials, 1);
        // Also after a restart, and with other news.
        (device.trial, device.swap) = (Ok(()), Ok(()));
        repository.publish(now().plus_days(30));
        let mut device = boot(&repository, &disk);
        device.live(&repository.broker, 60);
        assert_eq!(device.runs, None);
        assert!(device.state().reason.unwrap().contains("was rejected in attempt 1"));
        repository.roll_out("2.0.0", 2);
        device.live(&repository.broker, 60);
        assert_eq!(device.runs, Some(Slot::A));
    }
}

#[test]
fn a_fault_or_a_slow_model_in_probation_brings_the_old_one_back() {
    let slow = Sample {
        finished: 100,
        p90: Some(Duration::from_millis(41)),
        budget: Some(Duration::from_millis(40)),
        ..Sample::default()
    };
    let faulty = Sample { finished: 5, faults: 1, ..Sample::default() };
    for (sample, says) in [(faulty, "1 frames failed"), (slow, "41.0 ms, allowed are 40.0 ms")] {
        let (repository, disk) = (two(), PowerCut::default());
        let mut device = boot(&repository, &disk);
        device.sample = sample;
        device.live(&repository.broker, 60);
        let (outcome, why) = outcome(&device);
        assert_eq!(outcome, UpdateOutcome::RolledBack);
        assert!(why.contains(says), "{why}");
        assert_eq!(device.runs, None);
        assert_eq!(decisions(&device).iter().filter(|word| *word == "trial").count(), 1);
    }
}

#[test]
fn probation_without_frames_ends_all_the_same() {
    let (repository, disk) = (two(), PowerCut::default());
    let mut device = boot(&repository, &disk);
    device.sample = Sample::default();
    device.live(&repository.broker, 59);
    assert_eq!(device.state().state, UpdatePhase::Probation);
    device.live(&repository.broker, 5);
    assert_eq!(outcome(&device).0, UpdateOutcome::Confirmed);
}

/// A model on probation that has not seen frames yet, then one that fails: it must still be watched.
fn is_still_watched(device: &mut Device<PowerCut>, topics: &BTreeMap<String, Vec<u8>>, what: &str) {
    assert_eq!(device.state().state, UpdatePhase::Probation, "{what}: {:?}", device.state());
    assert_eq!(device.trust(), Trust::Trial, "{what}");
    device.sample = Sample { finished: 5, faults: 1, ..Sample::default() };
    device.live(topics, 1);
    assert_eq!((device.runs, outcome(device).0), (None, UpdateOutcome::RolledBack), "{what}");
}

#[test]
fn a_broker_that_refuses_or_forgets_the_repository_does_not_end_a_probation() {
    let watched = |repository: &Repository| {
        [repository.topics.head(), repository.topics.metadata("timestamp.json")]
    };
    for refused in [0, 1] {
        let (repository, disk) = (two(), PowerCut::default());
        let mut device = boot(&repository, &disk);
        device.sample = Sample::default();
        device.live(&repository.broker, 1);
        device.refuse(watched(&repository)[refused].clone());
        device.live(&repository.broker, 30);
        is_still_watched(&mut device, &repository.broker, "refused");
    }
    // The agent is restarted, and the broker has lost everything that it retained.
    let (repository, disk) = (two(), PowerCut::default());
    let mut device = boot(&repository, &disk);
    device.live(&repository.broker, 1);
    let mut device = boot(&repository, &disk);
    device.sample = Sample::default();
    device.live(&BTreeMap::new(), 30);
    assert!(device.state().reason.unwrap().contains("timestamp.json"));
    is_still_watched(&mut device, &BTreeMap::new(), "forgotten");
}

#[test]
fn a_head_that_tells_of_nothing_new_does_not_end_a_transfer() {
    let (mut repository, disk) = (two(), PowerCut::default());
    let tar = package("2.0.0");
    let last = repository.topics.chunk(&digest(tar.chunks(CHUNK).next_back().unwrap()));
    let missing = repository.broker.remove(&last).unwrap();
    let mut device = boot(&repository, &disk);
    device.live(&repository.broker, 1);
    assert_eq!(device.state().state, UpdatePhase::Fetching, "{:?}", device.state());
    device.asked.clear();
    let head = repository.topics.head();
    for (root, goes_on) in [(1, true), (2, false)] {
        let text = format!(r#"{{"v":1,"root":{root},"timestamp":{}}}"#, 70 + root);
        repository.broker.insert(head.clone(), text.into_bytes());
        device.live(&repository.broker, 1);
        let fetching = device.state().state == UpdatePhase::Fetching && device.asked.is_empty();
        assert_eq!(fetching, goes_on, "root {root}: {:?}", device.asked);
    }
    repository.broker.insert(last, missing);
    device.live(&repository.broker, 60);
    assert_eq!(device.runs, Some(Slot::A), "{:?}", device.state());
}

#[test]
fn a_refused_subscription_does_not_forget_a_trial() {
    let (repository, disk) = (two(), PowerCut::default());
    let mut device = boot(&repository, &disk);
    device.trial_ends = false;
    device.live(&repository.broker, 1);
    assert_eq!(device.state().state, UpdatePhase::Trial);
    device.refuse(repository.topics.head());
    device.live(&repository.broker, 1);
    device.end_trial();
    device.live(&repository.broker, 20);
    assert_eq!((device.runs, outcome(&device).0), (Some(Slot::A), UpdateOutcome::Confirmed));
    let trials = decisions(&device).iter().filter(|word| *word == "trial").count();
    assert_eq!(trials, 1);
}

#[test]
fn a_rejected_model_that_cannot_be_replaced_yet_is_not_taken_for_the_old_one() {
    let (repository, disk) = (two(), PowerCut::default());
    let mut device = boot(&repository, &disk);
    device.sample = Sample::default();
    device.live(&repository.broker, 1);
    device.swap = Err("no swap within 60 s".to_owned());
    device.sample = Sample { finished: 5, faults: 1, ..Sample::default() };
    device.live(&repository.broker, 1);
    assert_eq!((device.runs, outcome(&device).0), (Some(Slot::A), UpdateOutcome::RolledBack));
    assert_eq!(device.trust(), Trust::Trial, "it is not trusted because it runs");
    // A signed roll-out of the older package is not answered with "it runs".
    let mut repository = repository;
    repository.release("1.0.0", &package("1.0.0"));
    repository.roll_out("1.0.0", 1);
    (device.swap, device.sample) = (Ok(()), Sample { finished: 1000, ..Sample::default() });
    device.live(&repository.broker, 30);
    assert_eq!(device.state().last.unwrap().target, "tiny-classifier-1.0.0");
    assert_eq!((device.trust(), outcome(&device).0), (Trust::Confirmed, UpdateOutcome::Confirmed));
}

#[test]
fn an_agent_that_dies_in_each_probation_goes_back_by_itself() {
    let (repository, disk) = (two(), PowerCut::default());
    let mut device = boot(&repository, &disk);
    device.live(&repository.broker, 1);
    for _ in 0..3 {
        device = boot(&repository, &disk);
        assert_eq!(device.runs, Some(Slot::A));
        assert_eq!(device.state().state, UpdatePhase::Probation);
    }
    device = boot(&repository, &disk);
    assert_eq!(device.runs, None);
    let (outcome, why) = outcome(&device);
    assert_eq!(outcome, UpdateOutcome::RolledBack);
    assert!(why.contains("too often"), "{why}");
    device.live(&repository.broker, 60);
    assert_eq!(device.runs, None, "and does not try it again");
}

#[test]
fn an_agent_that_dies_in_each_trial_gives_the_model_up() {
    let (repository, disk) = (two(), PowerCut::default());
    for _ in 0..3 {
        let mut device = boot(&repository, &disk);
        // The child takes the whole machine with it.
        device.trial_ends = false;
        device.live(&repository.broker, 5);
    }
    let mut device = boot(&repository, &disk);
    device.live(&repository.broker, 60);
    assert_eq!(outcome(&device).0, UpdateOutcome::Rejected);
    assert!(outcome(&device).1.contains("in each of 3 trials"), "{:?}", outcome(&device));
}

#[test]
fn a_command_ends_a_probation_and_nothing_else() {
    let (repository, disk) = (two(), PowerCut::default());
    let mut device = boot(&repository, &disk);
    assert!(!device.abort(&repository.broker));
    device.live(&repository.broker, 1);
    assert!(device.abort(&repository.broker));
    device.live(&repository.broker, 30);
    assert_eq!(device.runs, None);
    assert_eq!(outcome(&device), (UpdateOutcome::RolledBack, "aborted by command".to_owned()));
    assert!(!device.abort(&repository.broker));
}

#[test]
fn an_update_during_an_update_is_taken_up_afterwards() {
    let (mut repository, disk) = (two(), PowerCut::default());
    let mut device = boot(&repository, &disk);
    device.live(&repository.broker, 1);
    assert_eq!(device.state().state, UpdatePhase::Probation);
    repository.release("3.0.0", &package("3.0.0"));
    repository.roll_out("3.0.0", 1);
    device.live(&repository.broker, 30);
    assert_eq!(device.runs, Some(Slot::B), "{:?}", device.state());
    assert_eq!(device.state().last.unwrap().target, "tiny-classifier-3.0.0");
}

#[test]
fn only_devices_that_a_roll_out_means_take_it() {
    let entry = |percent, labels: &[&str]| RolloutEntry {
        target: release_path(MODEL, "2.0.0"),
        percent,
        labels: labels.iter().map(|label| label.parse().unwrap()).collect(),
        salt: "s".to_owned(),
        attempt: 1,
    };
    let cases = [
        (entry(100.0, &[]), true),
        (entry(0.0, &[]), false),
        (entry(100.0, &["rk3588"]), true),
        (entry(100.0, &["rk3588", "cold"]), false),
    ];
    for (entry, wanted) in cases {
        let mut repository = two();
        repository.roll_out_entries(vec![entry.clone()]);
        let mut settings = repository.settings();
        settings.labels = vec!["rk3588".parse().unwrap()];
        let mut device = Device::boot(settings, PowerCut::default(), &package("1.0.0"));
        device.live(&repository.broker, 30);
        assert_eq!(device.runs.is_some(), wanted, "{entry:?}: {:?}", device.state());
    }
    // A growing part takes in ever more of a fleet, and each device once.
    let mut taken = 0;
    for percent in [1.0, 10.0, 50.0, 100.0] {
        let before = taken;
        taken = (0..200)
            .filter(|number| {
                let text = [b"s\0".as_slice(), format!("dock-{number}").as_bytes()].concat();
                let hash = crate::model::Sha256::of(&text).0;
                entry(percent, &[]).includes(hash[..8].try_into().unwrap(), &[])
            })
            .count();
        let expected = percent / 100.0 * 200.0;
        assert!(taken >= before && (taken as f64 - expected).abs() <= 20.0, "{percent}: {taken}");
    }
    assert_eq!(taken, 200);
}

#[test]
fn a_withdrawn_release_is_not_taken_and_stays_where_it_runs() {
    let (mut repository, disk) = (two(), PowerCut::default());
    let mut device = boot(&repository, &disk);
    device.live(&repository.broker, 20);
    repository.withdraw("2.0.0");
    repository.publish(now().plus_days(30));
    device.live(&repository.broker, 20);
    assert_eq!(device.runs, Some(Slot::A));
    assert!(device.state().reason.unwrap().contains("is withdrawn"));
    let mut other = boot(&repository, &PowerCut::default());
    other.live(&repository.broker, 60);
    assert_eq!(other.runs, None);
}

#[test]
fn the_clock_rule_holds() {
    let repository = two();
    let mut settings = repository.settings();
    settings.clock = ClockRule::Refuse;
    let mut device = Device::boot(settings, PowerCut::default(), &package("1.0.0"));
    device.live(&repository.broker, 60);
    assert!(device.state().reason.unwrap().contains("not synchronised"));
    device.clock = Clock::Synchronised;
    device.live(&repository.broker, 120);
    assert_eq!(device.runs, Some(Slot::A));
    // Metadata that the synchronised clock says is over is refused; a clock nobody vouches for is not asked.
    for (clock, wanted) in [(Clock::Synchronised, None), (Clock::Unverified, Some(Slot::A))] {
        let mut device = boot(&repository, &PowerCut::default());
        device.clock = clock;
        device.wall = UnixTime::from_micros((RELEASED + 31 * 86_400) * 1_000_000);
        device.live(&repository.broker, 60);
        assert_eq!(device.runs, wanted, "{clock:?}: {:?}", device.state());
    }
}

#[test]
fn one_jump_of_the_clock_does_not_expire_everything_for_ever() {
    let (mut repository, disk) = (two(), PowerCut::default());
    let mut device = boot(&repository, &disk);
    device.clock = Clock::Synchronised;
    device.wall = UnixTime::from_micros(4_070_908_800_000_000);
    device.live(&repository.broker, 60);
    assert!(device.state().reason.unwrap().contains("expired"));
    device.wall = UnixTime::from_micros(RELEASED * 1_000_000);
    repository.publish(now().plus_days(30));
    device.live(&repository.broker, 60);
    assert_eq!(device.runs, Some(Slot::A));
}

#[test]
fn a_broker_without_the_repository_is_told_of_until_it_has_one() {
    let (repository, disk) = (two(), PowerCut::default());
    let mut device = boot(&repository, &disk);
    device.live(&std::collections::BTreeMap::new(), 9);
    assert_eq!(device.state().reason, None);
    device.live(&std::collections::BTreeMap::new(), 2);
    let reason = device.state().reason.unwrap();
    assert!(reason.contains("no ocelli/repo/factory-a/meta/timestamp.json"), "{reason}");
    device.live(&repository.broker, 20);
    assert_eq!(device.runs, Some(Slot::A), "{:?}", device.state());
}
