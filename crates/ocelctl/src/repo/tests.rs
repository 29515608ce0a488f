//! Commands on a repository at chosen times: what they refuse, what they tell, and what a broker may hold.

use std::path::{Path, PathBuf};

use clap::Parser as _;
use ocelli_tuf::DateTime;

use super::command::Command;
use super::edit::run_at;
use super::held::Held;
use super::{Repository, lifetime};
use crate::keys::{self, Passphrase};

const ROLES: [&str; 6] = ["root", "targets", "releases", "rollout", "snapshot", "timestamp"];
const ONLINE: [&str; 3] = ["rollout", "snapshot", "timestamp"];
const MODEL: &str = "tiny-classifier";
const RELEASE: &str = "releases/tiny-classifier/tiny-classifier-0.1.0.tar";

#[derive(clap::Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

/// A folder with keys and a repository, begun on day 0.
pub(crate) struct Site {
    folder: tempfile::TempDir,
}

fn day(days: u32) -> DateTime {
    DateTime::from_unix_seconds(1_795_000_000).plus_days(days)
}

fn fixture() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    folder.join(MODEL).display().to_string()
}

impl Site {
    /// A repository of which these roles have signed.
    pub(crate) fn signed_by(roles: &[&str]) -> Self {
        let site = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::write(site.path("passphrase"), "for tests only\n").unwrap();
        ROLES.iter().for_each(|role| drop(site.key(role)));
        let mut words = vec!["init".to_owned(), "--id".into(), "factory-a".into()];
        for role in ROLES {
            words.extend([format!("--{role}"), site.path(role).display().to_string() + ".pub"]);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        site.run(0, &words, roles).unwrap();
        site
    }

    /// One with a release and its roll-out.
    fn released() -> Self {
        let site = Self::signed_by(&ROLES);
        site.run(0, &["add", &fixture()], &["releases"]).unwrap();
        site.run(0, &["rollout", MODEL, "0.1.0"], &ONLINE).unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes a key; gives its id.
    fn key(&self, name: &str) -> String {
        keys::make(&self.path(name), &Passphrase::in_file(&self.path("passphrase"))).unwrap()
    }

    /// `ocelctl repo …` on a day.
    pub(crate) fn run(&self, days: u32, words: &[&str], keys: &[&str]) -> Result<String, String> {
        let mut words: Vec<String> =
            ["repo"].iter().chain(words).map(|word| (*word).to_owned()).collect();
        words.extend(["--repo".to_owned(), self.path("repo").display().to_string()]);
        for key in keys {
            words.extend(["--key".to_owned(), self.path(key).display().to_string() + ".key"]);
        }
        let passphrase = self.path("passphrase").display().to_string();
        words.extend(["--passphrase-file".to_owned(), passphrase]);
        let mut out = Vec::new();
        let ran = run_at(day(days), Line::parse_from(words).command, &mut out);
        let told = String::from_utf8(out).unwrap();
        ran.map(|()| told.clone()).map_err(|failure| told + &failure.0)
    }

    pub(crate) fn open(&self, days: u32) -> Repository {
        Repository::open(&self.path("repo"), day(days)).unwrap()
    }

    /// The same keys and repository in another folder.
    fn copy(&self) -> Self {
        let copy = Self { folder: tempfile::tempdir().unwrap() };
        copy_folder(self.folder.path(), copy.folder.path());
        copy
    }

    /// What a broker holds after a push from here.
    fn held(&self) -> Held {
        let files = std::fs::read_dir(self.path("repo/metadata")).unwrap();
        let file = |entry: std::io::Result<std::fs::DirEntry>| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
        };
        files.map(file).collect()
    }

    /// New keys for a top-level role.
    fn rotate(&self, role: &str, new: &str) {
        let add = self.path(new).display().to_string() + ".pub";
        let old = self.open(0).newest::<ocelli_tuf::schema::Root>("root").unwrap().unwrap();
        let old = old.signed().roles[role].keyids[0].as_str().to_owned();
        let words = ["rotate", role, "--add", &add, "--remove", &old];
        self.run(1, &words, &["root", "targets", "rollout", "snapshot", "timestamp", new]).unwrap();
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let place = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &place);
        } else {
            std::fs::copy(&path, place).unwrap();
        }
    }
}

#[test]
fn a_refresh_that_cannot_renew_a_staged_roll_out_warns_and_fails_near_its_end() {
    let site = Site::released();
    site.run(1, &["rollout", MODEL, "0.1.0", "--attempt", "2"], &[]).unwrap();
    let told = site.run(2, &["refresh"], &ONLINE).unwrap();
    assert!(told.contains("warning: not renewed: rollout 3: staged"), "{told}");
    let told = site.run(17, &["refresh"], &ONLINE).unwrap_err();
    assert!(told.contains("timestamp 4: signed and published"), "{told}");
    assert!(told.contains("refreshed, but rollout ends at"), "{told}");
    assert!(told.contains("in 13 days; its next version is staged and lacks signatures"), "{told}");
    // Signed, all is well again.
    site.run(17, &["sign"], &ONLINE).unwrap();
    site.run(18, &["refresh"], &ONLINE).unwrap();
}

#[test]
fn a_refresh_fails_when_what_people_sign_ends_within_a_month_and_its_renewal_is_told() {
    let site = Site::released();
    site.run(149, &["refresh"], &ONLINE).unwrap();
    let told = site.run(151, &["refresh"], &ONLINE).unwrap_err();
    assert!(told.contains("signed and published"), "{told}");
    for role in ["targets", "releases"] {
        let words = format!("{role} ends at");
        assert!(told.contains(&words), "{told}");
        assert!(told.contains(&format!("renew it with `ocelctl repo rotate {role}`")), "{told}");
    }
    // The root need not sign that.
    for role in ["targets", "releases"] {
        let told = site.run(151, &["rotate", role], &["targets", "releases"]).unwrap();
        assert!(told.contains(&format!("{role}: renewed, its keys stay")), "{told}");
        assert!(!told.contains("staged"), "{told}");
    }
    let told = site.run(151, &["rotate", "timestamp"], &["root"]).unwrap_err();
    assert!(told.contains("`ocelctl repo refresh` renews it"), "{told}");
    site.run(152, &["refresh"], &ONLINE).unwrap();
    let told = site.run(340, &["refresh"], &ONLINE).unwrap_err();
    assert!(told.contains("root ends at") && told.contains("releases EXPIRED at"), "{told}");
    site.run(340, &["rotate", "root"], &["root"]).unwrap();
    let told = site.run(340, &["status"], &[]).unwrap();
    assert!(told.contains("root         version 2") && !told.contains("root ends"), "{told}");
}

#[test]
fn what_devices_do_not_get_yet_is_told_with_the_key_that_is_missing() {
    let site = Site::signed_by(&["root", "targets", "releases"]);
    let told = site.run(0, &["status"], &[]).unwrap();
    assert!(told.contains("snapshot     not published"), "{told}");
    assert!(told.contains("rollout 1: staged, rollout has 0 valid signatures of the 1"), "{told}");
    assert!(told.contains(
        "there is no snapshot, without which devices see nothing: run `ocelctl repo refresh` with"
    ));
    site.run(0, &["sign"], &["rollout"]).unwrap();
    site.run(0, &["refresh"], &ONLINE).unwrap();
    assert!(!site.run(0, &["status"], &[]).unwrap().contains("not out yet"));
    // A release that only its own key signed looks done, and is not.
    let told = site.run(0, &["add", &fixture()], &["releases"]).unwrap();
    assert!(told.contains("releases 2: signed and published"), "{told}");
    assert!(told.contains("not out yet: releases 2 is signed, but in no snapshot"), "{told}");
    assert!(told.contains("the timestamp key ("), "{told}");
    let told = site.run(0, &["status"], &[]).unwrap();
    assert!(told.contains("not out yet  releases 2 is signed, but in no snapshot"), "{told}");
    assert!(!site.run(0, &["refresh"], &ONLINE).unwrap().contains("not out yet"));
    // New keys of an online role sign nothing by themselves.
    let id = site.key("other");
    let add = site.path("other.pub").display().to_string();
    let told = site.run(0, &["rotate", "timestamp", "--add", &add, "--threshold", "2"], &["root"]);
    let told = told.unwrap();
    assert!(told.contains("timestamp 2 lacks signatures of the keys in root 2"), "{told}");
    assert!(told.contains(&id[..12]), "{told}");
}

#[test]
fn a_release_that_is_staged_only_is_not_rolled_out_and_one_rolled_out_not_withdrawn() {
    let site = Site::signed_by(&ROLES);
    site.run(0, &["add", &fixture()], &[]).unwrap();
    let told = site.run(0, &["rollout", MODEL, "0.1.0"], &ONLINE).unwrap_err();
    assert!(told.contains(&format!("{RELEASE} is staged, but not signed")), "{told}");
    let told = site.run(0, &["rollout", MODEL, "0.2.0"], &ONLINE).unwrap_err();
    assert!(told.contains("add it first"), "{told}");
    site.run(0, &["sign"], &["releases"]).unwrap();
    site.run(0, &["rollout", MODEL, "0.1.0", "--percent", "10"], &ONLINE).unwrap();
    let told = site.run(0, &["remove", MODEL, "0.1.0"], &["releases"]).unwrap_err();
    assert!(told.contains("is rolled out to 10 % of channel stable"), "{told}");
    assert!(site.run(0, &["status"], &[]).unwrap().contains(RELEASE));
    let told = site.run(0, &["remove", MODEL, "0.1.0", "--yes"], &["releases"]).unwrap();
    assert!(told.contains("withdrawn"), "{told}");
}

#[test]
fn who_signs_sees_what_is_signed_and_which_keys_were_of_no_use() {
    let site = Site::released();
    let stranger = site.key("stranger");
    site.run(0, &["rollout", MODEL, "0.1.0", "--attempt", "7"], &[]).unwrap();
    let told = site.run(0, &["sign"], &["rollout", "targets", "stranger"]).unwrap();
    for words in [
        "rollout 3 until",
        "; published is 2 until",
        "+ rollout/tiny-classifier.json",
        "then stable: 100 % releases/tiny-classifier/tiny-classifier-0.1.0.tar, attempt 7",
        "rollout 3: signed and published",
        "targets.key (",
        "signed nothing: it signs targets, where no change waited",
        "signed nothing: it is a key of no role of this repository",
        &stranger[..12],
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let add = site.path("stranger.pub").display().to_string();
    site.run(0, &["rotate", "releases", "--add", &add, "--threshold", "2"], &[]).unwrap();
    let told = site.run(0, &["sign"], &["targets", "stranger"]).unwrap();
    for words in [
        "releases: 2 of 2 keys must sign (now 1 of 1)".to_owned(),
        format!("+ key {stranger}"),
        "releases 3 until".to_owned(),
        "nothing changes but version and end".to_owned(),
        "releases 3: staged, releases has 1 valid signatures of the 2 it needs, of keys "
            .to_owned(),
    ] {
        assert!(told.contains(&words), "{words}: {told}");
    }
    // A key is named by its file, too; one that is looked at and not needed is nobody's mistake.
    let told = site.run(0, &["rotate", "releases", "--remove", &add, "--threshold", "1"], &ROLES);
    let told = told.unwrap();
    assert!(told.contains("releases 3: signed and published"), "{told}");
    let told = site.run(0, &["refresh"], &ONLINE).unwrap();
    assert!(!told.contains("signed nothing"), "{told}");
    site.run(0, &["rotate", "releases", "--threshold", "1"], &[]).unwrap();
    // Who changes something over what others staged, signs that as well, and sees it.
    let told = site.run(0, &["remove", MODEL, "0.1.0", "--yes"], &["releases"]).unwrap();
    assert!(told.contains("staged before, this is signed:\nreleases 4 until"), "{told}");
    assert!(told.contains(&format!("- {RELEASE}")), "{told}");
    assert!(!told.contains("targets 4 until"), "{told}");
}

#[test]
fn what_new_keys_sign_waits_until_the_change_of_keys_is_signed() {
    let site = Site::released();
    site.key("releases-2");
    site.key("targets-2");
    let file = |name: &str| site.path(name).display().to_string() + ".pub";
    let published = |file: &str| site.path("repo/metadata").join(file).exists();
    let (new, old) = (file("releases-2"), file("releases"));
    let words = ["rotate", "releases", "--add", &new, "--remove", &old];
    let told = site.run(0, &words, &["releases-2"]).unwrap();
    assert!(
        told.contains("releases 3: staged, signed, waits for targets 2, which changes"),
        "{told}"
    );
    assert!(!published("3.releases.json"));
    // The timer must not bring devices what they would refuse.
    site.run(1, &["refresh"], &ONLINE).unwrap();
    let (add, remove) = (file("targets-2"), file("targets"));
    let words = ["rotate", "targets", "--add", &add, "--remove", &remove];
    let told = site.run(1, &words, &["targets-2"]).unwrap();
    assert!(told.contains("targets 2: staged, signed, waits for root 2, which changes"), "{told}");
    assert!(told.contains("releases 3: staged, signed, waits for targets 2"), "{told}");
    let told = site.run(1, &["sign"], &["root"]).unwrap();
    for role in ["root 2", "targets 2", "releases 3"] {
        assert!(told.contains(&format!("{role}: signed and published")), "{role}: {told}");
    }
    assert!(published("3.releases.json"));
    // The other way round devices refuse what the old keys signed: nobody may overlook that.
    let words = ["rotate", "releases", "--add", &old, "--remove", &new];
    let told = site.run(1, &words, &["targets-2"]).unwrap();
    let says = "releases 3: releases has 0 valid signatures of the 1 it needs since targets 3";
    assert!(told.contains(says), "{told}");
    let told = site.run(1, &["refresh"], &ONLINE).unwrap_err();
    assert!(told.contains(&format!("refreshed, but {says}")), "{told}");
    site.run(1, &["sign"], &["releases"]).unwrap();
    site.run(1, &["refresh"], &ONLINE).unwrap();
}

#[test]
fn a_role_of_its_own_releases_its_model_only_and_is_not_begun_again() {
    let site = Site::signed_by(&ROLES);
    site.key("team");
    let public = site.path("team.pub").display().to_string();
    let delegate = |name: &str, model: &str| {
        let words = ["delegate", name, "--model", model, "--public", &public];
        site.run(0, &words, &["targets", "team"])
    };
    for name in ["releases", "root"] {
        let told = delegate(name, MODEL).unwrap_err();
        assert!(told.contains(&format!("there is a role {name} already")), "{told}");
    }
    delegate("team", MODEL).unwrap();
    let told = delegate("team", "other").unwrap_err();
    assert!(told.contains("`ocelctl repo rotate team`"), "{told}");
    delegate("other-team", "other").unwrap();
    let add = |role: &str| site.run(0, &["add", &fixture(), "--role", role], &["team"]);
    let told = add("other-team").unwrap_err();
    assert!(told.contains("other-team may not release tiny-classifier 0.1.0"), "{told}");
    assert!(add("team").unwrap().contains("team 2: signed and published"));
    site.run(0, &["rollout", MODEL, "0.1.0"], &ONLINE).unwrap();
}

#[test]
fn slips_are_told_with_what_was_meant() {
    let site = Site::released();
    let file = |name: &str| site.path(name).display().to_string();
    std::fs::write(site.path("anna.json"), "{}").unwrap();
    std::fs::write(site.path("releases.anna.json"), "{}").unwrap();
    let init = |threshold: &str| {
        let mut words = vec!["init".to_owned(), "--id".into(), "b".into(), "--threshold".into()];
        words.push(threshold.to_owned());
        ROLES
            .iter()
            .for_each(|role| words.extend([format!("--{role}"), file(&format!("{role}.pub"))]));
        words
    };
    let typo = init("release=2");
    let high = init("releases=2");
    let words = |words: &[String]| words.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
    let cases = [
        (format!("sign\n--merge\n{}", file("nofile")), "nofile: No such file"),
        (format!("sign\n--merge\n{}", file("anna.json")), "its name must begin with the role"),
        (format!("sign\n--merge\n{}", file("releases.anna.json")), "no change of releases waits"),
        (
            format!("rotate\nreleases\n--add\n{}", file("no.pub")),
            "expected a .pub file of `ocelctl",
        ),
        ("add\nnowhere".to_owned(), "/nowhere: no such file or folder; expected a package"),
        (words(&typo), "--threshold release: no such role; there are root, timestamp"),
        (words(&high), "releases would have 1 keys, of which 2 must sign"),
    ];
    for (words, says) in cases {
        let words: Vec<&str> = words.split('\n').collect();
        let other = site.path("other").display().to_string();
        let told = match words[0] {
            "init" => {
                let line = [&["repo"], &words[..], &["--repo", &other]].concat();
                let ran = run_at(day(0), Line::parse_from(line).command, &mut Vec::new());
                assert!(!site.path("other").exists(), "{words:?} began a repository");
                ran.unwrap_err().0
            }
            _ => site.run(0, &words, &[]).unwrap_err(),
        };
        assert!(told.contains(says), "{words:?}: {told}");
    }
    let told = site.run(0, &["refresh"], &["nobody"]).unwrap_err();
    assert!(told.contains("nobody.key: No such file") && told.contains("--key names"), "{told}");
    let nowhere = ["repo", "status", "--repo", "nowhere"];
    let told = run_at(day(0), Line::parse_from(nowhere).command, &mut Vec::new()).unwrap_err().0;
    let here = std::env::current_dir().unwrap().join("nowhere").display().to_string();
    assert!(
        told.contains(&format!("{here}: no repository")) && told.contains("repo init"),
        "{told}"
    );
}

#[test]
fn only_what_the_own_keys_signed_later_keeps_a_push_away() {
    let older = Site::released();
    let refused = |site: &Site, held: &Held| site.open(2).not_behind(held).unwrap_err().0;
    let newer = older.copy();
    newer.key("timestamp-2");
    newer.rotate("timestamp", "timestamp-2");
    older.open(2).not_behind(&older.held()).unwrap();
    newer.open(2).not_behind(&older.held()).unwrap();
    // A copy from before the change of keys, also when it goes on with the old ones.
    for _ in 0..3 {
        let told = refused(&older, &newer.held());
        assert!(told.contains("the broker holds root 2, signed by the keys of this"), "{told}");
        assert!(told.contains("has root 1, from before that change of keys"), "{told}");
        older.run(1, &["refresh"], &ONLINE).unwrap();
    }
    // A thief of the old timestamp key, who is far ahead, does not count after the change; nor do strangers, nor garbage.
    newer.open(2).not_behind(&older.held()).unwrap();
    newer.open(2).not_behind(&Site::released().held()).unwrap();
    let garbage = newer.held().into_keys().map(|file| (file, b"{".to_vec())).collect();
    newer.open(2).not_behind(&garbage).unwrap();
    // But what the snapshot key signed meanwhile does.
    older.run(1, &["rollout", MODEL, "0.1.0", "--attempt", "3"], &ONLINE).unwrap();
    older.run(1, &["rollout", MODEL, "0.1.0", "--attempt", "4"], &ONLINE).unwrap();
    let told = refused(&newer, &older.held());
    assert!(told.contains("the broker holds snapshot 4 of this repository"), "{told}");
    // Two changes of keys, apart from each other.
    let fork = older.copy();
    fork.key("timestamp-3");
    fork.rotate("timestamp", "timestamp-3");
    let told = refused(&fork, &newer.held());
    assert!(told.contains("another root 2, signed by the keys of root 1"), "{told}");
    assert!(refused(&newer, &fork.held()).contains("another root 2"));
    // Two timestamps of one version.
    let (one, two) = (newer.copy(), newer.copy());
    let online = ["rollout", "snapshot", "timestamp-2"];
    one.run(2, &["refresh"], &online).unwrap();
    two.run(3, &["refresh"], &online).unwrap();
    let told = refused(&one, &two.held());
    assert!(
        told.contains("holds timestamp 4 of this repository") && told.contains("has 4"),
        "{told}"
    );
}

#[test]
fn the_window_of_every_role_is_shorter_than_its_life() {
    let site = Site::released();
    assert!(site.open(1).endings().unwrap().is_empty());
    for role in ROLES {
        let last = site.open(lifetime(role)).endings().unwrap();
        assert!(last.iter().any(|one| one.to_string().starts_with(&format!("{role} EXPIRED"))));
    }
}
