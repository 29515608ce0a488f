//! What a hostile broker, a stolen online key and a bad package get: each error by name, the old model goes on, and the next
//! good update works.

use ocelli_tuf::Json;

use super::world::{CHUNK, Device, MODEL, Repository, digest, key, now, package};
use crate::model::power_cut::PowerCut;
use crate::model::slots::Slot;
use crate::update::trial::Failure;

fn world() -> (Repository, Device<PowerCut>) {
    let mut repository = Repository::new();
    repository.release("2.0.0", &package("2.0.0"));
    repository.roll_out("2.0.0", 1);
    let device = Device::boot(repository.settings(), PowerCut::default(), &package("1.0.0"));
    (repository, device)
}

/// The attack is refused with these words, and the next update from the repository's owner works.
fn refused(name: &str, says: &str, attack: impl FnOnce(&mut Repository)) {
    let (mut repository, mut device) = world();
    let sane = repository.clone();
    attack(&mut repository);
    device.live(&repository.broker, 90);
    let reason = device.state().reason.unwrap_or_default();
    assert!(reason.contains(says), "{name}: {reason}");
    assert_eq!(device.runs, None, "{name}");
    let mut repository = sane;
    repository.release("3.0.0", &package("3.0.0"));
    repository.roll_out("3.0.0", 1);
    device.live(&repository.broker, 60);
    // The way may lead over 2.0.0, whose metadata is whole again.
    let last = device.state().last.map(|last| last.target);
    assert_eq!(last.as_deref(), Some("tiny-classifier-3.0.0"), "{name}: {:?}", device.state());
}

/// Topic of a chunk of the package.
fn some_chunk(repository: &Repository) -> String {
    let tar = package("2.0.0");
    repository.topics.chunk(&digest(tar.chunks(CHUNK).next().unwrap()))
}

#[test]
fn a_hostile_broker_delays_and_nothing_else() {
    let metadata = |repository: &Repository, file: &str| repository.topics.metadata(file);
    refused("garbage timestamp", "malformed", |repository| {
        let topic = metadata(repository, "timestamp.json");
        repository.broker.insert(topic, vec![0xff; 300]);
    });
    refused("deeply nested timestamp", "malformed", |repository| {
        let topic = metadata(repository, "timestamp.json");
        repository.broker.insert(topic, [b'['; 9000].to_vec());
    });
    refused("garbage snapshot", "snapshot.json has 2 bytes, signed are", |repository| {
        let topic = metadata(repository, "2.snapshot.json");
        repository.broker.insert(topic, b"{}".to_vec());
    });
    refused("endless snapshot", "longer than", |repository| {
        let topic = metadata(repository, "2.snapshot.json");
        repository.broker.insert(topic, vec![b' '; 200_000]);
    });
    refused("missing snapshot", "the broker has no", |repository| {
        let topic = metadata(repository, "2.snapshot.json");
        repository.broker.remove(&topic);
    });
    refused("missing chunk", "the broker has no", |repository| {
        let topic = some_chunk(repository);
        repository.broker.remove(&topic);
    });
    refused("other chunk", "not what its name says", |repository| {
        let topic = some_chunk(repository);
        repository.broker.insert(topic, b"other".to_vec());
    });
    refused("endless chunk", "not what its name says", |repository| {
        let topic = some_chunk(repository);
        repository.broker.insert(topic, vec![0; 250_000]);
    });
    refused("a root nobody signed", "valid signatures", |repository| {
        repository.rotate(|_| {}, &[9]);
    });
}

#[test]
fn a_lying_head_only_delays() {
    for head in [
        &br#"{"v":1,"root":18446744073709551615,"timestamp":1}"#[..],
        b"",
        b"nonsense",
        &[b'x'; 9999],
    ] {
        let (mut repository, mut device) = world();
        let topic = repository.topics.head();
        repository.broker.insert(topic, head.to_vec());
        device.live(&repository.broker, 60);
        assert_eq!(device.runs, Some(Slot::A), "{:?}", device.state());
    }
}

#[test]
fn an_older_timestamp_is_refused() {
    let (mut repository, mut device) = world();
    let old = repository.clone();
    repository.publish(now().plus_days(30));
    device.live(&repository.broker, 30);
    assert_eq!(device.runs, Some(Slot::A));
    device.live(&old.broker, 30);
    let reason = device.state().reason.unwrap();
    assert!(reason.contains("timestamp.json version 2 is older than trusted 3"), "{reason}");
}

#[test]
fn withheld_news_are_noticed_when_they_run_out() {
    let (repository, mut device) = world();
    device.clock = crate::update::Clock::Synchronised;
    device.wall =
        crate::clock::UnixTime::from_micros((now().unix_seconds() + 31 * 86_400) * 1_000_000);
    device.live(&repository.broker, 30);
    assert!(device.state().reason.unwrap().contains("expired at"));
}

#[test]
fn messages_nobody_asked_for_change_nothing() {
    let (repository, mut device) = world();
    let foreign = "ocelli/repo/factory-a/chunk/".to_owned() + &"00".repeat(32);
    for _ in 0..1000 {
        device.send(&foreign, &[7; 1000]);
        device.send("ocelli/repo/factory-a/meta/9.root.json", b"{}");
        device.send("ocelli/repo/factory-a/elsewhere", b"");
    }
    device.live(&repository.broker, 30);
    assert_eq!(device.runs, Some(Slot::A));
}

#[test]
fn a_broker_that_changes_the_timestamp_all_the_time_does_not_keep_the_device_busy() {
    let (mut repository, mut device) = world();
    let topic = repository.topics.metadata("timestamp.json");
    for number in 0..600_u32 {
        repository.broker.insert(topic.clone(), number.to_be_bytes().to_vec());
        device.live(&repository.broker, 1);
    }
    // One look in two seconds at most, and one row of the audit log for the same trouble.
    assert!(device.audit.len() < 20, "{}", device.audit.len());
}

#[test]
fn words_of_the_broker_are_cut_and_come_without_control_characters() {
    let long = "\u{1b}[2J\\u001b".repeat(600);
    for text in [
        format!(r#"{{"signatures":"{}","signed":{{}}}}"#, "A".repeat(12_000)),
        format!(r#"{{"signatures":[{{"{long}":1}}],"signed":{{}}}}"#),
        format!(r#"{{"{}":1}}"#, long.replace('\u{1b}', "\\u001b")),
    ] {
        let (mut repository, mut device) = world();
        let topic = repository.topics.metadata("timestamp.json");
        repository.broker.insert(topic, text.into_bytes());
        device.live(&repository.broker, 5);
        let reason = device.state().reason.unwrap();
        assert!(reason.contains("timestamp.json is malformed"), "{reason}");
        assert!(reason.chars().count() <= 240 && !reason.contains('\u{1b}'), "{reason}");
        let row = device.audit.last().unwrap().1.to_string();
        assert!(row.contains("refused") && row.len() < 1200, "{row}");
    }
}

#[test]
fn a_hostile_broker_cannot_push_old_rows_out_of_the_audit_log() {
    let (mut repository, mut device) = world();
    let last = some_chunk(&repository);
    repository.broker.remove(&last);
    let topic = repository.topics.metadata("timestamp.json");
    let valid = repository.broker[&topic].clone();
    // Each look ends in another way: garbage that varies, and valid metadata of a package that cannot be fetched.
    for number in 0..10_000_usize {
        let spaces = [valid.clone(), vec![b' '; number % 7]].concat();
        let garbage = format!(r#"{{"signatures":"{number}","signed":{{}}}}"#).into_bytes();
        let served = if number % 40 < 20 { spaces } else { garbage };
        repository.broker.insert(topic.clone(), served);
        device.live(&repository.broker, 1);
    }
    let more: u64 = device.audit.iter().filter_map(|(_, detail)| detail["more"].as_u64()).sum();
    assert!(more > 500, "they are counted: {more}");
    // Almost three hours: the first of each kind, and a count for each of the windows that double.
    assert!(device.audit.len() <= 8, "{} rows: {:?}", device.audit.len(), device.audit);
}

#[test]
fn many_rejections_with_long_reasons_leave_a_record_that_can_be_read() {
    let (mut repository, disk) = (Repository::new(), PowerCut::default());
    let mut device = Device::boot(repository.settings(), disk.clone(), &package("1.0.0"));
    device.trial = Err(Failure::Model("\u{1}".repeat(16_000)));
    for number in 1..=40 {
        let version = format!("2.0.{number}");
        repository.release(&version, &package(&version));
        repository.roll_out(&version, 1);
        device.live(&repository.broker, 10);
    }
    assert_eq!(device.state().last.unwrap().target, "tiny-classifier-2.0.40");
    let mut device = Device::boot(repository.settings(), disk, &package("1.0.0"));
    device.live(&repository.broker, 10);
    let reason = device.state().reason.unwrap_or_default();
    assert!(reason.contains("2.0.40 was rejected in attempt 1"), "{reason}");
}

#[test]
fn a_stolen_timestamp_key_cannot_move_the_clock_beyond_its_rotation() {
    let (mut repository, mut device) = world();
    device.live(&repository.broker, 30);
    // The thief claims the year 2099; the root's own end bounds what is believed.
    let claim = Json::String("2099-01-01T00:00:00Z".to_owned());
    repository.claim_issued(&claim);
    device.live(&repository.broker, 30);
    repository.rotate(
        |root| {
            root.revoke("timestamp", &key(2).public().id());
            root.allow("timestamp", key(22).public());
        },
        &[1],
    );
    repository.timestamp_key(22);
    repository.release("3.0.0", &package("3.0.0"));
    repository.roll_out("3.0.0", 1);
    device.live(&repository.broker, 60);
    assert_eq!(
        device.state().last.unwrap().target,
        "tiny-classifier-3.0.0",
        "{:?}",
        device.session.state()
    );
}

/// A ustar header with a right checksum; `name` and `kind` as given.
fn entry(name: &str, kind: u8, size: u64, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut all = header.to_vec();
    all.extend(content);
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

fn with(entry: Vec<u8>) -> Vec<u8> {
    let tar = package("2.0.0");
    let end = tar.len() - 1024;
    [&tar[..end], &entry, &[0; 1024]].concat()
}

#[test]
fn a_signed_package_that_is_bad_is_rejected_once_with_its_reason() {
    let manifest = |from: &str, to: &str| {
        let tar = package("2.0.0");
        let at = tar.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        let mut changed = tar.clone();
        changed[at..at + to.len()].copy_from_slice(to.as_bytes());
        changed
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "climbing path",
            with(entry("../../etc/passwd", b'0', 1, "", b"x")),
            "names in a package are relative",
        ),
        (
            "absolute path",
            with(entry("/etc/passwd", b'0', 1, "", b"x")),
            "names in a package are relative",
        ),
        (
            "symbolic link",
            with(entry("LICENSE.txt", b'2', 0, "/etc/passwd", b"")),
            "links are refused",
        ),
        ("hard link", with(entry("LICENSE.txt", b'1', 0, "model.onnx", b"")), "links are refused"),
        ("device file", with(entry("LICENSE.txt", b'3', 0, "", b"")), "only regular files"),
        ("pipe", with(entry("LICENSE.txt", b'6', 0, "", b"")), "only regular files"),
        (
            "size bomb",
            with(entry("LICENSE.txt", b'0', 0o77_777_777_777, "", b"")),
            "larger than the",
        ),
        ("sparse file", with(entry("LICENSE.txt", b'S', 0, "", b"")), "extensions"),
        ("name twice", with(entry("labels.txt", b'0', 1, "", b"x")), "occurs twice"),
        ("unnamed file", with(entry("run.sh", b'0', 1, "", b"x")), "does not name this file"),
        ("cut short", package("2.0.0")[..3000].to_vec(), "damaged tar"),
        ("no tar", vec![7; 5000], "damaged tar"),
        ("wrong checksum", manifest("0000644", "0000755"), "damaged tar"),
        ("another order", with(entry("README.md", b'0', 1, "", b"x")), "no canonical tar"),
        ("label file swapped", manifest("zero\none\n", "one\nzero\n"), "expected"),
        (
            "manifest downgraded",
            package("1.9.0"),
            "calls itself tiny-classifier-1.9.0, released is tiny-classifier-2.0.0",
        ),
    ];
    for (name, tar, says) in cases {
        let mut repository = Repository::new();
        repository.release("2.0.0", &tar);
        repository.roll_out("2.0.0", 1);
        let mut device =
            Device::boot(repository.settings(), PowerCut::default(), &package("1.0.0"));
        device.live(&repository.broker, 60);
        let state = device.state();
        let reason = state.last.clone().unwrap_or_else(|| panic!("{name}: {state:?}")).reason;
        assert!(reason.contains(says), "{name}: {reason}");
        assert_eq!(device.runs, None, "{name}");
        repository.release("3.0.0", &package("3.0.0"));
        repository.roll_out("3.0.0", 1);
        device.live(&repository.broker, 60);
        assert_eq!(device.runs, Some(Slot::A), "{name}: {:?}", device.state());
    }
}

#[test]
fn a_signed_release_that_contradicts_itself_is_refused() {
    type Lie = fn(&mut ocelli_protocol::repository::Release);
    let tar = package("2.0.0");
    let cases: [(&str, u64, Lie, &str); 5] = [
        (
            "another model",
            tar.len() as u64,
            |release| release.model = "other".parse().unwrap(),
            "it is for other",
        ),
        (
            "another version",
            tar.len() as u64,
            |release| release.version = "2.0.1".into(),
            "not that of version 2.0.1",
        ),
        (
            "a huge index",
            tar.len() as u64,
            |release| release.index.length = 1 << 40,
            "at most 131072",
        ),
        ("another index", tar.len() as u64, |release| release.index.length += 1, "something else"),
        ("an index of another length", 5, |_| {}, "malformed"),
    ];
    for (name, length, lie, says) in cases {
        let mut repository = Repository::new();
        repository.release_as("2.0.0", &tar, length, lie);
        repository.roll_out("2.0.0", 1);
        let mut device =
            Device::boot(repository.settings(), PowerCut::default(), &package("1.0.0"));
        device.live(&repository.broker, 60);
        let reason = device.state().reason.unwrap_or_default();
        assert!(reason.contains(says), "{name}: {reason}");
        assert_eq!(device.runs, None, "{name}");
    }
}

#[test]
fn a_roll_out_that_makes_no_sense_is_refused() {
    let other = r#"{"v":1,"model":"other","channels":{}}"#;
    let none = format!(r#"{{"v":1,"model":"{MODEL}","channels":{{}}}}"#);
    let escape = format!(
        r#"{{"v":1,"model":"{MODEL}","channels":{{"stable":[{{"target":"../x","percent":100}}]}}}}"#
    );
    let cases = [
        ("no JSON", "{", "malformed"),
        ("another model", other, "is for other"),
        ("no channel", &none, "no channel stable"),
        ("a path that climbs", &escape, "no safe target path"),
    ];
    for (name, document, says) in cases {
        let (mut repository, mut device) = world();
        repository.roll_out_bytes(document.as_bytes().to_vec());
        device.live(&repository.broker, 60);
        let reason = device.state().reason.unwrap_or_default();
        assert!(reason.contains(says), "{name}: {reason}");
        assert_eq!(device.runs, None, "{name}");
    }
}
