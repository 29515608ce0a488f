//! The audit log: rows that are only ever added, each holding the digest of the one before.
//!
//! The log is bounded: its oldest rows are removed in segments, and of each segment the number and digest of its last row stay, so
//! that the chain goes on from there.

use ring::digest::{Context, SHA256};
use rusqlite::{Connection, OptionalExtension, Result, params};

use crate::clock::UnixTime;

/// Bytes of rows kept at most; a segment is removed beyond them.
const MAX_BYTES: i64 = 4 * 1024 * 1024;
/// Bytes of a segment.
const SEGMENT_BYTES: i64 = 256 * 1024;
/// The size is looked at once in so many rows.
const LOOK_EVERY: u64 = 64;
/// Size of a row: its texts, and what the rest takes about.
const ROW_BYTES: &str = "length(kind) + length(subject) + length(detail) + 120";

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

/// Schema version 2: of a removed segment the last row's number and digest stay; rows up to there may go.
pub(super) const SEALS: &str = "
    CREATE TABLE audit_seal (number INTEGER PRIMARY KEY, digest BLOB NOT NULL);
    CREATE TRIGGER audit_seal_keeps BEFORE UPDATE ON audit_seal
        BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;
    CREATE TRIGGER audit_seal_stays BEFORE DELETE ON audit_seal
        BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;
    DROP TRIGGER audit_stays;
    CREATE TRIGGER audit_stays BEFORE DELETE ON audit
        WHEN OLD.number > (SELECT coalesce(max(number), 0) FROM audit_seal)
        BEGIN SELECT RAISE(ABORT, 'the audit log is only added to'); END;";

/// Removes the oldest segments until the rest is within `most` bytes.
fn bound(connection: &Connection, most: i64, segment: i64) -> Result<()> {
    let total: i64 = connection.query_row(
        &format!("SELECT coalesce(sum({ROW_BYTES}), 0) FROM audit"),
        [],
        |row| row.get(0),
    )?;
    let mut surplus = total - most;
    while surplus > 0 {
        let last: Option<(u64, i64)> = connection
            .query_row(
                &format!(
                    "SELECT number, seen FROM (SELECT number, sum({ROW_BYTES}) OVER (ORDER BY number) AS seen FROM audit)
                     WHERE seen >= ?1 LIMIT 1"
                ),
                params![segment],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?;
        let Some((number, bytes)) = last else { break };
        connection.execute(
            "INSERT INTO audit_seal SELECT number, digest FROM audit WHERE number = ?1",
            params![number],
        )?;
        connection.execute("DELETE FROM audit WHERE number <= ?1", params![number])?;
        surplus -= bytes;
    }
    Ok(())
}

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
    if number.is_multiple_of(LOOK_EVERY) {
        bound(connection, MAX_BYTES, SEGMENT_BYTES)?;
    }
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
        connection.execute_batch(SEALS).unwrap();
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

    #[test]
    fn old_segments_go_and_the_chain_goes_on_from_their_seals() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        connection.execute_batch(SEALS).unwrap();
        let entry = AuditEntry {
            at: UnixTime::from_micros(7),
            kind: "command".into(),
            subject: "ping".into(),
            detail: "x".repeat(869),
        };
        let rows: Vec<_> = (0..100).map(|_| append(&connection, &entry).unwrap()).collect();
        bound(&connection, 50_000, 10_000).unwrap();
        let left = after(&connection, 0, 1000).unwrap();
        assert_eq!((left.len(), left[0].number), (50, 51));
        assert_eq!(left, rows[50..]);
        let seals: Vec<(u64, [u8; 32])> = connection
            .prepare("SELECT number, digest FROM audit_seal ORDER BY number")
            .unwrap()
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .collect::<Result<_>>()
            .unwrap();
        let expected: Vec<_> =
            [9, 19, 29, 39, 49].map(|at| (rows[at].number, rows[at].digest)).into();
        assert_eq!(seals, expected);
        assert_eq!(left[0].previous, seals[4].1);
        assert_eq!(append(&connection, &entry).unwrap().number, 101);
        for sql in
            ["DELETE FROM audit", "DELETE FROM audit_seal", "UPDATE audit_seal SET number = 0"]
        {
            assert!(connection.execute(sql, []).is_err(), "{sql}");
        }
        // A log whose rows have all gone would begin anew; the newest segment never goes.
        bound(&connection, 50_000, 10_000).unwrap();
        assert_eq!(head(&connection).unwrap().number, 101);
    }
}
