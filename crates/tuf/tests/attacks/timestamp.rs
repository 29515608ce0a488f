//! Attacks on the timestamp role (§5.4).

use ocelli_tuf::Error;

use crate::support::{SNAPSHOT, STRANGER, World};
use crate::{
    BEFORE, Case, NEW_SNAPSHOT, NEW_TIMESTAMP, absent, bare, check, expired, replace, rollback,
    threshold,
};

#[test]
fn attacks_on_the_timestamp() {
    check([
        Case {
            name: "§5.4.1 withheld",
            attack: |world| drop(world.served.remove("timestamp.json")),
            error: absent("timestamp.json"),
            trusted: BEFORE,
        },
        Case {
            name: "§5.4.1 endless",
            attack: |world| {
                world.served.insert("timestamp.json".into(), vec![b'{'; 20_000]);
            },
            error: Error::TooLong { file: "timestamp.json".into(), limit: 16 * 1024 },
            trusted: BEFORE,
        },
        Case {
            name: "§5.4.2 signed by a stranger",
            attack: |world| {
                world.signers.insert("timestamp".into(), vec![STRANGER]);
                world.next_timestamp(|_| {});
            },
            error: threshold("timestamp", 1, 0),
            trusted: BEFORE,
        },
        Case {
            name: "§5.4.2 signed by the key of another role",
            attack: |world| {
                world.signers.insert("timestamp".into(), vec![SNAPSHOT]);
                world.next_timestamp(|_| {});
            },
            error: threshold("timestamp", 1, 0),
            trusted: BEFORE,
        },
        Case {
            name: "§5.4.2 changed after signing",
            attack: |world| {
                world.next_timestamp(|_| {});
                replace(world, "timestamp.json", "\"version\":2", "\"version\":9");
            },
            error: threshold("timestamp", 1, 0),
            trusted: BEFORE,
        },
        Case {
            name: "§5.4.2 no signatures",
            attack: |world| {
                world.signers.insert("timestamp".into(), vec![]);
                world.next_timestamp(|_| {});
            },
            error: threshold("timestamp", 1, 0),
            trusted: BEFORE,
        },
        Case {
            name: "§5.4.3.1 older than the trusted one",
            attack: |world| {
                let old = world.served["timestamp.json"].clone();
                world.next_timestamp(|_| {});
                world.refresh().unwrap();
                world.served.insert("timestamp.json".into(), old);
            },
            error: rollback("timestamp.json", 2, 1),
            trusted: NEW_TIMESTAMP,
        },
        Case {
            name: "§5.4.3.2 names an older snapshot",
            attack: |world| {
                world.publish();
                world.refresh().unwrap();
                world.next_timestamp(|timestamp| timestamp.set_snapshot(bare(1)));
            },
            error: rollback("snapshot.json", 2, 1),
            trusted: NEW_SNAPSHOT,
        },
        Case {
            name: "§5.4.4 expired",
            attack: |world| {
                world.expires = world.now;
                world.next_timestamp(|_| {});
            },
            error: expired("timestamp.json"),
            trusted: BEFORE,
        },
        Case {
            name: "§4.6 says nothing of the snapshot",
            attack: |world| world.next_timestamp(|timestamp| timestamp.meta.clear()),
            error: Error::Format {
                file: "timestamp.json".into(),
                reason: "snapshot.json is missing in meta".into(),
            },
            trusted: BEFORE,
        },
        Case {
            name: "§4.2.1 a signature twice",
            attack: |world| {
                world.next_timestamp(|_| {});
                let signature = serde_json::to_string(&world.timestamp.signatures()[0]).unwrap();
                let twice = format!("{signature},{signature}");
                replace(world, "timestamp.json", &signature, &twice);
            },
            error: Error::Format {
                file: "timestamp.json".into(),
                reason: "a key id is in \"signatures\" twice".into(),
            },
            trusted: BEFORE,
        },
    ]);
}

// §5.4.4: withholding news must be noticed when what the device has runs out
#[test]
fn a_frozen_repository_is_noticed_at_the_expiry_of_what_is_trusted() {
    let mut world = World::updated();
    world.expires = world.now.plus_days(90);
    world.next_root(|_| {});
    world.refresh().unwrap();
    world.now = world.now.plus_days(30);
    let outcome = world.refresh().map(|_| ());
    let (expires, now) = (world.now, world.now);
    assert_eq!(outcome, Err(Error::Expired { file: "timestamp.json".into(), expires, now }));
}
