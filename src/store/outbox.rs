//! The outbox in SQL: one transaction a [`Batch`], pages of rows for replay, and the account after a crash.

use std::sync::Arc;

use ocelli_protocol::message::GapReason;
use rusqlite::{Connection, OptionalExtension, Result, params};

use crate::clock::UnixTime;
use crate::store::recovery::{HighWater, Ledger, account};
use crate::store::{Batch, GapRow, OutboxRow, Recovered};

pub(super) const SCHEMA: &str = "
    CREATE TABLE outbox (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, topic TEXT NOT NULL,
        payload BLOB NOT NULL);
    CREATE TABLE gap (first INTEGER PRIMARY KEY, last INTEGER NOT NULL, reason TEXT NOT NULL);
    CREATE TABLE sequence (id INTEGER PRIMARY KEY CHECK (id = 1), reserved INTEGER NOT NULL,
        mark INTEGER NOT NULL);";

/// Writes a batch; the caller holds the transaction.
pub(super) fn apply(connection: &Connection, batch: &Batch) -> Result<()> {
    let mut insert =
        connection.prepare_cached("INSERT OR REPLACE INTO outbox VALUES (?1, ?2, ?3, ?4)")?;
    for row in &batch.append {
        insert.execute(params![row.seq, row.at.as_micros(), &*row.topic, &*row.payload])?;
    }
    let mut delete = connection.prepare_cached("DELETE FROM outbox WHERE seq = ?1")?;
    for seq in &batch.delete {
        delete.execute([seq])?;
    }
    for gap in &batch.put_gaps {
        put_gap(connection, gap)?;
    }
    let mut delete = connection.prepare_cached("DELETE FROM gap WHERE first = ?1")?;
    for first in &batch.delete_gaps {
        delete.execute([first])?;
    }
    connection
        .prepare_cached("INSERT OR REPLACE INTO sequence VALUES (1, ?1, ?2)")?
        .execute([batch.reserved, batch.mark])?;
    Ok(())
}

/// Rows after `seq`, oldest first, at most `limit` rows and about `max_bytes` of payload, at least one.
pub(super) fn after(
    connection: &Connection,
    seq: u64,
    limit: usize,
    max_bytes: usize,
) -> Result<Vec<OutboxRow>> {
    let mut select = connection.prepare_cached(
        "SELECT seq, at, topic, payload FROM outbox WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let mut found = select.query(params![seq, limit as u64])?;
    let mut rows = Vec::new();
    let mut bytes = 0;
    while let Some(row) = found.next()? {
        let payload: Vec<u8> = row.get(3)?;
        bytes += payload.len();
        rows.push(OutboxRow {
            seq: row.get(0)?,
            at: UnixTime::from_micros(row.get(1)?),
            topic: Arc::from(row.get::<_, String>(2)?),
            payload: payload.into(),
        });
        if bytes >= max_bytes {
            break;
        }
    }
    Ok(rows)
}

/// Accounts for every number given before this start, keeps gaps for what is lost, and says what waits.
///
/// The caller holds the transaction. `file` is the second copy of the mark.
pub(super) fn recover(connection: &Connection, file: Option<HighWater>) -> Result<Recovered> {
    let ledger = connection
        .query_row("SELECT reserved, mark FROM sequence", [], |row| {
            Ok(Ledger { reserved: row.get(0)?, mark: row.get(1)? })
        })
        .optional()?;
    let rows = rows_after(connection, ledger.unwrap_or_default().mark)?;
    let (ledger, lost) = account(ledger, file, &rows, &select_gaps(connection)?);
    for gap in &lost {
        put_gap(connection, gap)?;
    }
    connection.execute(
        "INSERT OR REPLACE INTO sequence VALUES (1, ?1, ?2)",
        [ledger.reserved, ledger.mark],
    )?;
    summary(connection, ledger.reserved)
}

fn summary(connection: &Connection, reserved: u64) -> Result<Recovered> {
    let (rows, bytes, first_row, last_row) = connection.query_row(
        "SELECT count(*), coalesce(sum(length(payload)), 0), min(seq), max(seq) FROM outbox",
        [],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
    )?;
    Ok(Recovered {
        next_seq: reserved + 1,
        known: true,
        gaps: select_gaps(connection)?,
        rows,
        bytes,
        first_row,
        last_row,
        notes: Vec::new(),
    })
}

fn rows_after(connection: &Connection, mark: u64) -> Result<Vec<u64>> {
    connection
        .prepare("SELECT seq FROM outbox WHERE seq > ?1")?
        .query_map([mark], |row| row.get(0))?
        .collect()
}

fn put_gap(connection: &Connection, gap: &GapRow) -> Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO gap VALUES (?1, ?2, ?3)")?
        .execute(params![gap.from, gap.to, reason_text(gap.reason)])
        .map(|_| ())
}

fn select_gaps(connection: &Connection) -> Result<Vec<GapRow>> {
    connection
        .prepare("SELECT first, last, reason FROM gap ORDER BY first")?
        .query_map([], |row| {
            let reason: String = row.get(2)?;
            Ok(GapRow { from: row.get(0)?, to: row.get(1)?, reason: reason_of(&reason) })
        })?
        .collect()
}

fn reason_text(reason: GapReason) -> &'static str {
    match reason {
        GapReason::Overflow => "overflow",
        GapReason::Expired => "expired",
        GapReason::PowerLoss => "power-loss",
        _ => "storage",
    }
}

fn reason_of(text: &str) -> GapReason {
    match text {
        "overflow" => GapReason::Overflow,
        "expired" => GapReason::Expired,
        "power-loss" => GapReason::PowerLoss,
        _ => GapReason::Storage,
    }
}
