//! Secrets from files: the only way a secret enters the agent.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::file::open_regular;

/// Longest password, bytes.
const MAX_PASSWORD_BYTES: u64 = 1024;

/// Why there is no password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The file cannot be read.
    #[error("{}: {detail}; mqtt.password_file must name a file that the agent's user can read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        detail: String,
    },
    /// The file holds no password.
    #[error("{}: {detail}; put the password in its first line", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it holds instead.
        detail: &'static str,
    },
}

/// The first line of a file.
///
/// # Errors
/// [`SecretError`] names the file, never its content.
pub fn read_password(path: &Path) -> Result<String, SecretError> {
    let unreadable = |error: std::io::Error| SecretError::Unreadable {
        path: path.to_owned(),
        detail: error.to_string(),
    };
    let malformed = |detail| SecretError::Malformed { path: path.to_owned(), detail };
    let mut bytes = Vec::new();
    let file = open_regular(path).map_err(unreadable)?;
    file.take(MAX_PASSWORD_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_PASSWORD_BYTES {
        return Err(malformed("longer than 1024 bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| malformed("not UTF-8 text"))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(malformed("the first line is empty")),
    }
}

/// Whether users other than the owner may read a file; the hint says what to do about it.
#[must_use]
pub fn readable_by_others(path: &Path) -> Option<String> {
    use std::os::unix::fs::PermissionsExt;
    let mode = path.metadata().ok()?.permissions().mode() & 0o777;
    (mode & 0o044 != 0).then(|| {
        format!(
            "{} can be read by other users (mode {mode:04o}); run: chmod 600 {0}",
            path.display()
        )
    })
}
