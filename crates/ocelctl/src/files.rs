//! Files with errors that name them; whole files replace old ones by one rename.

use std::io::Write;
use std::path::Path;

use crate::Failure;

/// Largest file read, bytes: a package and room.
const MAX_BYTES: u64 = 80 * 1024 * 1024;

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure(format!("{}: {error}", path.display()))
}

/// A whole file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    ocelli::file::read_regular(path, MAX_BYTES).map_err(|error| failed(path, &error))
}

/// Writes a whole file; folders above it are made.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let written = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let mut file = tempfile::Builder::new().prefix(".ocelctl-").tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        allow_others(file.as_file())?;
        file.persist(path).map_err(|error| error.error)?;
        std::fs::File::open(folder)?.sync_all()
    };
    written().map_err(|error| failed(path, &error))
}

/// Writes a new file that nobody else may read.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let written = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        // Temporary files are for their owner only.
        let mut file = tempfile::Builder::new().prefix(".ocelctl-").tempfile_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist_noclobber(path).map_err(|error| error.error)?;
        Ok(())
    };
    written().map_err(|error| failed(path, &error))
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
