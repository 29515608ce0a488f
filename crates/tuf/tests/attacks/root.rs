//! Attacks on the root role (§5.2, §5.3).

use ocelli_tuf::Error;
use ocelli_tuf::repository::Document;

use crate::support::{ROOT, STRANGER, World, key};
use crate::{BEFORE, Case, NEW_ROOT, check, expired, mismatch, rollback, threshold};

#[test]
fn attacks_on_root() {
    check([
        Case {
            name: "§5.3.3 endless root",
            attack: |world| {
                world.served.insert("2.root.json".into(), vec![b' '; 300_000]);
            },
            error: Error::TooLong { file: "2.root.json".into(), limit: 256 * 1024 },
            trusted: BEFORE,
        },
        Case {
            name: "§5.3.4 signed by a stranger",
            attack: |world| {
                world.signers.insert("root".into(), vec![STRANGER]);
                world.next_root(|_| {});
            },
            error: threshold("root", 1, 0),
            trusted: BEFORE,
        },
        Case {
            name: "§5.3.4 new keys without the old ones",
            attack: |world| {
                world.signers.insert("root".into(), vec![STRANGER]);
                world.next_root(|root| root.allow("root", key(STRANGER).public()));
            },
            error: threshold("root", 1, 0),
            trusted: BEFORE,
        },
        Case {
            name: "§5.3.4 old keys without the new ones",
            attack: |world| {
                world.next_root(|root| {
                    root.revoke("root", &key(ROOT).public().id());
                    root.allow("root", key(21).public());
                });
            },
            error: threshold("root", 1, 0),
            trusted: BEFORE,
        },
        Case {
            name: "§5.3.4 raised threshold not met",
            attack: |world| {
                world.next_root(|root| {
                    root.allow("root", key(21).public());
                    root.set_threshold("root", 2);
                });
            },
            error: threshold("root", 2, 1),
            trusted: BEFORE,
        },
        Case {
            name: "§5.3.5 the old root under a new name",
            attack: |world| {
                world.served.insert("2.root.json".into(), world.served["1.root.json"].clone());
            },
            error: rollback("root.json", 1, 1),
            trusted: BEFORE,
        },
        Case {
            name: "§5.3.5 a version left out",
            attack: |world| {
                world.next_root(|_| {});
                world.next_root(|_| {});
                world.served.insert("2.root.json".into(), world.served["3.root.json"].clone());
            },
            error: mismatch("root.json", 2, 3),
            trusted: BEFORE,
        },
        Case {
            name: "§5.3.10 expired at the end of the chain; §5.3.8 but stored",
            attack: |world| {
                world.expires = world.now;
                world.next_root(|_| {});
            },
            error: expired("root.json"),
            trusted: NEW_ROOT,
        },
        Case {
            name: "§5.3.8 the good root before a bad one is kept",
            attack: |world| {
                world.next_root(|_| {});
                world.signers.insert("root".into(), vec![STRANGER]);
                world.next_root(|_| {});
            },
            error: threshold("root", 1, 0),
            trusted: NEW_ROOT,
        },
        Case {
            name: "§4.3 a role missing",
            attack: |world| world.next_root(|root| drop(root.roles.remove("snapshot"))),
            error: Error::Format {
                file: "root.json".into(),
                reason: "role snapshot is missing".into(),
            },
            trusted: BEFORE,
        },
        Case {
            name: "§4.3 a key listed twice for a role",
            attack: |world| {
                world.next_root(|root| {
                    let keys = root.roles.get_mut("snapshot").unwrap();
                    keys.keyids.push(keys.keyids[0].clone());
                });
            },
            error: Error::Format {
                file: "root.json".into(),
                reason: "role snapshot lists a key id twice".into(),
            },
            trusted: BEFORE,
        },
    ]);
}

// §5.2: a device does not start from a root that is not its own
#[test]
fn a_broken_first_root_is_refused_before_anything_is_asked_for() {
    let good = World::new();
    let mut unsigned = Document::new(good.root.signed().clone());
    unsigned.sign(&key(STRANGER));
    let cut = &good.stored["root.json"][..100];
    for bytes in [&unsigned.to_bytes()[..], cut, b""] {
        let mut world = World::new();
        world.stored.insert("root.json".into(), bytes.to_vec());
        assert!(
            matches!(world.refresh(), Err(Error::Threshold { .. } | Error::Format { .. })),
            "{}",
            bytes.len()
        );
        assert!(world.log.is_empty());
    }
}
