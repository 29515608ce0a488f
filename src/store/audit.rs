//! The audit log: rows that are only ever added, each holding the digest of the one before.

use ring::digest::{Context, SHA256};
use rusqlite::{Connection, OptionalExtension, Result, params};

use crate::clock::UnixTime;

/// Digest before the first row.
const ORIGIN: [u8; 32] = [0; 32];

/// Something that was decided or asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub at: UnixTime,
    /// Kind of event, kebab-case: `command`.
    pub kind: String,
    /// Whom or what it concerns.
    pub subject: String,
    /// Everything else, as JSON or plain text.
    pub detail: String,
}

/// A row of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Position, from 1, without holes.
    pub number: u64,
    /// What happened.
    pub entry: AuditEntry,
    /// Digest of the row before; zeros for the first.
    pub previous: [u8; 32],
    /// SHA-256 over `previous`, `number` and the entry, see [`AuditRow::digest_of`].
    pub digest: [u8; 32],
}

impl AuditRow {
    /// SHA-256 of: previous digest, number, time in microseconds (both 8 bytes, big endian), then kind, subject and
    /// detail, each behind its length (8 bytes, big endian).
    #[must_use]
    pub fn digest_of(previous: &[u8; 32], number: u64, entry: &AuditEntry) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        context.update(previous);
        context.update(&number.to_be_bytes());
        context.update(&entry.at.as_micros().to_be_bytes());
        for text in [&entry.kind, &entry.subject, &entry.detail] {
            context.update(&(text.len() as u64).to_be_bytes());
            context.update(text.as_bytes());
        }
        context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }
}

/// Where the log ends: the digest covers every row up to `number`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditHead {
    /// Number of the newest row; 0 while there is none.
    pub number: u64,
    /// Its digest; zeros while there is none.
    pub digest: [u8; 32],
}

/// Rows cannot be changed or removed through SQL.
pub(super) const SCHEMA: &str = "
    CREATE TABLE audit (number INTEGER PRIMARY KEY, at INTEGER NOT NULL, kind TEXT NOT NULL,
        subject TEXT NOT NULL, detail TEXT NOT NULL, previous BLOB NOT NULL, digest BLOB NOT NULL);
    CREATE TRIGGER audit_keeps BEFORE UPDATE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;
    CREATE TRIGGER audit_stays BEFORE DELETE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;";

/// Number and digest of the newest row.
pub(super) fn head(connection: &Connection) -> Result<AuditHead> {
    let newest = connection
        .prepare_cached("SELECT number, digest FROM audit ORDER BY number DESC LIMIT 1")?
        .query_row([], |row| Ok(AuditHead { number: row.get(0)?, digest: row.get(1)? }))
        .optional()?;
    Ok(newest.unwrap_or(AuditHead { number: 0, digest: ORIGIN }))
}

/// Adds a row behind the newest.
pub(super) fn append(connection: &Connection, entry: &AuditEntry) -> Result<AuditRow> {
    let AuditHead { number: newest, digest: previous } = head(connection)?;
    let number = newest + 1;
    let digest = AuditRow::digest_of(&previous, number, entry);
    connection.prepare_cached("INSERT INTO audit VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(
        params![
            number,
            entry.at.as_micros(),
            entry.kind,
            entry.subject,
            entry.detail,
            previous,
            digest
        ],
    )?;
    Ok(AuditRow { number, entry: entry.clone(), previous, digest })
}

/// Rows after `number`, oldest first, at most `limit`.
pub(super) fn after(connection: &Connection, number: u64, limit: u32) -> Result<Vec<AuditRow>> {
    connection
        .prepare_cached("SELECT * FROM audit WHERE number > ?1 ORDER BY number LIMIT ?2")?
        .query_map(params![number, limit], |row| {
            Ok(AuditRow {
                number: row.get(0)?,
                entry: AuditEntry {
                    at: UnixTime::from_micros(row.get(1)?),
                    kind: row.get(2)?,
                    subject: row.get(3)?,
                    detail: row.get(4)?,
                },
                previous: row.get(5)?,
                digest: row.get(6)?,
            })
        })?
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_form_a_chain_and_cannot_be_changed() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        for detail in ["a", "b", "c"] {
            let entry = AuditEntry {
                at: UnixTime::from_micros(7),
                kind: "command".into(),
                subject: "ping".into(),
                detail: detail.into(),
            };
            append(&connection, &entry).unwrap();
        }
        let rows = after(&connection, 0, 10).unwrap();
        assert_eq!(rows.len(), 3);
        let mut previous = ORIGIN;
        for row in &rows {
            assert_eq!(row.previous, previous);
            assert_eq!(row.digest, AuditRow::digest_of(&previous, row.number, &row.entry));
            previous = row.digest;
        }
        assert_eq!(head(&connection).unwrap(), AuditHead { number: 3, digest: previous });
        for sql in ["UPDATE audit SET detail = 'x'", "DELETE FROM audit"] {
            let error = connection.execute(sql, []).unwrap_err().to_string();
            assert!(error.contains("only added to"), "{error}");
        }
    }
}
