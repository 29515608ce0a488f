//! `ocelli-slot` as scripts and people call it, on a disk that is a file: what it prints, changes, and exits with.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use ocelli_slot::layout;
use ocelli_slot::state::Slot;

struct Board {
    folder: tempfile::TempDir,
}

impl Board {
    /// A disk as `firmware/build.sh` makes it: version 1 in both slots, nothing to prove.
    fn new() -> Self {
        let board = Self { folder: tempfile::tempdir().unwrap() };
        let disk = File::create(board.path("disk")).unwrap();
        disk.set_len(layout::DATA * layout::SECTOR).unwrap();
        for part in ["kernel", "initrd", "root"] {
            fs::write(board.path(part), format!("{part} of a test").repeat(300)).unwrap();
        }
        let file = fs::read(board.pack("1", "test", &[])).unwrap();
        for slot in [Slot::A, Slot::B] {
            disk.write_all_at(&file, layout::slot_offset(slot)).unwrap();
        }
        assert_eq!(board.run(&["state", "--disk", &board.path("disk")]).status.code(), Some(0));
        board
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_ocelli-slot")).args(arguments).output().unwrap()
    }

    /// A firmware file.
    fn pack(&self, version: &str, board: &str, more: &[&str]) -> PathBuf {
        let out = self.path(&format!("{version}.slot"));
        let parts = ["kernel", "initrd", "root"].map(|part| self.path(part));
        let mut arguments =
            vec!["pack", "--board", board, "--version-name", version, "--out", &out];
        arguments.extend(["--kernel", &parts[0], "--initrd", &parts[1], "--root", &parts[2]]);
        arguments.extend(["--built", "1795251600"]);
        arguments.extend(more);
        let output = self.run(&arguments);
        assert!(output.status.success(), "{}", said(&output));
        out.into()
    }

    /// A command on the board while slot `running` runs.
    fn on_board(&self, running: &str, arguments: &[&str]) -> (Option<i32>, String) {
        let (disk, none) = (self.path("disk"), self.path("none.pub"));
        if !PathBuf::from(&none).exists() {
            fs::write(&none, "").unwrap();
        }
        let mut all = arguments.to_vec();
        all.extend(["--disk", &disk, "--running", running, "--board", "test"]);
        if !arguments.contains(&"--key") {
            all.extend(["--key", &none]);
        }
        let output = self.run(&all);
        (output.status.code(), said(&output))
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_firmware_is_installed_tried_and_confirmed() {
    let board = Board::new();
    let factory = "slot a: 1, good, running, boots next\nslot b: 1, good\n";
    assert_eq!(board.on_board("a", &["status"]), (Some(0), factory.to_owned()));
    let file = board.pack("2", "test", &[]);
    let (code, text) = board.on_board("a", &["install", file.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("version 2 is in slot b, verified; `reboot` tries it"), "{text}");
    let armed = "slot a: 1, good, running\nslot b: 2, trial, boots next, 3 tries left\n";
    assert_eq!(board.on_board("a", &["status"]), (Some(0), armed.to_owned()));
    let again = board.on_board("b", &["install", file.to_str().unwrap()]);
    assert_eq!(again.0, Some(1), "not over the way back: {}", again.1);
    assert_eq!(board.on_board("b", &["confirm"]), (Some(0), "slot b is confirmed\n".to_owned()));
    let (_, json) = board.on_board("b", &["status", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["running"], &json["next"]), (&"b".into(), &"b".into()));
    assert_eq!(json["slots"]["b"]["version"], "2");
}

#[test]
fn a_damaged_foreign_or_unsigned_file_is_refused_and_changes_nothing() {
    let board = Board::new();
    let before = fs::read(board.path("disk")).unwrap();
    let (flipped, foreign) = (board.pack("2", "test", &[]), board.pack("3", "other", &[]));
    let mut bytes = fs::read(&flipped).unwrap();
    bytes[(8 << 20) + 100] ^= 1;
    fs::write(&flipped, bytes).unwrap();
    let key = board.path("key");
    assert!(board.run(&["keygen", &key]).status.success());
    let strict = format!("{key}.pub");
    let unsigned = board.pack("4", "test", &[]);
    let cases: [(&PathBuf, &[&str], &str); 3] = [
        (&flipped, &[], "the kernel is damaged"),
        (&foreign, &[], "is for board other, this board is test"),
        (&unsigned, &["--key", &strict], "not signed"),
    ];
    for (file, more, reason) in cases {
        let mut arguments = vec!["install", file.to_str().unwrap()];
        arguments.extend(more);
        let (code, text) = board.on_board("a", &arguments);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(reason), "{text}");
    }
    assert!(fs::read(board.path("disk")).unwrap() == before, "the disk changed");
    let signed = board.pack("5", "test", &["--key", &key]);
    let (code, text) =
        board.on_board("a", &["install", signed.to_str().unwrap(), "--key", &strict]);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn a_slot_that_the_initramfs_found_damaged_hands_over() {
    let board = Board::new();
    let told = board.on_board("a", &["damaged"]);
    assert_eq!(told, (Some(0), "slot a is marked bad, slot b is next\n".to_owned()));
    let (_, status) = board.on_board("b", &["status"]);
    assert_eq!(status, "slot a: 1, bad\nslot b: 1, good, running, boots next\n");
}

#[test]
fn provisioning_says_what_the_agent_has_against_a_configuration() {
    let board = Board::new();
    let (fat, data) = (board.path("fat"), board.path("data"));
    fs::create_dir(&fat).unwrap();
    fs::create_dir(&data).unwrap();
    let provision =
        |check: &str| board.run(&["provision", "--fat", &fat, "--data", &data, "--check", check]);
    assert_eq!(said(&provision("false")), "", "nothing there, nothing said");
    fs::write(board.path("fat/ocelli.toml"), "[device]\n").unwrap();
    let refused = provision("false");
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("provisioning refused"), "{}", said(&refused));
    assert!(PathBuf::from(board.path("fat/ocelli-error.txt")).exists());
    let taken = provision("true");
    assert_eq!(said(&taken), "provisioning: taken over ocelli.toml\n");
    assert_eq!(fs::read(board.path("data/config/ocelli.toml")).unwrap(), b"[device]\n");
    assert!(!PathBuf::from(board.path("fat/ocelli.toml")).exists());
}

#[test]
fn wrong_use_is_told_apart_from_failure() {
    let board = Board::new();
    let cases: [(&[&str], i32, &str); 8] = [
        (&[], 2, "what to do?"),
        (&["instal"], 2, "unknown command \"instal\""),
        (&["status", "--disc", "x"], 2, "unknown option --disc"),
        (&["pack"], 2, "--board is missing"),
        (&["install", "--running", "a"], 2, "expected the firmware file"),
        (&["find-disk", "xyz"], 2, "no hexadecimal number"),
        (&["status", "--disk", "/nowhere"], 1, "/nowhere: No such file"),
        (&["status"], 1, "is this a board that runs this firmware?"),
    ];
    for (arguments, code, reason) in cases {
        let output = board.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(reason), "{arguments:?}: {}", said(&output));
    }
    assert!(said(&board.run(&["--help"])).contains("Exit codes"));
}
