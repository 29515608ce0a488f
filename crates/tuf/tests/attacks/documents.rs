//! Documents that no honest writer makes: refused, and never a panic.

use ocelli_tuf::Error;

use crate::bare;
use crate::support::{SNAPSHOT, World, key};

// §4.2.1: the `_type` decides what a document is, even if the right key signed it
#[test]
fn a_role_served_as_another_is_refused() {
    let mut world = World::updated();
    world.next_root(|root| root.allow("timestamp", key(SNAPSHOT).public()));
    world.snapshot.next_version(world.expires).unwrap().meta =
        [("snapshot.json".into(), bare(1))].into();
    world.serve_snapshot();
    world.served.insert("timestamp.json".into(), world.snapshot.to_bytes());
    let outcome = world.refresh().map(|_| ());
    let reason = "unknown variant `snapshot`, expected `timestamp`";
    assert!(
        matches!(&outcome, Err(Error::Format { file, reason: found })
            if file == "timestamp.json" && found.contains(reason)),
        "{outcome:?}"
    );
}

// Documents that no writer makes: refused, never a panic
#[test]
fn hostile_documents_are_refused() {
    let replacements = [
        ("\"version\":1", "\"version\":0"),
        ("\"version\":1", "\"version\":-1"),
        ("\"version\":1", "\"version\":1.0"),
        ("\"version\":1", "\"version\":\"1\""),
        ("\"version\":1", "\"version\":18446744073709551616"),
        ("\"version\":1", "\"version\":1,\"version\":2"),
        ("\"threshold\":1", "\"threshold\":0"),
        ("\"spec_version\":\"1.0.34\"", "\"spec_version\":\"2.0.0\""),
        ("\"spec_version\":\"1.0.34\"", "\"spec_version\":\"1.x\""),
        ("Z\",\"consistent", "+00:00\",\"consistent"),
        ("\"_type\":\"root\"", "\"_type\":\"Root\""),
        ("\"signed\"", "\"sIgned\""),
        ("\"signatures\":[", "\"signatures\":[7,"),
    ];
    for (from, to) in replacements {
        let mut world = World::new();
        let text = String::from_utf8(world.stored["root.json"].clone()).unwrap();
        assert!(text.contains(from), "{from}");
        world.stored.insert("root.json".into(), text.replacen(from, to, 1).into_bytes());
        let outcome = world.refresh().map(|_| ());
        assert!(matches!(outcome, Err(Error::Format { .. })), "{to}: {outcome:?}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(128))]

    // No byte of signed metadata can change without notice (a change in white space is none).
    #[test]
    fn a_flipped_bit_is_never_accepted_as_other_metadata(at: proptest::sample::Index, bit in 0..8u32) {
        let mut world = World::updated();
        world.next_timestamp(|_| {});
        let bytes = world.served.get_mut("timestamp.json").unwrap();
        let index = at.index(bytes.len());
        bytes[index] ^= 1 << bit;
        if let Ok(trusted) = world.refresh() {
            proptest::prop_assert_eq!(&**trusted.timestamp(), world.timestamp.signed());
        }
    }

    // Whatever comes, there is an answer; and what is trusted afterwards is what an honest repository published.
    #[test]
    fn garbled_files_neither_panic_nor_change_what_is_trusted(
        file in proptest::sample::select(vec!["2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"]),
        at: proptest::sample::Index,
        cut in 0..40usize,
        filler in "[\\[\\]{}\",:0-9a-z\\\\-]{0,20}",
    ) {
        let mut world = World::updated();
        world.next_root(|_| {});
        world.next_targets("targets", |_| {});
        world.publish();
        let mut honest = World::updated();
        honest.served = world.served.clone();
        honest.refresh().unwrap();
        let bytes = world.served.get_mut(file).unwrap();
        let from = at.index(bytes.len());
        let to = bytes.len().min(from + cut);
        bytes.splice(from..to, filler.bytes());
        if world.refresh().is_ok() {
            let signed = |world: &World, file: &str| {
                ocelli_tuf::Json::parse(&world.stored[file]).unwrap().get("signed").cloned()
            };
            for file in ["root.json", "timestamp.json", "snapshot.json", "targets.json"] {
                proptest::prop_assert_eq!(signed(&world, file), signed(&honest, file));
            }
        }
    }
}
