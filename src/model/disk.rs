//! The few operations of a file system that updates need, as a port: each may be the last before a power cut.
//!
//! Paths are relative to one folder and made of constants and checked names only. Nothing counts as kept before
//! [`Disk::sync`] (content) and [`Disk::sync_folder`] (names) have answered.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

/// A folder for everything that updates keep.
pub trait Disk: Send {
    /// Whole content; [`io::ErrorKind::FileTooLarge`] beyond `limit` bytes.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::NotFound`] for a file that is not there.
    fn read(&self, file: &str, limit: u64) -> io::Result<Vec<u8>>;

    /// `length` bytes from `offset`.
    ///
    /// # Errors
    /// As [`Disk::read`]; [`io::ErrorKind::UnexpectedEof`] when there are fewer.
    fn read_at(&self, file: &str, offset: u64, length: usize) -> io::Result<Vec<u8>>;

    /// Makes the file, or replaces its content.
    ///
    /// # Errors
    /// What the system says.
    fn write(&mut self, file: &str, bytes: &[u8]) -> io::Result<()>;

    /// Writes into a file, made when it is absent; what lies between is zeros.
    ///
    /// # Errors
    /// What the system says.
    fn write_at(&mut self, file: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts a file, or fills it up with zeros; made when it is absent.
    ///
    /// # Errors
    /// What the system says.
    fn set_length(&mut self, file: &str, length: u64) -> io::Result<()>;

    /// Returns when the content is on the medium.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&mut self, file: &str) -> io::Result<()>;

    /// Gives a file another name, replacing what had it.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file; none is no error.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&mut self, file: &str) -> io::Result<()>;

    /// Returns when the names in a folder are on the medium; `""` is the top.
    ///
    /// # Errors
    /// What the system says.
    fn sync_folder(&mut self, folder: &str) -> io::Result<()>;
}

/// Replaces a whole file so that a power cut leaves the old or the new content.
///
/// # Errors
/// What the system says; the old content is then still there.
pub fn replace(disk: &mut dyn Disk, file: &str, bytes: &[u8]) -> io::Result<()> {
    let next = format!("{file}.next");
    disk.write(&next, bytes)?;
    disk.sync(&next)?;
    disk.rename(&next, file)?;
    disk.sync_folder(folder_of(file))
}

/// Removes a file durably.
///
/// # Errors
/// What the system says.
pub fn remove(disk: &mut dyn Disk, file: &str) -> io::Result<()> {
    disk.remove(file)?;
    disk.sync_folder(folder_of(file))
}

fn folder_of(file: &str) -> &str {
    file.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// A real folder.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// The folder, made with `subfolders` when it is not there.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(root: impl Into<PathBuf>, subfolders: &[&str]) -> io::Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root)?;
        for folder in subfolders {
            fs::create_dir_all(root.join(folder))?;
        }
        File::open(&root)?.sync_all()?;
        Ok(Self { root })
    }

    /// Where a file lies.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }

    fn open_to_write(&self, file: &str) -> io::Result<File> {
        OpenOptions::new().create(true).write(true).truncate(false).open(self.path(file))
    }
}

impl Disk for Folder {
    fn read(&self, file: &str, limit: u64) -> io::Result<Vec<u8>> {
        crate::file::read_regular(&self.path(file), limit)
    }

    fn read_at(&self, file: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut file = File::open(self.path(file))?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = vec![0; length];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn write(&mut self, file: &str, bytes: &[u8]) -> io::Result<()> {
        fs::write(self.path(file), bytes)
    }

    fn write_at(&mut self, file: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.open_to_write(file)?;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)
    }

    fn set_length(&mut self, file: &str, length: u64) -> io::Result<()> {
        self.open_to_write(file)?.set_len(length)
    }

    fn sync(&mut self, file: &str) -> io::Result<()> {
        File::open(self.path(file))?.sync_all()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&mut self, file: &str) -> io::Result<()> {
        match fs::remove_file(self.path(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync_folder(&mut self, folder: &str) -> io::Result<()> {
        File::open(self.path(folder))?.sync_all()
    }
}
