//! Attacks on the snapshot role (§5.5).

use ocelli_tuf::{Error, Limits};

use crate::support::TIMESTAMP;
use crate::{
    Case, NEW_TIMESTAMP, absent, bare, check, digest, expired, mismatch, replace, rollback,
    threshold,
};

#[test]
fn attacks_on_the_snapshot() {
    check([
        Case {
            name: "§5.5.1 withheld; §5.4.5 the timestamp is stored",
            attack: |world| {
                world.publish();
                world.served.remove("2.snapshot.json");
            },
            error: absent("2.snapshot.json"),
            trusted: NEW_TIMESTAMP,
        },
        Case {
            name: "§5.5.1 longer than signed",
            attack: |world| {
                world.publish();
                world.served.get_mut("2.snapshot.json").unwrap().push(b' ');
                let length = world.timestamp.signed().snapshot().length.unwrap();
                assert_eq!(world.served["2.snapshot.json"].len() as u64, length + 1);
                world.next_timestamp(|timestamp| {
                    let mut listed = bare(2);
                    listed.length = Some(100);
                    timestamp.set_snapshot(listed);
                });
            },
            error: Error::TooLong { file: "2.snapshot.json".into(), limit: 100 },
            trusted: "root 1, snapshot 1, targets 1, timestamp 3",
        },
        Case {
            name: "§5.5.1 a signed length beyond our limit is not even asked for",
            attack: |world| {
                world.next_timestamp(|timestamp| {
                    let mut listed = bare(2);
                    listed.length = Some(u64::MAX);
                    timestamp.set_snapshot(listed);
                });
            },
            error: Error::TooLong {
                file: "2.snapshot.json".into(),
                limit: Limits::default().snapshot_bytes,
            },
            trusted: NEW_TIMESTAMP,
        },
        Case {
            name: "§5.5.2 another file of the same length",
            attack: |world| {
                world.publish();
                replace(world, "2.snapshot.json", "\"version\":2", "\"version\":3");
            },
            error: digest("snapshot.json"),
            trusted: NEW_TIMESTAMP,
        },
        Case {
            name: "§5.5.3 signed by the timestamp's key",
            attack: |world| {
                world.signers.insert("snapshot".into(), vec![TIMESTAMP]);
                world.publish();
            },
            error: threshold("snapshot", 1, 0),
            trusted: NEW_TIMESTAMP,
        },
        Case {
            name: "§5.5.4 mix and match: another version than named",
            attack: |world| {
                world.publish();
                world
                    .served
                    .insert("2.snapshot.json".into(), world.served["1.snapshot.json"].clone());
                world.next_timestamp(|timestamp| timestamp.set_snapshot(bare(2)));
            },
            error: mismatch("snapshot.json", 2, 1),
            trusted: "root 1, snapshot 1, targets 1, timestamp 3",
        },
        Case {
            name: "§5.5.5 targets go back",
            attack: |world| {
                world.next_targets("targets", |_| {});
                world.publish();
                world.refresh().unwrap();
                world.publish_with(|snapshot| snapshot.list("targets", bare(1)));
            },
            error: rollback("targets.json", 2, 1),
            trusted: "root 1, snapshot 2, targets 2, timestamp 3",
        },
        Case {
            name: "§5.5.5 targets vanish",
            attack: |world| world.publish_with(|snapshot| snapshot.meta.clear()),
            error: Error::Removed { file: "targets.json".into() },
            trusted: NEW_TIMESTAMP,
        },
        Case {
            name: "§5.5.6 expired",
            attack: |world| {
                let later = world.expires;
                world.snapshot.next_version(world.now).unwrap();
                world.serve_snapshot();
                world.expires = later;
                world.next_timestamp(|_| {});
            },
            error: expired("snapshot.json"),
            trusted: NEW_TIMESTAMP,
        },
    ]);
}
