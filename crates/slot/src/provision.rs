//! Takes what a person put on the FAT partition, checks it, moves it to the data partition in one step, and wipes it from the FAT.
//!
//! Generations lie side by side in folders `config.N`; the link `config` names the one in force. A new generation is the old one with
//! the files from the FAT over it, so that a single changed file can be brought. The link is renamed only after `ocelli check` was
//! content; files are wiped only after that. A power cut at any point: the next boot does it again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use crate::files::Files;
use crate::image::Keys;

/// Where errors are written for the person with the laptop.
pub const ERROR_FILE: &str = "ocelli-error.txt";
/// Where success is told.
pub const STATUS_FILE: &str = "ocelli-status.txt";
const LARGEST: u64 = 1 << 20;
const MOST: usize = 64;
const FULL: &str = "the data partition is full; what was in force stays in force";

/// What provisioning came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There was nothing to take.
    Nothing,
    /// These files are in force now and wiped from the FAT.
    Taken(Vec<String>),
    /// Refused; what was in force stays in force, and the files stay on the FAT.
    Refused(String),
}

/// Whether a file of the FAT partition's first level is ours to take.
fn is_ours(name: &str) -> bool {
    let endings = [".pem", ".crt", ".key", ".json"];
    matches!(name, "ocelli.toml" | "hostname" | "network" | "password" | "slot.pub")
        || endings.iter().any(|ending| name.len() > ending.len() && name.ends_with(ending))
}

/// Files to take, by name in lower case: laptops write names as they like.
fn offered(fat: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(fat)? {
        let entry = entry?;
        let original = entry.file_name().to_string_lossy().into_owned();
        // macOS puts a "._name" beside each file that it copies to a FAT.
        if original.starts_with('.') || !entry.file_type()?.is_file() {
            continue;
        }
        let name = original.to_ascii_lowercase();
        // Editors of laptops add it unseen.
        let name = match name.as_str() {
            "ocelli.toml.txt" | "hostname.txt" | "network.txt" | "password.txt" => {
                name.trim_end_matches(".txt").to_owned()
            }
            _ => name,
        };
        if is_ours(&name) {
            found.insert(
                if name.contains('.') && name != "ocelli.toml" && name != "slot.pub" {
                    original
                } else {
                    name
                },
                entry.path(),
            );
        }
    }
    Ok(found)
}

/// Takes what lies on the FAT. `check` gets the path of the new `ocelli.toml` and answers with what is wrong.
///
/// # Errors
/// The disk's; what was in force stays in force.
pub fn provision(
    files: &Files,
    fat: &Path,
    data: &Path,
    check: &dyn Fn(&Path) -> Result<(), String>,
) -> io::Result<Outcome> {
    let mut offered = offered(fat)?;
    // Zeros are what a power cut left of a file that was being wiped: its content is in force already.
    for (name, path) in offered.clone() {
        if fs::metadata(&path)?.len() <= LARGEST && fs::read(&path)?.iter().all(|byte| *byte == 0) {
            files.wipe(&path)?;
            offered.remove(&name);
        }
    }
    if offered.is_empty() {
        return Ok(Outcome::Nothing);
    }
    let link = data.join("config");
    let current = fs::read_link(&link).ok().map(|name| data.join(name));
    let number = |path: &PathBuf| path.extension()?.to_str()?.parse::<u64>().ok();
    let next =
        format!("config.{}", current.as_ref().and_then(number).map_or(1, |number| number + 1));
    let folder = data.join(&next);
    let staged = stage(files, current.as_deref(), &offered, &folder)
        .map(|refused| refused.or_else(|| check(&folder.join("ocelli.toml")).err()));
    let refused = match staged {
        Ok(refused) => refused,
        Err(error) if error.kind() == io::ErrorKind::StorageFull => Some(FULL.to_owned()),
        Err(error) => return Err(error),
    };
    if let Some(reason) = refused {
        files.remove_folder(&folder)?;
        return Ok(Outcome::Refused(reason));
    }
    files.sync_folder(&folder)?;
    files.sync_folder(data)?;
    match files.point(&link, &next) {
        // The folder stays: whether the link names it already is the disk's secret. The next attempt makes it afresh.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            return Ok(Outcome::Refused(FULL.to_owned()));
        }
        pointed => pointed?,
    }
    for path in offered.values() {
        files.wipe(path)?;
    }
    for entry in fs::read_dir(data)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("config.") && name != next && path.is_dir() {
            files.remove_folder(&path)?;
        }
    }
    Ok(Outcome::Taken(offered.into_keys().collect()))
}

/// Puts the new generation together; says what is wrong with the files themselves.
fn stage(
    files: &Files,
    current: Option<&Path>,
    offered: &BTreeMap<String, PathBuf>,
    folder: &Path,
) -> io::Result<Option<String>> {
    if offered.len() > MOST {
        return Ok(Some(format!("more than {MOST} files")));
    }
    files.fresh_folder(folder)?;
    for entry in current.map(fs::read_dir).into_iter().flatten().flatten() {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.write(&folder.join(entry.file_name()), &fs::read(entry.path())?)?;
        }
    }
    for (name, path) in offered {
        if fs::metadata(path)?.len() > LARGEST {
            return Ok(Some(format!("{name}: larger than {LARGEST} bytes")));
        }
        let bytes = fs::read(path)?;
        match tidied(name, bytes) {
            Ok(bytes) => files.write(&folder.join(name), &bytes)?,
            Err(reason) => return Ok(Some(format!("{name}: {reason}"))),
        }
    }
    if !folder.join("ocelli.toml").exists() {
        return Ok(Some(
            "ocelli.toml: missing; copy ocelli-example.toml to ocelli.toml and edit it".to_owned(),
        ));
    }
    Ok(None)
}

/// A file as the board wants it: text without the mark that some editors begin with, host name and network checked.
fn tidied(name: &str, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    if !matches!(name, "ocelli.toml" | "hostname" | "network" | "password" | "slot.pub") {
        return Ok(bytes);
    }
    let text =
        String::from_utf8(bytes).map_err(|_| "not UTF-8 text; save it as UTF-8".to_owned())?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    match name {
        "hostname" => hostname(text.trim()).map(|name| format!("{name}\n").into_bytes()),
        "network" => network(text).map(String::into_bytes),
        "slot.pub" => Keys::parse(text).map(|_| text.as_bytes().to_vec()),
        _ => Ok(text.as_bytes().to_vec()),
    }
}

fn hostname(name: &str) -> Result<&str, String> {
    let letters = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if (1..=63).contains(&name.len())
        && name.chars().all(letters)
        && !name.starts_with('-')
        && !name.ends_with('-')
    {
        return Ok(name);
    }
    Err(format!("expected 1 to 63 of a-z, 0-9 and '-', found {name:?}"))
}

/// The `network` file as lines that a shell may read: only checked values come through.
fn network(text: &str) -> Result<String, String> {
    let mut lines = String::new();
    let mut known = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let at = number + 1;
        let (key, value) = line
            .split_once('=')
            .ok_or_else(|| format!("line {at}: expected key = value, found {line:?}"))?;
        let (key, value) = (key.trim(), value.trim().trim_matches('"'));
        let good = match key {
            "address" => value.split_once('/').is_some_and(|(address, bits)| {
                address.parse::<Ipv4Addr>().is_ok()
                    && bits.parse::<u8>().is_ok_and(|bits| (1..=32).contains(&bits))
            }),
            "gateway" => value.parse::<Ipv4Addr>().is_ok(),
            "dns" => value.parse::<IpAddr>().is_ok(),
            "ntp" => {
                value.parse::<IpAddr>().is_ok()
                    || value.split('.').all(|label| hostname(label).is_ok())
            }
            _ => {
                return Err(format!(
                    "line {at}: unknown key {key:?}; known are address, gateway, dns, ntp"
                ));
            }
        };
        if !good {
            return Err(format!(
                "line {at}: {key}: {value:?} is none; as in: address = 192.168.1.20/24, gateway = 192.168.1.1"
            ));
        }
        if known.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("line {at}: {key} a second time"));
        }
        lines.push_str(&format!("{}={value}\n", key.to_uppercase()));
    }
    if known.contains_key("gateway") && !known.contains_key("address") {
        return Err("gateway without address".to_owned());
    }
    Ok(lines)
}

/// Tells the person with the laptop what it came to, in files on the FAT. Writes only what changed.
///
/// # Errors
/// The disk's.
pub fn tell(files: &Files, fat: &Path, outcome: &Outcome) -> io::Result<()> {
    let (error, status) = (fat.join(ERROR_FILE), fat.join(STATUS_FILE));
    match outcome {
        Outcome::Nothing => Ok(()),
        Outcome::Taken(names) => {
            if error.exists() {
                fs::remove_file(&error)?;
            }
            let text = format!(
                "Taken over and wiped from this partition: {}.\r\nBring files again to change them.\r\n",
                names.join(", ")
            );
            files.write(&status, text.as_bytes())
        }
        Outcome::Refused(reason) => {
            let text = format!(
                "Not taken over; the configuration before it, if any, stays in force.\r\n{}\r\nCorrect it and start the board again.\r\n",
                reason.trim().replace('\n', "\r\n")
            );
            if fs::read(&error).is_ok_and(|old| old == text.as_bytes()) {
                return Ok(());
            }
            files.write(&error, text.as_bytes())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Board {
        folder: tempfile::TempDir,
    }

    impl Board {
        fn new(on_fat: &[(&str, &str)]) -> Self {
            let board = Self { folder: tempfile::tempdir().unwrap() };
            fs::create_dir(board.fat()).unwrap();
            fs::create_dir(board.data()).unwrap();
            fs::write(board.fat().join("boot.scr"), "untouched").unwrap();
            board.bring(on_fat);
            board
        }
        fn fat(&self) -> PathBuf {
            self.folder.path().join("fat")
        }
        fn data(&self) -> PathBuf {
            self.folder.path().join("data")
        }
        fn bring(&self, files: &[(&str, &str)]) {
            for (name, text) in files {
                fs::write(self.fat().join(name), text).unwrap();
            }
        }
        fn run(&self, files: &Files) -> io::Result<Outcome> {
            provision(files, &self.fat(), &self.data(), &check)
        }
        fn in_force(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.data().join("config").join(name)).ok()
        }
        fn on_fat(&self) -> Vec<String> {
            let mut names: Vec<_> = fs::read_dir(self.fat())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            names
        }
    }

    fn check(config: &Path) -> Result<(), String> {
        let text = fs::read_to_string(config).map_err(|error| error.to_string())?;
        if text.contains("good") { Ok(()) } else { Err("line 1: not good".to_owned()) }
    }

    const FIRST: &[(&str, &str)] = &[
        ("ocelli.toml", "good = 1"),
        ("password", "secret"),
        ("device.key", "KEY"),
        ("hostname", "Dock-3\r\n"),
    ];

    #[test]
    fn files_are_taken_over_and_wiped() {
        let board = Board::new(FIRST);
        let Outcome::Taken(names) = board.run(&Files::default()).unwrap() else {
            panic!("not taken")
        };
        assert_eq!(names, ["device.key", "hostname", "ocelli.toml", "password"]);
        assert_eq!(board.in_force("hostname").as_deref(), Some("Dock-3\n"));
        assert_eq!(board.on_fat(), ["boot.scr"]);
        assert_eq!(board.run(&Files::default()).unwrap(), Outcome::Nothing);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(board.data().join("config/password")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn one_changed_file_keeps_the_others() {
        let board = Board::new(FIRST);
        board.run(&Files::default()).unwrap();
        board.bring(&[("password", "other")]);
        assert!(matches!(board.run(&Files::default()).unwrap(), Outcome::Taken(_)));
        assert_eq!(board.in_force("password").as_deref(), Some("other"));
        assert_eq!(board.in_force("device.key").as_deref(), Some("KEY"));
        assert_eq!(fs::read_dir(board.data()).unwrap().count(), 2, "the link and one generation");
    }

    #[test]
    fn a_bad_file_changes_nothing_and_is_told() {
        let cases: &[(&str, &str, &str)] = &[
            ("ocelli.toml", "bad", "not good"),
            ("hostname", "two words", "hostname: expected 1 to 63"),
            ("network", "address = 192.168.1.300/24", "network: line 1: address"),
            ("network", "adress = 1.2.3.4/8", "unknown key \"adress\""),
            ("network", "gateway = 1.2.3.4", "gateway without address"),
            ("network", "address = 1.2.3.4/8; reboot", "is none"),
            ("slot.pub", "abc", "no Ed25519 public key"),
        ];
        for (name, text, reason) in cases {
            let board = Board::new(FIRST);
            board.run(&Files::default()).unwrap();
            board.bring(&[(name, text)]);
            let outcome = board.run(&Files::default()).unwrap();
            let Outcome::Refused(found) = &outcome else { panic!("{name}: {outcome:?}") };
            assert!(found.contains(reason), "{found}");
            tell(&Files::default(), &board.fat(), &outcome).unwrap();
            let told = fs::read_to_string(board.fat().join(ERROR_FILE)).unwrap();
            assert!(told.contains(reason), "{told}");
            assert_eq!(board.in_force("ocelli.toml").as_deref(), Some("good = 1"));
            assert!(board.fat().join(name).exists(), "{name} stays to be corrected");
        }
    }

    #[test]
    fn certificates_without_a_configuration_are_not_enough() {
        let board = Board::new(&[("ca.pem", "CA")]);
        assert!(
            matches!(board.run(&Files::default()).unwrap(), Outcome::Refused(reason) if reason.contains("missing"))
        );
        assert_eq!(board.in_force("ca.pem"), None);
    }

    #[test]
    fn success_is_told_and_clears_the_error() {
        let board = Board::new(&[("ocelli.toml", "bad")]);
        let outcome = board.run(&Files::default()).unwrap();
        tell(&Files::default(), &board.fat(), &outcome).unwrap();
        board.bring(&[("ocelli.toml", "good")]);
        let outcome = board.run(&Files::default()).unwrap();
        tell(&Files::default(), &board.fat(), &outcome).unwrap();
        assert_eq!(board.on_fat(), ["boot.scr", STATUS_FILE]);
    }

    #[test]
    fn names_and_marks_of_laptops_are_understood() {
        let board = Board::new(&[
            ("OCELLI.TOML", "\u{feff}good"),
            ("._ocelli.toml", "macOS"),
            ("hostname.txt", "dock-4"),
            ("Broker-CA.pem", "CA"),
        ]);
        assert!(matches!(board.run(&Files::default()).unwrap(), Outcome::Taken(_)));
        assert_eq!(board.in_force("ocelli.toml").as_deref(), Some("good"));
        assert_eq!(board.in_force("hostname").as_deref(), Some("dock-4\n"));
        assert_eq!(board.in_force("Broker-CA.pem").as_deref(), Some("CA"));
        assert_eq!(board.on_fat(), ["._ocelli.toml", "boot.scr"]);
    }

    #[test]
    fn the_network_file_becomes_checked_lines() {
        let text = "# office\r\naddress = 192.168.1.20/24\r\ngateway=192.168.1.1\r\ndns = \"9.9.9.9\"\nntp = time.example\n";
        let want = "ADDRESS=192.168.1.20/24\nGATEWAY=192.168.1.1\nDNS=9.9.9.9\nNTP=time.example\n";
        assert_eq!(network(text).unwrap(), want);
    }

    #[test]
    fn a_disk_that_is_full_at_any_point_is_told_and_what_was_in_force_stays() {
        let mut refused = 0;
        for operations in 0.. {
            let board = Board::new(FIRST);
            board.run(&Files::default()).unwrap();
            board.bring(&[("password", "second")]);
            match board.run(&Files::full_after(operations)).unwrap() {
                Outcome::Refused(reason) => assert_eq!(reason, FULL, "after {operations}"),
                _ => break,
            }
            refused += 1;
            assert_eq!(board.in_force("password").as_deref(), Some("secret"), "after {operations}");
            assert!(board.fat().join("password").exists(), "after {operations}");
            assert!(matches!(board.run(&Files::default()).unwrap(), Outcome::Taken(_)));
            assert_eq!(board.in_force("password").as_deref(), Some("second"), "after {operations}");
        }
        assert!(refused > 5, "{refused} points were tried");
    }

    #[test]
    fn a_power_cut_at_any_point_leaves_old_or_new_and_the_next_boot_completes_it() {
        let second: &[(&str, &str)] = &[("ocelli.toml", "good = 2"), ("password", "second")];
        let mut cuts = 0;
        for operations in 0.. {
            let board = Board::new(FIRST);
            board.run(&Files::default()).unwrap();
            board.bring(second);
            let cut = board.run(&Files::cut_after(operations));
            let pair =
                (board.in_force("ocelli.toml").unwrap(), board.in_force("password").unwrap());
            let (old, new) = (("good = 1", "secret"), ("good = 2", "second"));
            let pair = (pair.0.as_str(), pair.1.as_str());
            assert!(pair == old || pair == new, "after {operations}: {pair:?}");
            if cut.is_ok() {
                break;
            }
            cuts += 1;
            // What was wiped half is empty or gone; a wiped file must not come back as a setting.
            board.run(&Files::default()).unwrap();
            let after =
                (board.in_force("ocelli.toml").unwrap(), board.in_force("password").unwrap());
            assert_eq!((after.0.as_str(), after.1.as_str()), new, "after {operations}");
            assert_eq!(board.on_fat(), ["boot.scr"], "after {operations}");
        }
        assert!(cuts > 8, "{cuts} points were cut");
    }
}
