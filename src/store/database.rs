//! Opening the database: settings, schema versions, and what happens to a damaged or newer file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use crate::store::{DATABASE_FILE, StoreError, audit, outbox, results};

/// `user_version` of the schema below.
const SCHEMA_VERSION: i64 = 2;
/// Damaged files kept; older ones make room.
const DAMAGED_KEPT: usize = 3;

/// An open database.
pub(super) struct Opened {
    pub(super) connection: Connection,
    /// Where a damaged predecessor went, and what was wrong with it.
    pub(super) moved: Option<(PathBuf, String)>,
}

/// Opens the database in `dir`, moving a damaged one aside.
pub(super) fn open(dir: &Path) -> Result<Opened, StoreError> {
    let path = dir.join(DATABASE_FILE);
    match try_open(&path) {
        Ok(connection) => Ok(Opened { connection, moved: None }),
        Err(Failure::Newer(found)) => Err(StoreError::Newer {
            path: path.display().to_string(),
            found,
            known: SCHEMA_VERSION,
        }),
        Err(Failure::Sql(error)) if is_damage(&error) => {
            let kept = move_aside(&path).map_err(|io| unavailable(&path, &io))?;
            match try_open(&path) {
                Ok(connection) => Ok(Opened { connection, moved: Some((kept, error.to_string())) }),
                Err(Failure::Newer(_)) => unreachable!("a new file has no version"),
                Err(Failure::Sql(error)) => Err(unavailable(&path, &error)),
            }
        }
        Err(Failure::Sql(error)) => Err(unavailable(&path, &error)),
    }
}

/// The store's error for something that may pass.
pub(super) fn unavailable(path: &Path, error: &(dyn std::error::Error + 'static)) -> StoreError {
    let code = error.downcast_ref().and_then(rusqlite::Error::sqlite_error_code);
    let cure = match code {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "end the other program that has it open"
        }
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            "make its folder writable"
        }
        _ => "free space or replace the disk",
    };
    let (path, detail) = (path.display().to_string(), format!("{error}; {cure}"));
    StoreError::Unavailable { path, detail }
}

/// Whether the file itself is bad, so that no retry helps.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

enum Failure {
    Newer(i64),
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

fn try_open(path: &Path) -> Result<Connection, Failure> {
    let mut connection = Connection::open(path)?;
    // A second agent on the same store is refused instead of corrupting numbers.
    connection.pragma_update(None, "locking_mode", "exclusive")?;
    connection.busy_timeout(Duration::from_secs(2))?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if version > SCHEMA_VERSION {
        return Err(Failure::Newer(version));
    }
    // One fsync a commit, and a torn tail of the log is recognised by its checksums and cut off.
    connection.query_row("PRAGMA journal_mode = wal", [], |row| row.get::<_, String>(0))?;
    connection.pragma_update(None, "synchronous", "full")?;
    // The log is cut to this after a checkpoint; it must not fill the disk.
    connection.query_row("PRAGMA journal_size_limit = 4194304", [], |row| row.get::<_, i64>(0))?;
    connection.pragma_update(None, "cache_size", -1024)?;
    connection.pragma_update(None, "temp_store", "memory")?;
    if version > 0 {
        check(&connection)?;
    }
    migrate(&mut connection, version)?;
    Ok(connection)
}

/// Reads the whole file once. Its size is bounded by the outbox and the kept results.
fn check(connection: &Connection) -> Result<(), rusqlite::Error> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" {
        return Ok(());
    }
    let corrupt = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    Err(rusqlite::Error::SqliteFailure(corrupt, Some(verdict)))
}

fn migrate(connection: &mut Connection, version: i64) -> Result<(), rusqlite::Error> {
    if version == SCHEMA_VERSION {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    if version < 1 {
        for schema in [outbox::SCHEMA, results::SCHEMA, audit::SCHEMA] {
            transaction.execute_batch(schema)?;
        }
    }
    transaction.execute_batch(audit::SEALS)?;
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()
}

/// Renames the database and its log to `…damaged-<n>`, n rising.
fn move_aside(path: &Path) -> std::io::Result<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let prefix = format!("{DATABASE_FILE}.damaged-");
    let mut numbers: Vec<u64> = fs::read_dir(folder)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_prefix(&prefix)?.parse().ok())
        .collect();
    numbers.sort_unstable();
    let kept = folder.join(format!("{prefix}{}", numbers.last().map_or(1, |last| last + 1)));
    fs::rename(path, &kept)?;
    let log = |path: &Path| PathBuf::from(format!("{}-wal", path.display()));
    if log(path).exists() {
        fs::rename(log(path), log(&kept))?;
    }
    let surplus = (numbers.len() + 1).saturating_sub(DAMAGED_KEPT);
    for number in numbers.into_iter().take(surplus) {
        let old = folder.join(format!("{prefix}{number}"));
        // A file that stays costs space, nothing else.
        let _ = fs::remove_file(log(&old));
        let _ = fs::remove_file(old);
    }
    fs::File::open(folder)?.sync_all()?;
    Ok(kept)
}
