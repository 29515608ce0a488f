//! Attacks on the top-level targets role (§5.6.1 to §5.6.6).

use ocelli_tuf::{Error, Hashes};

use crate::support::{SNAPSHOT, TIMESTAMP, World};
use crate::{
    Case, NEW_SNAPSHOT, absent, bare, check, digest, expired, mismatch, replace, threshold,
};

#[test]
fn attacks_on_targets() {
    check([
        Case {
            name: "§5.6.1 withheld; §5.5.7 the snapshot is stored",
            attack: |world| {
                world.next_targets("targets", |_| {});
                world.publish();
                world.served.remove("2.targets.json");
            },
            error: absent("2.targets.json"),
            trusted: NEW_SNAPSHOT,
        },
        Case {
            name: "§5.6.1 longer than signed",
            attack: |world| {
                world.next_targets("targets", |_| {});
                world.publish_with(|snapshot| {
                    let mut listed = bare(2);
                    listed.length = Some(10);
                    snapshot.list("targets", listed);
                });
            },
            error: Error::TooLong { file: "2.targets.json".into(), limit: 10 },
            trusted: NEW_SNAPSHOT,
        },
        Case {
            name: "§5.6.1 shorter than signed",
            attack: |world| {
                world.next_targets("targets", |_| {});
                let length = world.served["2.targets.json"].len() as u64;
                world.publish_with(|snapshot| {
                    let mut listed = bare(2);
                    listed.length = Some(length);
                    snapshot.list("targets", listed);
                });
                world.served.insert("2.targets.json".into(), b"{}".to_vec());
                let listed = world.snapshot.signed().meta["targets.json"].length;
                assert_eq!(listed, Some(length));
            },
            error: Error::Length {
                file: "targets.json".into(),
                expected: World::new().served["1.targets.json"].len() as u64,
                found: 2,
            },
            trusted: NEW_SNAPSHOT,
        },
        Case {
            name: "§5.6.2 another file of the same length",
            attack: |world| {
                world.next_targets("targets", |_| {});
                world.publish();
                replace(world, "2.targets.json", "\"version\":2", "\"version\":3");
            },
            error: digest("targets.json"),
            trusted: NEW_SNAPSHOT,
        },
        Case {
            name: "§5.6.2 only digests of unknown algorithms",
            attack: |world| {
                world.next_targets("targets", |_| {});
                world.publish_with(|snapshot| {
                    let mut listed = bare(2);
                    listed.hashes = Some(Hashes([("md5".into(), "00".into())].into()));
                    snapshot.list("targets", listed);
                });
            },
            error: Error::Format {
                file: "targets.json".into(),
                reason: "it has no digest of a known algorithm".into(),
            },
            trusted: NEW_SNAPSHOT,
        },
        Case {
            name: "§5.6.3 signed by the online keys",
            attack: |world| {
                world.signers.insert("targets".into(), vec![TIMESTAMP, SNAPSHOT]);
                world.next_targets("targets", |_| {});
                world.publish();
            },
            error: threshold("targets", 1, 0),
            trusted: NEW_SNAPSHOT,
        },
        Case {
            name: "§5.6.4 mix and match: another version than named",
            attack: |world| {
                world
                    .served
                    .insert("2.targets.json".into(), world.served["1.targets.json"].clone());
                world.publish_with(|snapshot| snapshot.list("targets", bare(2)));
            },
            error: mismatch("targets.json", 2, 1),
            trusted: NEW_SNAPSHOT,
        },
        Case {
            name: "§5.6.5 expired",
            attack: |world| {
                let now = world.now;
                world.next_targets("targets", |targets| targets.expires = now);
                world.publish();
            },
            error: expired("targets.json"),
            trusted: NEW_SNAPSHOT,
        },
    ]);
}
