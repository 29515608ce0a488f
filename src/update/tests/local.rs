//! What goes wrong on the device itself says nothing of a signed package: it delays, and condemns nothing.

use ocelli_protocol::model_state::{Trust, UpdateOutcome, UpdatePhase};
use ocelli_protocol::repository::{Chunk, ChunkIndex, IndexFile};

use super::world::{CHUNK, Device, Repository, boot, digest, package, package_with, two};
use crate::model::disk::Disk;
use crate::model::power_cut::{LOSSES, PowerCut};
use crate::model::slots::Slot;
use crate::update::Event;
use crate::update::trial::Failure;

fn reason(device: &Device<PowerCut>) -> String {
    device.state().reason.unwrap_or_default()
}

fn count(device: &Device<PowerCut>, decision: &str) -> usize {
    device.audit.iter().filter(|(_, detail)| detail["decision"] == decision).count()
}

fn is_confirmed(device: &Device<PowerCut>, version: &str) {
    let (state, target) = (device.state(), format!("tiny-classifier-{version}"));
    let last = state.last.as_ref().map(|last| (last.target.as_str(), last.outcome));
    assert_eq!(last, Some((target.as_str(), UpdateOutcome::Confirmed)), "{state:?}");
}

#[test]
fn what_was_damaged_after_it_was_received_is_fetched_again() {
    let (mut repository, mut disk) = (two(), PowerCut::default());
    let tar = package("2.0.0");
    let topics: Vec<_> =
        tar.chunks(CHUNK).map(|bytes| repository.topics.chunk(&digest(bytes))).collect();
    let last = topics.last().unwrap();
    let missing = repository.broker.remove(last).unwrap();
    let mut device = boot(&repository, &disk);
    device.live(&repository.broker, 1);
    assert_eq!(device.state().state, UpdatePhase::Fetching);
    disk.write_at("incoming.tar", 5, b"worn flash").unwrap();
    repository.broker.insert(last.clone(), missing);
    device.asked.clear();
    device.live(&repository.broker, 1);
    assert!(reason(&device).contains("incoming.tar was damaged on this device's disk"));
    device.live(&repository.broker, 60);
    is_confirmed(&device, "2.0.0");
    let chunks: Vec<_> = device.asked.iter().filter(|topic| topics.contains(topic)).collect();
    assert_eq!(chunks, [&topics[0]], "the others are there");
}

#[test]
fn an_index_that_makes_another_package_than_signed_is_rejected() {
    let other = package("3.0.0");
    let mut repository = Repository::new();
    repository.release("3.0.0", &other);
    let chunk = |bytes: &[u8]| Chunk { length: bytes.len() as u32, sha256: digest(bytes) };
    let chunks = other.chunks(CHUNK).map(chunk).collect();
    let index = serde_json::to_vec(&ChunkIndex { v: 1, length: other.len() as u64, chunks });
    let index = index.unwrap();
    let file = IndexFile { length: index.len() as u64, sha256: digest(&index) };
    let tar = package("2.0.0");
    repository.release_as("2.0.0", &tar, tar.len() as u64, |release| release.index = file);
    repository.roll_out("2.0.0", 1);
    let mut device = boot(&repository, &PowerCut::default());
    device.live(&repository.broker, 60);
    let last = device.state().last.unwrap();
    assert_eq!(last.outcome, UpdateOutcome::Rejected);
    assert!(last.reason.contains("not the signed digest"), "{}", last.reason);
}

#[test]
fn a_slot_damaged_before_its_trial_or_its_start_ends_is_fetched_again() {
    let why = "damaged tar".to_owned();
    // The child reads what is damaged, or has read it before; then the load would fail, or would not.
    let cases = [(Err(Failure::Model(why.clone())), Ok(())), (Ok(()), Err(why)), (Ok(()), Ok(()))];
    for (trial, swap) in cases {
        let (repository, mut disk) = (two(), PowerCut::default());
        let mut device = boot(&repository, &disk);
        device.trial_ends = false;
        device.live(&repository.broker, 1);
        assert_eq!(device.state().state, UpdatePhase::Trial);
        disk.write_at("a.tar", 700, b"worn flash").unwrap();
        (device.trial, device.swap) = (trial, swap);
        device.end_trial();
        device.pass(&repository.broker, 1);
        assert_eq!((device.state().last, device.runs), (None, None), "nothing was decided");
        assert!(
            reason(&device).starts_with("retry later: a.tar was damaged"),
            "{device:?}",
            device = reason(&device)
        );
        (device.trial, device.trial_ends, device.swap) = (Ok(()), true, Ok(()));
        device.pass(&repository.broker, 60);
        is_confirmed(&device, "2.0.0");
    }
}

#[test]
fn a_slot_damaged_in_its_probation_is_fetched_again() {
    let (repository, mut disk) = (two(), PowerCut::default());
    let mut device = boot(&repository, &disk);
    device.live(&repository.broker, 1);
    assert_eq!(device.state().state, UpdatePhase::Probation);
    disk.write_at("a.tar", 700, b"worn flash").unwrap();
    let mut device = boot(&repository, &disk);
    assert_eq!((device.runs, device.state().last.clone()), (None, None));
    device.live(&repository.broker, 60);
    assert_eq!(count(&device, "repaired"), 1);
    is_confirmed(&device, "2.0.0");
}

#[test]
fn when_the_model_to_go_back_to_is_damaged_the_configured_one_takes_over() {
    let (mut repository, disk) = (two(), PowerCut::default());
    let mut device = boot(&repository, &disk);
    device.live(&repository.broker, 30);
    is_confirmed(&device, "2.0.0");
    let confirmed = device.runs;
    repository.release("3.0.0", &package("3.0.0"));
    repository.roll_out("3.0.0", 1);
    let watched = (0..60).any(|_| {
        device.live(&repository.broker, 1);
        device.state().state == UpdatePhase::Probation
    });
    assert!(watched, "{:?}", device.state());
    device.damaged = confirmed;
    assert!(device.abort(&repository.broker));
    device.pass(&repository.broker, 1);
    assert_eq!((device.runs, count(&device, "revert-failed")), (None, 1));
    assert_eq!(device.trust(), Trust::Confirmed);
}

#[test]
fn a_trial_that_cannot_be_held_is_tried_ever_later_and_never_held_against_the_package() {
    let (mut repository, disk) = (two(), PowerCut::default());
    let mut device = boot(&repository, &disk);
    let why = "cannot start /usr/bin/ocelli: Resource temporarily unavailable (os error 11)";
    device.trial = Err(Failure::Device(why.to_owned()));
    let topic = repository.topics.metadata("timestamp.json");
    let valid = repository.broker[&topic].clone();
    // A broker that has news all the time does not make it try more often.
    for number in 0..4000 {
        let served = [valid.clone(), vec![b' '; number % 7]].concat();
        repository.broker.insert(topic.clone(), served);
        device.live(&repository.broker, 1);
    }
    assert_eq!(count(&device, "trial"), 8, "15 s, 30 s, … 16 min, then once a day");
    assert_eq!(device.state().last, None);
    assert!(reason(&device).starts_with("retry later: cannot start"), "{}", reason(&device));
    assert!(device.audit.len() < 20, "{:?}", device.audit);
    // Each start of the agent tries once, and no number of starts condemns.
    for _ in 0..5 {
        device = boot(&repository, &disk);
        device.trial = Err(Failure::Device(why.to_owned()));
        device.live(&repository.broker, 10);
        assert_eq!((count(&device, "trial"), device.state().last), (1, None));
        device = boot(&repository, &disk);
    }
    device.trial = Err(Failure::Device(why.to_owned()));
    device.live(&repository.broker, 3600);
    device.trial = Ok(());
    // An operator does not wait until tomorrow.
    device.happens(Event::CheckNow);
    device.live(&repository.broker, 20);
    is_confirmed(&device, "2.0.0");
}

#[test]
fn a_damaged_record_is_told_and_kept_and_the_trusted_model_is_found_again() {
    type Harm = fn(&mut PowerCut);
    let harms: [(&str, Harm, bool); 4] = [
        ("garbage", |disk| disk.write("record.json", b"garbage").unwrap(), true),
        ("cut short", |disk| disk.set_length("record.json", 40).unwrap(), true),
        ("another version", |disk| disk.write("record.json", br#"{"v":9}"#).unwrap(), true),
        ("gone", |disk| disk.remove("record.json").unwrap(), false),
    ];
    for (name, harm, kept) in harms {
        let (mut repository, mut disk) = (two(), PowerCut::default());
        let mut device = boot(&repository, &disk);
        device.live(&repository.broker, 20);
        is_confirmed(&device, "2.0.0");
        // Another package lies in the other slot, and was rejected.
        device.trial = Err(Failure::Model("golden picture".into()));
        repository.release("3.0.0", &package("3.0.0"));
        repository.roll_out("3.0.0", 1);
        device.live(&repository.broker, 20);
        harm(&mut disk);
        let bad = disk.read("record.json", 1 << 20).ok();
        let mut device = boot(&repository, &disk);
        assert_eq!((device.runs, device.trust()), (Some(Slot::A), Trust::Confirmed), "{name}");
        assert_eq!(disk.read("record.json.bad", 1 << 20).ok(), bad.filter(|_| kept), "{name}");
        device.trial = Err(Failure::Model("golden picture".into()));
        device.live(&repository.broker, 20);
        assert_eq!(device.runs, Some(Slot::A), "{name}");
        assert_eq!((count(&device, "restored"), count(&device, "rejected")), (1, 1), "{name}");
        // And it is not told again.
        assert_eq!(count(&boot(&repository, &disk), "restored"), 0, "{name}");
    }
}

#[test]
fn without_a_whole_slot_or_a_word_of_trust_a_damaged_record_leads_to_the_configured_model() {
    for slot_is_whole in [false, true] {
        let (repository, mut disk) = (two(), PowerCut::default());
        let mut device = boot(&repository, &disk);
        device.live(&repository.broker, 20);
        disk.write("record.json", b"garbage").unwrap();
        if slot_is_whole {
            disk.remove("confirmed").unwrap();
        } else {
            disk.write_at("a.tar", 700, b"worn flash").unwrap();
        }
        let mut device = boot(&repository, &disk);
        assert_eq!(device.runs, None);
        device.live(&repository.broker, 20);
        is_confirmed(&device, "2.0.0");
        let fetched = device.asked.iter().filter(|topic| topic.contains("/chunk/")).count();
        assert_eq!(fetched > 2, !slot_is_whole, "what is whole is not fetched again: {fetched}");
    }
}

#[test]
fn a_power_cut_while_a_record_is_restored_is_made_good() {
    let (repository, mut damaged) = (two(), PowerCut::default());
    boot(&repository, &damaged).live(&repository.broker, 20);
    damaged.write("record.json", b"garbage").unwrap();
    damaged.sync("record.json").unwrap();
    let whole = damaged.copy();
    boot(&repository, &whole);
    let operations = whole.operations();
    assert!(operations >= 8, "{operations}");
    for (at, loss) in (0..operations).flat_map(|at| LOSSES.map(|loss| (at, loss))) {
        let disk = damaged.copy();
        disk.cut_at(at);
        boot(&repository, &disk);
        disk.restart(loss);
        let device = boot(&repository, &disk);
        assert_eq!(device.runs, Some(Slot::A), "operation {at}, {loss:?}");
        assert_eq!(device.trust(), Trust::Confirmed, "operation {at}, {loss:?}");
        assert!(disk.read("record.json.bad", 99).is_ok_and(|bytes| bytes == b"garbage"));
    }
}

#[test]
fn a_message_that_the_broker_does_not_keep_delays_for_seconds() {
    for asked in [false, true] {
        let (mut repository, disk) = (two(), PowerCut::default());
        let mut device = boot(&repository, &disk);
        device.live(&repository.broker, 20);
        repository.release("3.0.0", &package("3.0.0"));
        repository.roll_out("3.0.0", 1);
        device.send(&repository.topics.metadata("timestamp.json"), b"garbage");
        device.pass(&repository.broker, 3);
        assert!(reason(&device).contains("malformed"), "{}", reason(&device));
        if asked {
            device.happens(Event::CheckNow);
        }
        device.pass(&repository.broker, if asked { 4 } else { 20 });
        assert_eq!(device.runs, Some(Slot::B), "{:?}", device.state());
    }
}

#[test]
fn a_version_is_never_another_package_than_it_was() {
    let (mut repository, disk) = (two(), PowerCut::default());
    let mut device = boot(&repository, &disk);
    device.live(&repository.broker, 20);
    // The releases key alone: the roll-out goes on naming 2.0.0.
    let other = package_with("2.0.0", "MIT");
    repository.release("2.0.0", &other);
    repository.publish(super::world::now().plus_days(30));
    for _ in 0..2 {
        device.live(&repository.broker, 60);
        assert!(reason(&device).contains("accepted another package as this version"));
        assert!(device.audit.iter().any(|(_, detail)| detail["kind"] == "release"));
        assert_eq!(device.session.package(Slot::A).unwrap().sha256, digest(&package("2.0.0")));
        assert_eq!(device.runs, Some(Slot::A));
        device = boot(&repository, &disk);
    }
    // It is known from the slots also when the record is lost; another version is taken, and the way back is open.
    disk.clone().write("record.json", b"garbage").unwrap();
    device = boot(&repository, &disk);
    device.live(&repository.broker, 20);
    assert!(reason(&device).contains("accepted another package as this version"));
    repository.release("2.0.1", &other);
    repository.release("2.0.1", &package_with("2.0.1", "MIT"));
    repository.roll_out("2.0.1", 1);
    device.live(&repository.broker, 20);
    is_confirmed(&device, "2.0.1");
    repository.release("2.0.0", &package("2.0.0"));
    repository.roll_out("2.0.0", 1);
    device.live(&repository.broker, 20);
    is_confirmed(&device, "2.0.0");
}

#[test]
fn messages_dropped_in_a_flood_are_named_as_the_reason() {
    let (mut repository, disk) = (two(), PowerCut::default());
    let chunk = repository.topics.chunk(&digest(package("2.0.0").chunks(CHUNK).next().unwrap()));
    repository.broker.remove(&chunk);
    let mut device = boot(&repository, &disk);
    device.live(&repository.broker, 5);
    device.happens(Event::Dropped);
    device.pass(&repository.broker, 10);
    assert!(reason(&device).contains("more arrive than this device takes"), "{}", reason(&device));
    device.pass(&repository.broker, 60);
    assert!(reason(&device).contains("the broker has no"), "{}", reason(&device));
}
