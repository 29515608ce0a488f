//! The client workflow when nobody attacks: order of the steps, what is stored when, and what a power cut leaves.

mod support;

use ocelli_tuf::schema::{MetaFile, Snapshot};
use ocelli_tuf::{Answer, Error, Limits, Progress, Refresh};
use support::{ROOT, SNAPSHOT, STRANGER, TIMESTAMP, World, key, version};

#[test]
fn the_first_update_follows_the_order_of_the_specification() {
    let mut world = World::new();
    world.refresh().unwrap();
    let expected = [
        "fetch 2.root.json",      // §5.3.3
        "load timestamp.json",    // the trusted one of §5.4.3
        "fetch timestamp.json",   // §5.4.1
        "persist timestamp.json", // §5.4.5
        "load snapshot.json",     // the trusted one of §5.5.5
        "fetch 1.snapshot.json",  // §5.5.1
        "persist snapshot.json",  // §5.5.7
        "load targets.json",
        "fetch 1.targets.json", // §5.6.1
        "persist targets.json", // §5.6.6
    ];
    assert_eq!(world.log, expected);
}

#[test]
fn an_update_without_news_asks_for_root_and_timestamp_only() {
    let mut world = World::updated();
    let trusted = world.refresh().unwrap();
    let asked: Vec<_> = world.log.iter().filter(|line| !line.starts_with("load")).collect();
    assert_eq!(asked, ["fetch 2.root.json", "fetch timestamp.json"]);
    assert_eq!(trusted.timestamp().version, version(1));
}

#[test]
fn metadata_is_stored_byte_for_byte() {
    let mut world = World::new();
    let mut bytes = world.timestamp.to_bytes();
    bytes.extend_from_slice(b"\n \n");
    world.served.insert("timestamp.json".into(), bytes.clone());
    let trusted = world.refresh().unwrap();
    assert_eq!(world.stored["timestamp.json"], bytes);
    assert_eq!(trusted.timestamp().bytes(), bytes);
}

// §5.3.2, §5.3.7, §5.3.8, §5.3.9
#[test]
fn every_root_on_the_way_is_verified_and_stored() {
    let mut world = World::updated();
    world.next_root(|_| {});
    world.next_root(|_| {});
    let trusted = world.refresh().unwrap();
    assert_eq!(trusted.root().version, version(3));
    let expected = [
        "fetch 2.root.json",
        "persist root.json",
        "fetch 3.root.json",
        "persist root.json",
        "fetch 4.root.json",
    ];
    assert_eq!(world.log[..5], expected);
}

// §5.3.4
#[test]
fn root_keys_rotate_with_the_signatures_of_old_and_new() {
    let mut world = World::updated();
    world.signers.insert("root".into(), vec![ROOT, 21]);
    world.next_root(|root| {
        root.revoke("root", &key(ROOT).public().id());
        root.allow("root", key(21).public());
    });
    world.signers.insert("root".into(), vec![21]);
    world.next_root(|_| {});
    assert_eq!(world.refresh().unwrap().root().version, version(3));
}

// §5.3.3: the number Y
#[test]
fn the_number_of_roots_in_one_update_is_limited_but_progress_is_kept() {
    let mut world = World::updated();
    for _ in 0..5 {
        world.next_root(|_| {});
    }
    world.limits = Limits { roots: 2, ..Limits::default() };
    let versions: Vec<_> = (0..3).map(|_| world.refresh().unwrap().root().version.get()).collect();
    assert_eq!(versions, [3, 5, 6]);
}

// §5.3.6
#[test]
fn an_expired_root_on_the_way_does_no_harm() {
    let mut world = World::updated();
    let later = world.expires;
    world.expires = world.now;
    world.next_root(|_| {});
    world.expires = later;
    world.next_root(|_| {});
    assert_eq!(world.refresh().unwrap().root().version, version(3));
}

// §5.2
#[test]
fn an_expired_first_root_can_be_replaced() {
    let mut world = World::updated();
    world.expires = world.now.plus_days(90);
    world.next_root(|_| {});
    world.next_targets("targets", |_| {});
    world.publish();
    world.now = world.now.plus_days(60);
    assert_eq!(world.refresh().unwrap().targets().version, version(2));
}

// §5.3.11
#[test]
fn rotated_keys_recover_from_a_fast_forward() {
    type Change = fn(&mut World);
    let cases: [(&str, u8, Change); 3] = [
        ("timestamp", TIMESTAMP, |world| {
            world.next_timestamp(|timestamp| timestamp.version = version(u64::MAX));
        }),
        ("snapshot", SNAPSHOT, |world| {
            world.publish_with(|snapshot| snapshot.version = version(u64::MAX));
        }),
        ("snapshot", SNAPSHOT, |world| {
            world.next_targets("targets", |targets| targets.version = version(u64::MAX));
            world.publish();
        }),
    ];
    for (role, seed, fast_forward) in cases {
        let mut world = World::updated();
        let good = (world.timestamp.clone(), world.snapshot.clone(), world.targets.clone());
        fast_forward(&mut world);
        world.refresh().unwrap();

        (world.timestamp, world.snapshot, world.targets) = good;
        world.publish();
        world.publish();
        assert!(matches!(world.refresh(), Err(Error::Rollback { .. })), "{role} went back");

        world.signers.insert(role.to_owned(), vec![31]);
        world.next_root(|root| {
            root.revoke(role, &key(seed).public().id());
            root.allow(role, key(31).public());
        });
        world.serve_targets("targets");
        world.serve_snapshot();
        world.serve_timestamp();
        world.log.clear();
        world.refresh().unwrap();
        let removed: Vec<_> = world.log.iter().filter(|line| line.starts_with("remove")).collect();
        assert_eq!(removed, ["remove timestamp.json", "remove snapshot.json"], "{role}");
    }
}

// §5.3.11: a key that is only added, or a root without news for these roles, takes no floor away
#[test]
fn nothing_is_forgotten_without_a_rotation() {
    let mut world = World::updated();
    world.next_root(|root| root.allow("timestamp", key(31).public()));
    world.refresh().unwrap();
    assert!(world.log.iter().all(|line| !line.starts_with("remove")), "{:?}", world.log);
}

// §5.3.12, §5.5.1, §5.6.1
#[test]
fn without_consistent_snapshots_names_have_no_version() {
    let mut world = World::new();
    world.root.amend().consistent_snapshot = false;
    world.served.clear();
    world.serve_root();
    world.serve_targets("targets");
    world.serve_snapshot();
    world.serve_timestamp();
    world.stored.insert("root.json".into(), world.root.to_bytes());
    world.add_target("targets", "a/file", b"content");
    world.publish();
    let target = world.find("a/file").unwrap();
    assert_eq!(target.repository_path(), "a/file");
    assert!(world.served.contains_key("snapshot.json"));
}

// §5.4.3.1: the same version is no error, and what is stored stays
#[test]
fn a_changed_timestamp_of_the_same_version_is_not_taken() {
    let mut world = World::updated();
    world.timestamp.amend().set_snapshot(MetaFile {
        version: version(100),
        length: None,
        hashes: None,
    });
    world.serve_timestamp();
    let trusted = world.refresh().unwrap();
    assert_eq!(trusted.timestamp().snapshot().version, version(1));
    assert_ne!(world.stored["timestamp.json"], world.served["timestamp.json"]);
}

#[test]
fn broken_stored_metadata_is_fetched_again() {
    for file in ["timestamp.json", "snapshot.json", "targets.json"] {
        for bytes in [&b""[..], b"{", b"\xff", &[b' '; 5_000_000]] {
            let mut world = World::updated();
            let good = world.stored.insert(file.into(), bytes.to_vec());
            world.refresh().unwrap();
            assert_eq!(world.stored.get(file), good.as_ref(), "{file}");
        }
    }
}

// Also our own storage has a cap; what is beyond it is fetched again
#[test]
fn stored_metadata_that_is_too_long_is_fetched_again() {
    let mut world = World::updated();
    let good = world.stored["timestamp.json"].clone();
    world.stored.get_mut("timestamp.json").unwrap().resize(20_000, b' ');
    world.refresh().unwrap();
    assert_eq!(world.stored["timestamp.json"], good);
}

#[test]
fn after_a_power_cut_at_any_write_the_next_update_succeeds() {
    let prepare = || {
        let mut world = World::updated();
        world.signers.insert("timestamp".into(), vec![31]);
        world.next_root(|root| {
            root.revoke("timestamp", &key(TIMESTAMP).public().id());
            root.allow("timestamp", key(31).public());
        });
        world.next_root(|_| {});
        world.next_targets("targets", |_| {});
        world.publish();
        world
    };
    let mut whole = prepare();
    whole.refresh().unwrap();
    let is_write = |line: &&String| line.starts_with("persist") || line.starts_with("remove");
    let writes = whole.log.iter().filter(is_write).count();
    assert_eq!(writes, 7);
    for cut in 0..writes {
        let mut world = prepare();
        world.power_for = cut;
        assert!(matches!(world.refresh(), Err(Error::OutOfTurn { .. })), "cut {cut}");
        world.power_for = usize::MAX;
        world.refresh().unwrap_or_else(|error| panic!("cut {cut}: {error}"));
        assert_eq!(world.stored, whole.stored, "cut {cut}");
    }
}

#[test]
fn an_answer_to_another_question_ends_the_cycle() {
    let world = World::new();
    let start = || Refresh::start(&world.stored["root.json"], world.now, world.limits).unwrap();
    let answer = start().answer(Answer::Done);
    assert!(matches!(answer, Err(Error::OutOfTurn { action: "fetch", answer: "done" })));
    let Ok(Progress::Continue(load)) = start().answer(Answer::Absent) else { panic!("no load") };
    assert!(matches!(load.answer(Answer::Done), Err(Error::OutOfTurn { action: "load", .. })));
}

#[test]
fn unknown_fields_are_signed_kept_and_readable() {
    let mut world = World::updated();
    let issued = ocelli_tuf::Json::String("2026-11-21T00:00:00Z".into());
    world.publish_with(|snapshot: &mut Snapshot| {
        snapshot.extra.insert("x-ocelli-issued".into(), issued.clone());
    });
    let trusted = world.refresh().unwrap();
    assert_eq!(trusted.snapshot().extra.get("x-ocelli-issued"), Some(&issued));
}

// What a power cut between §5.3.8 and §5.3.11 leaves: metadata of keys that are out of service sets no floor
#[test]
fn stored_metadata_that_the_current_keys_did_not_sign_is_ignored() {
    let mut forged = World::updated();
    for role in ["timestamp", "snapshot"] {
        forged.signers.insert(role.into(), vec![STRANGER]);
    }
    forged.publish_with(|snapshot| snapshot.list("targets", MetaFile::of(version(90), b"")));
    forged.next_timestamp(|timestamp| timestamp.version = version(90));
    for (file, name) in [("timestamp.json", "timestamp.json"), ("snapshot.json", "2.snapshot.json")]
    {
        let mut world = World::updated();
        world.stored.insert(file.into(), forged.served[name].clone());
        world.next_targets("targets", |_| {});
        world.publish();
        assert_eq!(world.refresh().map(|trusted| trusted.targets().version), Ok(version(2)));
    }
}
