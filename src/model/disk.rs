//! The few operations of a file system that updates need, as a port: each may be the last before a power cut.
//!
//! Paths are relative to one folder and made of constants and checked names only. Nothing counts as kept before
//! [`Disk::sync`] (content) and [`Disk::sync_folder`] (names) have answered.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
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

    /// Opens a file of ours: never what a link points to, and never a pipe, whose other end would be waited for, or a device.
    fn open_file(&self, file: &str, options: &mut OpenOptions) -> io::Result<File> {
        let opened =
            options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(self.path(file))?;
        if opened.metadata()?.is_file() {
            return Ok(opened);
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"))
    }

    fn open_to_read(&self, file: &str) -> io::Result<File> {
        self.open_file(file, OpenOptions::new().read(true))
    }

    /// What is no file has no business here, and gives way.
    fn open_to_write(&self, file: &str, options: &mut OpenOptions) -> io::Result<File> {
        let foreign = |metadata: fs::Metadata| !metadata.is_file() && !metadata.is_dir();
        if fs::symlink_metadata(self.path(file)).is_ok_and(foreign) {
            log::warn!("update: {file} is a link, pipe or device; it is removed");
            fs::remove_file(self.path(file))?;
        }
        self.open_file(file, options.create(true).write(true))
    }
}

/// The error says which file it is about.
fn named<T>(file: &str, outcome: io::Result<T>) -> io::Result<T> {
    outcome.map_err(|error| io::Error::new(error.kind(), format!("{file}: {error}")))
}

impl Disk for Folder {
    fn read(&self, file: &str, limit: u64) -> io::Result<Vec<u8>> {
        let read = || crate::file::read_limited(self.open_to_read(file)?, limit);
        named(file, read())
    }

    fn read_at(&self, file: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let read = || {
            let mut bytes = vec![0; length];
            self.open_to_read(file)?.read_exact_at(&mut bytes, offset)?;
            Ok(bytes)
        };
        named(file, read())
    }

    fn write(&mut self, file: &str, bytes: &[u8]) -> io::Result<()> {
        let write =
            || self.open_to_write(file, OpenOptions::new().truncate(true))?.write_all(bytes);
        named(file, write())
    }

    fn write_at(&mut self, file: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let write = || {
            let opened = self.open_to_write(file, OpenOptions::new().truncate(false))?;
            opened.write_all_at(bytes, offset)
        };
        named(file, write())
    }

    fn set_length(&mut self, file: &str, length: u64) -> io::Result<()> {
        let set = || self.open_to_write(file, OpenOptions::new().truncate(false))?.set_len(length);
        named(file, set())
    }

    fn sync(&mut self, file: &str) -> io::Result<()> {
        named(file, self.open_to_read(file).and_then(|opened| opened.sync_all()))
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        named(to, fs::rename(self.path(from), self.path(to)))
    }

    fn remove(&mut self, file: &str) -> io::Result<()> {
        match fs::remove_file(self.path(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => named(file, Err(error)),
            _ => Ok(()),
        }
    }

    fn sync_folder(&mut self, folder: &str) -> io::Result<()> {
        let path = self.path(folder);
        let synced = File::open(&path).and_then(|opened| opened.sync_all());
        named(&path.display().to_string(), synced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_pipes_are_neither_read_nor_written_to() {
        let outside = tempfile::NamedTempFile::new().unwrap();
        fs::write(outside.path(), "mine").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut disk = Folder::open(folder.path(), &[]).unwrap();
        type Make<'a> = &'a dyn Fn(&std::path::Path);
        let make: [(&str, Make<'_>); 2] = [
            ("link", &|path| std::os::unix::fs::symlink(outside.path(), path).unwrap()),
            ("pipe", &|path| {
                assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
            }),
        ];
        for (name, make) in make {
            // None of these waits for the other end of the pipe.
            make(&disk.path(name));
            let error = disk.read(name, 100).unwrap_err();
            assert!(error.to_string().starts_with(&format!("{name}: ")), "{error}");
            disk.read_at(name, 0, 4).unwrap_err();
            disk.sync(name).unwrap_err();
            disk.write_at(name, 0, b"ours").unwrap();
            assert_eq!(disk.read(name, 100).unwrap(), b"ours");
            disk.remove(name).unwrap();
            make(&disk.path(name));
            disk.set_length(name, 9).unwrap();
            assert_eq!(disk.read(name, 100).unwrap(), [0; 9]);
            disk.remove(name).unwrap();
            make(&disk.path(name));
            replace(&mut disk, name, b"all").unwrap();
            assert_eq!(disk.read(name, 100).unwrap(), b"all");
        }
        assert_eq!(fs::read(outside.path()).unwrap(), b"mine");
    }

    #[test]
    fn errors_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut disk = Folder::open(folder.path(), &[]).unwrap();
        fs::create_dir(disk.path("incoming.tar")).unwrap();
        for outcome in [
            disk.write("incoming.tar", b"x"),
            disk.set_length("incoming.tar", 5),
            disk.remove("incoming.tar"),
            disk.read("incoming.tar", 5).map(drop),
        ] {
            let error = outcome.unwrap_err().to_string();
            assert!(error.starts_with("incoming.tar: "), "{error}");
        }
        let absent = disk.read("absent", 5).unwrap_err();
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
    }
}
