//! An SD card that is a file: written by `firmware/flash.sh`, its FAT partition edited as on a laptop, its bytes damaged.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ocelli_slot::image::{self, Contents, Keys, Manifest};
use ocelli_slot::layout;
use ocelli_slot::state::Slot;

use crate::machine::Board;
use crate::support::{project, run};

/// Bytes of the cards; QEMU takes only powers of two for SD.
const SIZE: u64 = 1 << 30;

/// A card.
pub struct Card {
    /// The file.
    pub path: PathBuf,
}

impl Card {
    /// A new card with the image of a board, written by `firmware/flash.sh`.
    pub fn flash(board: Board, folder: &Path) -> Self {
        let path = folder.join("card");
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        let image = board.image();
        let flash = project("firmware/flash.sh");
        let (flash, device) = (flash.to_str().unwrap(), path.to_str().unwrap());
        let told = run(flash, &[board.name(), device, "--image", image.to_str().unwrap()]);
        assert!(told.contains("verified"), "{told}");
        Self { path }
    }

    fn fat(&self) -> String {
        format!("{}@@{}", self.path.display(), layout::FAT.0 * layout::SECTOR)
    }

    /// Puts a file onto the FAT partition.
    pub fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        let source = self.path.with_extension("put");
        fs::write(&source, content).unwrap();
        run("mcopy", &["-o", "-i", &self.fat(), source.to_str().unwrap(), &format!("::/{name}")]);
    }

    /// Puts a configuration that reports to this port of this machine.
    pub fn configure(&self, port: u16) {
        let text = format!(
            "[device]\nid = \"dock-3\"\n[[stream]]\nname = \"front\"\nfps = 2\n\
             [model]\npath = \"/usr/share/ocelli/models/tiny\"\n\
             [mqtt]\nhost = \"10.0.2.2\"\nport = {port}\nretry_max = \"2s\"\n"
        );
        self.put("ocelli.toml", text);
    }

    /// A file of the FAT partition.
    pub fn get(&self, name: &str) -> Option<String> {
        let path = format!("::/{name}");
        let output = Command::new("mtype").args(["-i", &self.fat(), &path]).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether these bytes stand anywhere on the FAT partition, files or not.
    pub fn fat_holds(&self, needle: &[u8]) -> bool {
        let mut bytes = vec![0; usize::try_from(layout::FAT.1 * layout::SECTOR).unwrap()];
        self.file().read_exact_at(&mut bytes, layout::FAT.0 * layout::SECTOR).unwrap();
        bytes.windows(needle.len()).any(|window| window == needle)
    }

    fn file(&self) -> File {
        File::options().read(true).write(true).open(&self.path).unwrap()
    }

    /// Flips one bit in the middle of a part of a slot.
    pub fn damage(&self, slot: Slot, part: &str) {
        let start = layout::slot_offset(slot);
        let manifest = image::read_manifest(&self.file(), start, &Keys::default()).unwrap();
        let found = manifest.parts.iter().find(|found| found.name == part).unwrap();
        self.flip(start + layout::part(part).unwrap().0 + found.size / 2);
    }

    /// Flips one bit.
    pub fn flip(&self, at: u64) {
        let mut byte = [0];
        self.file().read_exact_at(&mut byte, at).unwrap();
        self.file().write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    }

    /// Overwrites bytes of the data partition.
    pub fn overwrite_data(&self, at: u64, bytes: &[u8]) {
        self.file().write_all_at(bytes, layout::DATA * layout::SECTOR + at).unwrap();
    }
}

/// The firmware of a board packed again under another version and, if wanted, for another board.
pub fn repacked(board: Board, version: &str, out: &Path) -> Manifest {
    let slot = File::open(board.image().with_extension("slot")).unwrap();
    let manifest = image::verify(&slot, 0, &Keys::default()).unwrap();
    let parts = manifest.parts.iter().map(|part| {
        let mut bytes = vec![0; usize::try_from(part.size).unwrap()];
        slot.read_exact_at(&mut bytes, layout::part(&part.name).unwrap().0).unwrap();
        (part.name.clone(), bytes)
    });
    let contents = Contents {
        board: manifest.board.clone(),
        version: version.to_owned(),
        built: manifest.built,
        parts: parts.collect(),
    };
    let file = File::options().read(true).write(true).create(true).truncate(true).open(out);
    image::pack(&contents, None, &file.unwrap()).unwrap()
}
