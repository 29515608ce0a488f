//! Reads the files of a package from a folder or ustar tar into memory, and writes the canonical tar.
//!
//! Every byte here comes from outside: sizes are capped before buffers exist, and only regular files with portable
//! relative names get in. Nothing is ever unpacked to disk here.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use ocelli_protocol::manifest::{FILE_NAME, MAX_MANIFEST_BYTES, MAX_PACKAGE_BYTES};

use super::{EntryFault, MAX_FILES, PackageError};

const BLOCK: u64 = 512;
const MAX_NAME_BYTES: usize = 100;
const MAX_LEVELS: usize = 4;

/// The files of a package by name, whole in memory.
#[derive(Debug, Clone)]
pub(super) struct Files {
    source: String,
    separator: char,
    entries: BTreeMap<String, Arc<[u8]>>,
    /// Length of the canonical tar of these entries.
    tar_bytes: u64,
}

impl Files {
    /// All files below a folder.
    pub(super) fn read_folder(folder: &Path) -> Result<Self, PackageError> {
        let mut files = Self::empty(folder.display().to_string(), '/');
        if fs::symlink_metadata(folder.join(FILE_NAME)).is_err() {
            return Err(files.no_manifest());
        }
        files.walk(folder, "", 1)?;
        Ok(files)
    }

    /// All files of a tar, ustar without extensions. Reads at most [`MAX_PACKAGE_BYTES`].
    pub(super) fn read_tar(reader: impl Read, source: String) -> Result<Self, PackageError> {
        let mut files = Self::empty(source, ':');
        let mut archive = tar::Archive::new(reader.take(MAX_PACKAGE_BYTES));
        let entries = archive.entries().map_err(|error| files.damaged(error))?;
        for (count, entry) in entries.raw(true).enumerate() {
            let mut entry = entry.map_err(|error| files.damaged(error))?;
            if count >= MAX_FILES {
                return Err(files.too_many());
            }
            files.insert_entry(&mut entry)?;
        }
        if files.entries.contains_key(FILE_NAME) { Ok(files) } else { Err(files.no_manifest()) }
    }

    /// Writes the one canonical tar of these files: the manifest first, the rest by name, no times, no owners.
    pub(super) fn write_tar(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut builder = tar::Builder::new(out);
        let (manifest, rest): (Vec<_>, Vec<_>) =
            self.entries.iter().partition(|(name, _)| *name == FILE_NAME);
        for (name, bytes) in manifest.into_iter().chain(rest) {
            let mut header = tar::Header::new_ustar();
            header.set_path(name)?;
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_entry_type(tar::EntryType::Regular);
            header.set_cksum();
            builder.append(&header, &bytes[..])?;
        }
        builder.into_inner()?.flush()
    }

    /// Path of a file, for messages.
    pub(super) fn locate(&self, name: &str) -> String {
        format!("{}{}{name}", self.source, self.separator)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Arc<[u8]>> {
        self.entries.get(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.entries.iter().map(|(name, bytes)| (name.as_str(), &bytes[..]))
    }

    fn empty(source: String, separator: char) -> Self {
        Self { source, separator, entries: BTreeMap::new(), tar_bytes: 2 * BLOCK }
    }

    fn walk(&mut self, folder: &Path, prefix: &str, level: usize) -> Result<(), PackageError> {
        let cannot = |error| PackageError::Read { file: folder.display().to_string(), error };
        for entry in fs::read_dir(folder).map_err(cannot)? {
            let entry = entry.map_err(cannot)?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if level > MAX_LEVELS || !is_portable(&name) {
                return Err(self.fault(&name, EntryFault::UnsafePath));
            }
            // The type of the entry itself: a link is not followed.
            let kind = entry.file_type().map_err(cannot)?;
            if kind.is_symlink() {
                return Err(self.fault(&name, EntryFault::Link));
            } else if kind.is_dir() {
                self.walk(&entry.path(), &format!("{name}/"), level + 1)?;
            } else if kind.is_file() {
                let unreadable = |error| PackageError::Read { file: self.locate(&name), error };
                let file = File::open(entry.path()).map_err(unreadable)?;
                let size = file.metadata().map_err(unreadable)?.len();
                self.insert(name, size, file)?;
            } else {
                return Err(self.fault(&name, EntryFault::NotRegular));
            }
        }
        Ok(())
    }

    fn insert_entry(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<(), PackageError> {
        use tar::EntryType as Type;
        let path = entry.path_bytes();
        let name = String::from_utf8_lossy(&path).into_owned();
        let kind = entry.header().entry_type();
        match kind {
            Type::Regular => {}
            // Folders carry nothing, but their names are held to the same rule.
            Type::Directory if is_portable(name.trim_end_matches('/')) => return Ok(()),
            Type::Directory => return Err(self.fault(&name, EntryFault::UnsafePath)),
            Type::Symlink | Type::Link => return Err(self.fault(&name, EntryFault::Link)),
            Type::Char | Type::Block | Type::Fifo | Type::Continuous => {
                return Err(self.fault(&name, EntryFault::NotRegular));
            }
            _ => return Err(self.fault(&name, EntryFault::Extension)),
        }
        if !is_portable(&name) {
            return Err(self.fault(&name, EntryFault::UnsafePath));
        }
        let size = entry.header().entry_size().map_err(|error| self.damaged(error))?;
        self.insert(name, size, entry)
    }

    /// Adds a file of exactly `size` bytes.
    fn insert(&mut self, name: String, size: u64, reader: impl Read) -> Result<(), PackageError> {
        let file = self.locate(&name);
        if self.entries.contains_key(&name) {
            return Err(self.fault(&name, EntryFault::Duplicate));
        }
        if self.entries.len() >= MAX_FILES {
            return Err(self.too_many());
        }
        if name == FILE_NAME && size > MAX_MANIFEST_BYTES {
            return Err(PackageError::TooLarge { file, limit: MAX_MANIFEST_BYTES });
        }
        self.tar_bytes = size
            .checked_next_multiple_of(BLOCK)
            .and_then(|padded| padded.checked_add(BLOCK + self.tar_bytes))
            .filter(|total| *total <= MAX_PACKAGE_BYTES)
            .ok_or(PackageError::TooLarge {
                file: self.source.clone(),
                limit: MAX_PACKAGE_BYTES,
            })?;
        let mut bytes = Vec::new();
        let read = reader.take(size).read_to_end(&mut bytes);
        read.map_err(|error| PackageError::Read { file, error })?;
        if bytes.len() as u64 != size {
            return Err(self.fault(&name, EntryFault::Damaged("it ends inside this file".into())));
        }
        self.entries.insert(name, bytes.into());
        Ok(())
    }

    fn fault(&self, name: &str, fault: EntryFault) -> PackageError {
        let shown: String = name.chars().take(2 * MAX_NAME_BYTES).collect();
        PackageError::Entry { file: self.locate(&shown), fault }
    }

    /// The tar crate reports damage as [`io::Error`] as well: tells it from a failing disk.
    fn damaged(&self, error: io::Error) -> PackageError {
        use io::ErrorKind as Kind;
        let file = self.source.clone();
        match error.kind() {
            Kind::Other | Kind::UnexpectedEof | Kind::InvalidData | Kind::InvalidInput => {
                let fault = EntryFault::Damaged(error.to_string());
                PackageError::Entry { file, fault }
            }
            _ => PackageError::Read { file, error },
        }
    }

    fn too_many(&self) -> PackageError {
        PackageError::TooManyFiles { package: self.source.clone(), limit: MAX_FILES }
    }

    fn no_manifest(&self) -> PackageError {
        PackageError::MissingFile {
            file: self.locate(FILE_NAME),
            named_by: "every model package has one, see docs/models.md".into(),
        }
    }
}

/// Whether a name is relative, stays inside the package, and fits a ustar header and any file system.
pub(super) fn is_portable(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte);
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(letter);
    name.len() <= MAX_NAME_BYTES
        && name.split('/').count() <= MAX_LEVELS
        && name.split('/').all(part)
}
