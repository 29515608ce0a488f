//! A whole firmware as one file and as the content of a slot: kernel, initramfs, device tree and root file system at fixed offsets.
//!
//! | bytes | what |
//! |---|---|
//! | 0..512 | boot header: sizes as text for U-Boot's `env import`, CRC-32 of what U-Boot loads, CRC-32 of itself |
//! | 512..516 | length of the manifest, little-endian |
//! | 516..580 | Ed25519 signature of the manifest; zeros: unsigned |
//! | 580..4096 | manifest: JSON, see [`Manifest`] |
//! | [`PARTS`] | the parts |
//!
//! U-Boot checks kernel, initramfs and device tree before it starts them; the initramfs checks everything with [`verify`] before it
//! mounts the root. The format is versioned: a reader refuses a newer one.

use std::io;

use ring::digest::{Context, SHA256, digest};
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::layout::{PARTS, SECTOR, part};
use crate::state::{COVERED, is_sealed, seal};

/// Version of the format.
pub const FORMAT: u32 = 1;
/// Bytes of header and manifest together.
pub const HEAD: usize = 4096;
const SIGNATURE: std::ops::Range<usize> = 516..580;
/// Where U-Boot finds the CRC of each part it loads, each in both byte orders.
const CRCS: [(&str, usize); 3] = [("dtb", 0x1c8), ("initrd", 0x1d0), ("kernel", 0x1d8)];

/// What a firmware holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format.
    pub format: u32,
    /// Name of the board that it runs on.
    pub board: String,
    /// Version of the firmware.
    pub version: String,
    /// When it was built, seconds since 1970.
    pub built: u64,
    /// SHA-256 of the boot header, hexadecimal.
    pub boot: String,
    /// Its parts.
    pub parts: Vec<Part>,
}

/// A part of a firmware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Name as in [`PARTS`].
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

/// Why a firmware is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file or device cannot be read, or ends too early.
    #[error("cannot be read to its end: {0}")]
    Io(#[from] io::Error),
    /// No header or manifest.
    #[error("no firmware: {0}")]
    NoFirmware(&'static str),
    /// Of a newer format.
    #[error("format {0}, this version reads up to {FORMAT}")]
    Format(u32),
    /// Bytes differ from what the manifest says.
    #[error("the {part} is damaged: sha256 {found} instead of {expected}")]
    Damaged {
        /// Which part, or `boot` for the header.
        part: String,
        /// As the manifest says.
        expected: String,
        /// As it is.
        found: String,
    },
    /// A part that has no place or does not fit it.
    #[error("part {0} has no place of that size in a slot")]
    Misfit(String),
    /// There is a key, and no signature.
    #[error("not signed, and this board takes only signed firmware")]
    Unsigned,
    /// The signature is of another key or another manifest.
    #[error("the signature does not fit any of the {0} key(s) of this board")]
    Signature(usize),
}

/// Public keys of which one must have signed. None: any firmware is taken whose digests fit.
#[derive(Debug, Clone, Default)]
pub struct Keys(Vec<Vec<u8>>);

impl Keys {
    /// Keys as text: one in hexadecimal a line; empty lines and lines with `#` are skipped.
    ///
    /// # Errors
    /// The first line that is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines =
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let key = |line: &str| from_hex(line).filter(|key| key.len() == 32);
        let keys =
            lines.map(|line| key(line).ok_or_else(|| format!("no Ed25519 public key: {line}")));
        keys.collect::<Result<_, _>>().map(Self)
    }

    /// With the keys of another list.
    #[must_use]
    pub fn and(mut self, more: Self) -> Self {
        self.0.extend(more.0);
        self
    }

    fn verify_signature(&self, manifest: &[u8], signature: &[u8]) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        if signature.iter().all(|byte| *byte == 0) {
            return Err(Error::Unsigned);
        }
        let fits = |key: &Vec<u8>| {
            UnparsedPublicKey::new(&ED25519, key).verify(manifest, signature).is_ok()
        };
        if self.0.iter().any(fits) { Ok(()) } else { Err(Error::Signature(self.0.len())) }
    }
}

/// Reads header and manifest of the firmware that begins at this offset, and checks header and signature, not the parts.
///
/// # Errors
/// What is wrong with it.
pub fn read_manifest(disk: &impl Disk, offset: u64, keys: &Keys) -> Result<Manifest, Error> {
    let mut head = vec![0; HEAD];
    disk.read_at(&mut head, offset)?;
    let (boot, rest) = head.split_at(SECTOR as usize);
    let boot: &[u8; SECTOR as usize] = boot.try_into().expect("split at a sector");
    if !is_sealed(boot) {
        return Err(Error::NoFirmware("its boot header is damaged or missing"));
    }
    let length = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let bytes = rest[68..].get(..length).ok_or(Error::NoFirmware("its manifest is too long"))?;
    keys.verify_signature(bytes, &head[SIGNATURE])?;
    let manifest: Manifest =
        serde_json::from_slice(bytes).map_err(|_| match serde_json::from_slice(bytes) {
            Ok(Versioned { format }) if format > FORMAT => Error::Format(format),
            _ => Error::NoFirmware("its manifest is damaged"),
        })?;
    if manifest.format > FORMAT {
        return Err(Error::Format(manifest.format));
    }
    expect_digest("boot", &manifest.boot, digest(&SHA256, boot).as_ref())?;
    for part in &manifest.parts {
        place(part)?;
    }
    Ok(manifest)
}

#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

/// Reads and checks everything: header, signature, and every byte of every part.
///
/// # Errors
/// What is wrong with it.
pub fn verify(disk: &impl Disk, offset: u64, keys: &Keys) -> Result<Manifest, Error> {
    let manifest = read_manifest(disk, offset, keys)?;
    let mut buffer = vec![0; 256 << 10];
    for part in &manifest.parts {
        let (at, _) = place(part)?;
        let mut context = Context::new(&SHA256);
        let mut done = 0;
        while done < part.size {
            let chunk = usize::try_from(part.size - done)
                .map_or(buffer.len(), |left| left.min(buffer.len()));
            disk.read_at(&mut buffer[..chunk], offset + at + done)?;
            context.update(&buffer[..chunk]);
            done += chunk as u64;
        }
        expect_digest(&part.name, &part.sha256, context.finish().as_ref())?;
    }
    Ok(manifest)
}

/// Offset of a part in its slot, and its room.
pub(crate) fn place(found: &Part) -> Result<(u64, u64), Error> {
    part(&found.name)
        .filter(|(_, room)| found.size <= *room)
        .ok_or_else(|| Error::Misfit(found.name.clone()))
}

fn expect_digest(part: &str, expected: &str, found: &[u8]) -> Result<(), Error> {
    let found = hex(found);
    if found == expected {
        return Ok(());
    }
    Err(Error::Damaged { part: part.to_owned(), expected: expected.to_owned(), found })
}

/// What [`pack`] makes a firmware of.
#[derive(Debug, Clone)]
pub struct Contents {
    /// Name of the board.
    pub board: String,
    /// Version of the firmware.
    pub version: String,
    /// When it was built, seconds since 1970.
    pub built: u64,
    /// Names and bytes of the parts; the device tree may be absent.
    pub parts: Vec<(String, Vec<u8>)>,
}

/// Writes a firmware to an empty file.
///
/// # Errors
/// A part that does not fit its place, and the disk's.
pub fn pack(
    contents: &Contents,
    key: Option<&Ed25519KeyPair>,
    to: &impl Disk,
) -> Result<Manifest, Error> {
    let mut parts: Vec<Part> = Vec::new();
    for (name, bytes) in &contents.parts {
        let part = Part {
            name: name.clone(),
            size: bytes.len() as u64,
            sha256: hex(digest(&SHA256, bytes).as_ref()),
        };
        to.write_at(bytes, place(&part)?.0)?;
        parts.push(part);
    }
    let boot = boot_header(contents)?;
    let manifest = Manifest {
        format: FORMAT,
        board: contents.board.clone(),
        version: contents.version.clone(),
        built: contents.built,
        boot: hex(digest(&SHA256, &boot).as_ref()),
        parts,
    };
    let text = serde_json::to_vec(&manifest).map_err(io::Error::other)?;
    let mut head = vec![0; HEAD];
    let room = head.len() - SIGNATURE.end;
    if text.len() > room {
        return Err(Error::NoFirmware("its manifest is too long"));
    }
    head[..boot.len()].copy_from_slice(&boot);
    head[512..516].copy_from_slice(&u32::try_from(text.len()).expect("below 4096").to_le_bytes());
    if let Some(key) = key {
        head[SIGNATURE].copy_from_slice(key.sign(&text).as_ref());
    }
    head[SIGNATURE.end..][..text.len()].copy_from_slice(&text);
    to.write_at(&head, 0)?;
    to.sync()?;
    Ok(manifest)
}

/// What U-Boot reads: per part its length in sectors and bytes, hexadecimal as its commands take them, and CRCs.
fn boot_header(contents: &Contents) -> Result<[u8; SECTOR as usize], Error> {
    let mut sector = [0; SECTOR as usize];
    let mut text = format!("oc_board={}\noc_format={FORMAT}\n", contents.board);
    for (name, at) in CRCS {
        let bytes = contents.parts.iter().find(|(known, _)| known == name).map(|(_, bytes)| bytes);
        let size = bytes.map_or(0, Vec::len);
        let sectors = size.div_ceil(SECTOR as usize);
        text.push_str(&format!("oc_{name}_n={sectors:x}\noc_{name}_size={size:x}\n"));
        let crc = bytes.map_or(0, |bytes| crc32fast::hash(bytes));
        sector[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        sector[at + 4..at + 8].copy_from_slice(&crc.to_be_bytes());
    }
    let version: String = contents.version.chars().filter(|c| c.is_ascii_graphic()).collect();
    text.push_str(&format!("oc_version={version}\n"));
    if text.len() >= CRCS[0].1 {
        return Err(Error::NoFirmware("names of board and version are too long"));
    }
    sector[..text.len()].copy_from_slice(text.as_bytes());
    debug_assert!(
        CRCS.iter()
            .all(|(name, at)| *at < COVERED && PARTS.iter().any(|(known, ..)| known == name))
    );
    seal(&mut sector);
    Ok(sector)
}

/// Bytes as lower-case hexadecimal text.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use ring::signature::KeyPair;

    use super::*;
    use crate::disk::tests::Memory;

    pub(crate) fn contents(version: &str) -> Contents {
        let part = |name: &str, size: usize| {
            let bytes = (0..size).map(|at| u8::try_from((at * 7 + size) % 251).unwrap()).collect();
            (name.to_owned(), bytes)
        };
        Contents {
            board: "test".to_owned(),
            version: version.to_owned(),
            built: 1_795_251_600,
            parts: vec![
                part("dtb", 900),
                part("initrd", 5000),
                part("kernel", 9001),
                part("root", 8192),
            ],
        }
    }

    pub(crate) fn key(seed: u8) -> (Ed25519KeyPair, Keys) {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let keys = Keys::parse(&hex(pair.public_key().as_ref())).unwrap();
        (pair, keys)
    }

    pub(crate) fn packed(version: &str, key: Option<&Ed25519KeyPair>) -> Memory {
        let disk = Memory::default();
        pack(&contents(version), key, &disk).unwrap();
        disk
    }

    #[test]
    fn a_firmware_reads_as_it_was_packed() {
        let manifest = verify(&packed("1.2.3", None), 0, &Keys::default()).unwrap();
        assert_eq!((manifest.version.as_str(), manifest.parts.len()), ("1.2.3", 4));
    }

    #[test]
    fn u_boot_finds_sizes_and_crcs_in_the_header() {
        let disk = packed("1", None);
        let bytes = disk.read(0, 512);
        let text = String::from_utf8_lossy(&bytes[..0x1c8]);
        assert!(text.contains("oc_kernel_n=12\noc_kernel_size=2329\n"), "{text}");
        let crc = crc32fast::hash(&contents("1").parts[2].1);
        assert_eq!(bytes[0x1d8..0x1dc], crc.to_le_bytes());
        assert_eq!(bytes[0x1dc..0x1e0], crc.to_be_bytes());
    }

    #[test]
    fn a_flipped_byte_is_refused_wherever_it_is() {
        let disk = packed("1", None);
        let text = read_manifest(&disk, 0, &Keys::default()).unwrap();
        let manifest_end = 580 + serde_json::to_vec(&text).unwrap().len() as u64;
        let mut places: Vec<u64> =
            (0..504).step_by(5).chain(512..516).chain((580..manifest_end).step_by(3)).collect();
        for (name, bytes) in contents("1").parts {
            let (start, length) = (part(&name).unwrap().0, bytes.len() as u64);
            places.extend([start, start + length / 2, start + length - 1]);
        }
        let mut taken = Vec::new();
        for at in places {
            disk.flip(at, 1);
            // The version and the time of build are told to people only; without a key nothing vouches for them.
            let harmless = verify(&disk, 0, &Keys::default())
                .is_ok_and(|found| found.boot == text.boot && found.parts == text.parts);
            if verify(&disk, 0, &Keys::default()).is_ok() && !harmless {
                taken.push(at);
            }
            disk.flip(at, 1);
        }
        assert!(taken.is_empty(), "{taken:?}");
    }

    #[test]
    fn a_file_that_ends_early_is_refused() {
        let whole = tempfile::tempfile().unwrap();
        pack(&contents("1"), None, &whole).unwrap();
        let length = whole.metadata().unwrap().len();
        assert!(verify(&whole, 0, &Keys::default()).is_ok());
        for length in [length - 1, 33 << 20, 8 << 20, HEAD as u64, HEAD as u64 - 1, 512, 0] {
            whole.set_len(length.min(whole.metadata().unwrap().len())).unwrap();
            let found = verify(&whole, 0, &Keys::default());
            assert!(matches!(found, Err(Error::Io(_))), "{length} bytes: {found:?}");
        }
    }

    #[test]
    fn with_a_key_every_byte_of_the_manifest_counts() {
        let (pair, keys) = key(7);
        let disk = packed("1", Some(&pair));
        let length = serde_json::to_vec(&verify(&disk, 0, &keys).unwrap()).unwrap().len() as u64;
        for at in (512..580 + length).filter(|at| at % 3 == 0) {
            disk.flip(at, 1);
            assert!(verify(&disk, 0, &keys).is_err(), "byte {at}");
            disk.flip(at, 1);
        }
    }

    #[test]
    fn only_a_signature_of_a_known_key_is_taken() {
        let ((pair, keys), (_, others)) = (key(7), key(8));
        assert!(matches!(verify(&packed("1", None), 0, &keys), Err(Error::Unsigned)));
        let signed = packed("1", Some(&pair));
        assert!(matches!(verify(&signed, 0, &others), Err(Error::Signature(1))));
        assert!(verify(&signed, 0, &others.clone().and(keys)).is_ok(), "one of two");
        assert!(verify(&signed, 0, &Keys::default()).is_ok(), "a board without a key");
    }

    #[test]
    fn keys_are_hexadecimal_lines() {
        assert!(Keys::parse("# ours\n\n").unwrap().0.is_empty());
        assert!(Keys::parse("abcd").is_err());
        assert!(Keys::parse(&"g0".repeat(32)).is_err());
        assert!(Keys::parse(&"é".repeat(32)).is_err());
    }

    #[test]
    fn a_newer_format_is_told_apart_from_damage() {
        let disk = packed("1", None);
        let mut manifest =
            serde_json::to_value(verify(&disk, 0, &Keys::default()).unwrap()).unwrap();
        manifest["format"] = 2.into();
        manifest["compression"] = "zstd".into();
        let text = serde_json::to_vec(&manifest).unwrap();
        disk.write_at(&text, 580).unwrap();
        disk.write_at(&u32::try_from(text.len()).unwrap().to_le_bytes(), 512).unwrap();
        assert!(matches!(verify(&disk, 0, &Keys::default()), Err(Error::Format(2))));
    }

    #[test]
    fn a_part_larger_than_its_place_is_not_packed() {
        let mut large = contents("1");
        large.parts[0].1 = vec![0; (448 << 10) + 1];
        let disk = Memory::default();
        assert!(matches!(pack(&large, None, &disk), Err(Error::Misfit(name)) if name == "dtb"));
    }
}
