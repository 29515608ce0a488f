//! Who counts towards a threshold (§4.2.1, §4.3, §5.3.4).

use ocelli_tuf::schema::Root;
use ocelli_tuf::{Authority, Json, verify_threshold};

use crate::support::{STRANGER, TARGETS, TIMESTAMP, World, key};
use crate::{bare, replace, threshold};

// §4.2.1, §4.3, §5.3.4: who counts towards a threshold of two
#[test]
fn a_threshold_counts_each_key_once_and_only_keys_of_the_role() {
    type Change = fn(&mut Root);
    let cases: [(&str, Change, &[u8], u64); 5] = [
        ("two keys", |root| root.allow("targets", key(41).public()), &[TARGETS, 41], 2),
        ("one of two", |root| root.allow("targets", key(41).public()), &[TARGETS], 1),
        ("a key of another role", |_| {}, &[TARGETS, TIMESTAMP], 1),
        ("a key that is not in the file", |_| {}, &[TARGETS, STRANGER], 1),
        (
            "a key listed for the role but missing in the file",
            |root| {
                root.allow("targets", key(41).public());
                root.keys.remove(&key(41).public().id());
            },
            &[TARGETS, 41],
            1,
        ),
    ];
    for (name, change, signers, valid) in cases {
        let mut world = World::updated();
        world.next_root(|root| {
            change(root);
            root.set_threshold("targets", 2);
        });
        world.signers.insert("targets".into(), signers.to_vec());
        world.next_targets("targets", |_| {});
        world.publish();
        let expected = if valid >= 2 { Ok(()) } else { Err(threshold("targets", 2, valid)) };
        assert_eq!(world.refresh().map(|_| ()), expected, "{name}");
    }
}

// §5.3.4: one key, listed under two ids by a field that changes the id
#[test]
fn one_key_under_two_correct_ids_counts_once() {
    let mut alias = key(TARGETS).public();
    alias.extra.insert("x-note".into(), ocelli_tuf::Json::Bool(true));
    let mut world = World::updated();
    world.next_root(|root| {
        root.allow("targets", alias.clone());
        root.set_threshold("targets", 2);
    });
    world.next_targets("targets", |_| {});
    let signature = world.targets["targets"].signatures()[0].clone();
    let both = format!(
        "{},{}",
        serde_json::to_string(&signature).unwrap(),
        serde_json::to_string(&ocelli_tuf::Signature { keyid: alias.id(), ..signature.clone() })
            .unwrap()
    );
    let single = serde_json::to_string(&signature).unwrap();
    replace(&mut world, "2.targets.json", &single, &both);
    world.publish_with(|snapshot| snapshot.list("targets", bare(2)));
    assert_eq!(world.refresh().map(|_| ()), Err(threshold("targets", 2, 1)));
}

// A wrong or garbled signature beside enough good ones does no harm
#[test]
fn a_bad_signature_beside_a_good_one_is_ignored() {
    for bad in ["", "00", "zz", "0"] {
        let mut world = World::updated();
        world.next_root(|root| root.allow("timestamp", key(41).public()));
        world.signers.insert("timestamp".into(), vec![41, TIMESTAMP]);
        world.next_timestamp(|_| {});
        let sig = world.timestamp.signatures()[0].sig.clone();
        replace(&mut world, "timestamp.json", &sig, bad);
        assert!(world.refresh().is_ok(), "{bad:?}");
    }
}

// §5.3.4: the rule itself, also for a list of signatures that no document may have (§4.2.1)
#[test]
fn a_signature_given_again_counts_once() {
    let mut world = World::updated();
    let root = world.root.amend();
    root.allow("targets", key(41).public());
    root.set_threshold("targets", 2);
    let authority = Authority::of_root(root, "targets").unwrap();
    let message = Json::parse(&serde_json::to_vec(world.targets["targets"].signed()).unwrap())
        .unwrap()
        .canonical();
    let first = world.targets["targets"].signatures()[0].clone();
    let thrice = [first.clone(), first.clone(), first.clone()];
    assert_eq!(verify_threshold(authority, &message, &thrice), Err(threshold("targets", 2, 1)));
    world.targets.get_mut("targets").unwrap().sign(&key(41));
    let both = world.targets["targets"].signatures();
    assert_eq!(verify_threshold(authority, &message, both), Ok(()));
    assert_eq!(verify_threshold(authority, b"{}", both), Err(threshold("targets", 2, 0)));
}

// §4.3: an id that is not the hash of its key gives the key no voice
#[test]
fn a_key_under_a_false_id_never_counts() {
    let mut world = World::updated();
    let (listed, other) = (key(41).public(), key(42).public());
    world.next_root(|root| {
        root.allow("targets", listed.clone());
        root.keys.insert(listed.id(), other.clone());
        root.set_threshold("targets", 2);
    });
    world.signers.insert("targets".into(), vec![TARGETS, 42]);
    world.next_targets("targets", |_| {});
    replace(&mut world, "2.targets.json", other.id().as_str(), listed.id().as_str());
    world.publish_with(|snapshot| snapshot.list("targets", bare(2)));
    assert_eq!(world.refresh().map(|_| ()), Err(threshold("targets", 2, 1)));
}
