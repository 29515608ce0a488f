//! Files with errors that name them; whole files replace old ones by one rename.

use std::io::{ErrorKind, Write};
use std::path::Path;

use crate::Failure;

/// Largest file read, bytes: a package and room.
const MAX_BYTES: u64 = 80 * 1024 * 1024;

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    // A relative name says little to somebody who is in another folder than they think.
    let folder = std::env::current_dir().ok().filter(|_| path.is_relative());
    let looked = match folder {
        Some(folder) if error.kind() == ErrorKind::NotFound => {
            format!(" (looked in {})", folder.display())
        }
        _ => String::new(),
    };
    Failure(format!("{}: {error}{looked}", path.display()))
}

/// A whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    ocelli::file::read_regular(path, MAX_BYTES).map_err(|error| failed(path, &error))
}

/// Who may read a file, and whether it may replace one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// For everybody to read; replaces what is there.
    Public,
    /// For its owner only; never replaces anything.
    Secret,
}

/// Writes a whole file, on the disk when this returns; folders above it are made.
pub(crate) fn write(path: &Path, bytes: &[u8], place: Place) -> Result<(), Failure> {
    let folder = above(path);
    let written = || -> std::io::Result<()> {
        make_folder(folder)?;
        // Temporary files are for their owner only.
        let mut file = tempfile::Builder::new().prefix(".ocelctl-").tempfile_in(folder)?;
        file.write_all(bytes)?;
        if place == Place::Public {
            allow_others(file.as_file())?;
        }
        file.as_file().sync_all()?;
        match place {
            Place::Public => file.persist(path),
            Place::Secret => file.persist_noclobber(path),
        }
        .map_err(|error| error.error)?;
        // The name must survive a power cut too.
        sync_folder(folder)
    };
    written().map_err(|error| failed(path, &error))
}

/// The folder that a path lies in.
fn above(path: &Path) -> &Path {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// Makes a folder and those above it; their names are on the disk when this returns.
fn make_folder(folder: &Path) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    make_folder(above(folder))?;
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_folder(above(folder))
}

fn sync_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(unix)]
fn allow_others(file: &std::fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn allow_others(_: &std::fs::File) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_file_replaces_the_old_one_and_a_secret_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join("made/on/the/way").join(name);
        for place in [Place::Public, Place::Secret] {
            let path = path(&format!("{place:?}"));
            write(&path, b"first", place).unwrap();
            assert_eq!(read(&path).unwrap(), b"first");
            let again = write(&path, b"second", place);
            let (kept, replaced) = match place {
                Place::Public => (b"second".to_vec(), true),
                Place::Secret => (b"first".to_vec(), false),
            };
            assert_eq!((read(&path).unwrap(), again.is_ok()), (kept, replaced), "{place:?}");
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
                assert_eq!(mode, if replaced { 0o644 } else { 0o600 }, "{place:?}");
            }
        }
        // Nothing temporary stays, not even of the refused one.
        let names = std::fs::read_dir(folder.path().join("made/on/the/way")).unwrap();
        assert_eq!(names.count(), 2);
        let taken = write(&path("Public").join("below"), b"", Place::Secret).unwrap_err();
        assert!(taken.0.contains("Public"), "{}", taken.0);
    }
}
