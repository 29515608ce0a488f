//! `firmware/flash.sh`: what it refuses before a byte is written, and what it notices while writing. No root, no real disk: files,
//! and an `lsblk` that tells of disks which are not there.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::{folder, project, run};

const BOARD: &str = "nanopi-neo";

/// A folder with a small image of a board.
struct Bench {
    folder: PathBuf,
}

impl Bench {
    fn new(name: &str) -> Self {
        let bench = Self { folder: folder(name) };
        let image = File::create(bench.image()).unwrap();
        image.set_len(8 << 20).unwrap();
        // What names the board in the partition table: see firmware/build.sh.
        let digest = run("sh", &["-c", &format!("printf 'ocelli {BOARD}' | sha256sum")]);
        let signature = u32::from_str_radix(&digest[..8], 16).unwrap();
        image.write_all_at(&signature.to_le_bytes(), 440).unwrap();
        image.write_all_at(&[7; 5000], 3 << 20).unwrap();
        let (image, map) = (bench.image(), bench.folder.join("small.img.bmap"));
        run("bmaptool", &["-q", "create", "-o", map.to_str().unwrap(), image.to_str().unwrap()]);
        bench
    }

    fn image(&self) -> PathBuf {
        self.folder.join("small.img")
    }

    /// A file that stands for a card.
    fn card(&self, bytes: u64) -> PathBuf {
        let card = self.folder.join("card");
        File::create(&card).unwrap().set_len(bytes).unwrap();
        card
    }

    /// A program of this name in the folder.
    fn program(&self, name: &str, script: &str) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn flash(&self, board: &str, device: &Path, more: &[&str]) -> Output {
        let path =
            format!("{}:/usr/sbin:/sbin:{}", self.folder.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(project("firmware/flash.sh"));
        command.arg(board).arg(device).arg("--image").arg(self.image()).args(more);
        command.env("PATH", path).env("OCELLI_LSBLK", self.folder.join("lsblk")).output().unwrap()
    }
}

fn refused(output: &Output, reason: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "not refused: {text}");
    assert!(text.contains(reason), "{text}");
}

#[test]
#[ignore = "needs bmaptool: firmware/test.sh"]
fn a_card_holds_the_image_afterwards() {
    let bench = Bench::new("flash");
    let card = bench.card(16 << 20);
    let output = bench.flash(BOARD, &card, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (image, written) = (fs::read(bench.image()).unwrap(), fs::read(card).unwrap());
    assert!(written[..image.len()] == image[..]);
    assert_eq!(written.len(), 16 << 20, "the card keeps its size");
}

#[test]
#[ignore = "needs bmaptool: firmware/test.sh"]
fn a_wrong_board_image_or_size_writes_nothing() {
    let bench = Bench::new("flash-refused");
    let card = bench.card(4 << 20);
    refused(
        &bench.flash("nanopi-neo2", &card, &[]),
        "no board 'nanopi-neo2'; boards are: nanopi-neo ",
    );
    refused(&bench.flash("../boards/nanopi-neo", &card, &[]), "no board");
    refused(&bench.flash("rockpro64", &card, &[]), "is not an image of board rockpro64");
    refused(&bench.flash(BOARD, &card, &[]), "has 4 MiB, the image needs 8 MiB");
    refused(
        &bench.flash(BOARD, &card, &["--image", "/nowhere.img"]),
        "no image /nowhere.img; build it",
    );
    assert!(fs::read(card).unwrap().iter().all(|byte| *byte == 0));
}

/// A disk as `lsblk --json` tells of it, with something else changed.
fn disk(changes: Value) -> Value {
    let mut disk = json!({"path": "/dev/sdx", "type": "disk", "size": 8_000_000_000_u64, "rm": true,
        "hotplug": true, "ro": false, "mountpoints": [null], "children": []});
    for (key, value) in changes.as_object().unwrap() {
        disk[key] = value.clone();
    }
    disk
}

#[test]
#[ignore = "needs bmaptool: firmware/test.sh"]
fn disks_that_must_not_be_erased_are_refused() {
    let part = |points: Value| json!({"children": [{"path": "/dev/sdx1", "type": "part", "mountpoints": points}]});
    let nested = json!({"children": [{"path": "/dev/sdx1", "type": "part", "mountpoints": [null],
        "children": [{"path": "/dev/dm-0", "type": "crypt", "mountpoints": ["/"]}]}]});
    let cases = [
        (json!({"path": "/dev/sdy"}), "/dev/sdx is no disk of this machine; disks are: /dev/sdy"),
        (json!({"type": "loop"}), "is a loop, not a whole disk"),
        (
            part(json!(["/media/me/CARD"])),
            "/dev/sdx1 is mounted at /media/me/CARD: unmount it first",
        ),
        (part(json!(["[SWAP]"])), "is the disk that this system runs from"),
        (part(json!([null, "/boot/efi"])), "is the disk that this system runs from"),
        (nested, "is the disk that this system runs from"),
        (json!({"mountpoints": ["/mnt"]}), "/dev/sdx is mounted at /mnt"),
        (json!({"ro": true}), "write-protected"),
        (json!({"size": 1_000_000}), "has 0 MiB, the image needs 8 MiB"),
        (json!({"rm": false, "hotplug": false}), "cannot be removed from this machine"),
        // Nothing against it but that it is not there.
        (json!({}), "/dev/sdx is no block device"),
    ];
    let bench = Bench::new("flash-disks");
    for (changes, reason) in cases {
        let told = json!({"blockdevices": [disk(changes)]});
        bench.program("lsblk", &format!("cat <<'E'\n{told}\nE"));
        refused(&bench.flash(BOARD, Path::new("/dev/sdx"), &[]), reason);
    }
    let fixed = json!({"blockdevices": [disk(json!({"rm": false, "hotplug": false}))]});
    bench.program("lsblk", &format!("cat <<'E'\n{fixed}\nE"));
    let allowed = bench.flash(BOARD, Path::new("/dev/sdx"), &["--fixed-disk-may-be-erased"]);
    refused(&allowed, "/dev/sdx is no block device");
}

#[test]
#[ignore = "needs bmaptool: firmware/test.sh"]
fn a_flipped_byte_in_the_image_or_on_the_card_is_noticed() {
    let bench = Bench::new("flash-flipped");
    let card = bench.card(16 << 20);
    let image = File::options().write(true).open(bench.image()).unwrap();
    image.write_all_at(&[8], (3 << 20) + 100).unwrap();
    refused(&bench.flash(BOARD, &card, &[]), "the image does not fit its .bmap");
    image.write_all_at(&[7], (3 << 20) + 100).unwrap();
    // A card that stores one byte wrongly.
    let bmaptool = run("sh", &["-c", "command -v bmaptool"]);
    let flip = format!(
        "{} \"$@\" && printf x | dd of={} bs=1 seek=3145900 conv=notrunc status=none",
        bmaptool.trim(),
        card.display()
    );
    bench.program("bmaptool", &flip);
    refused(&bench.flash(BOARD, &card, &[]), "gives back something else than was written");
}
