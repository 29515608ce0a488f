//! Results kept for queries: a window over the recent past, bounded by age and bytes.

use std::time::Duration;

use rusqlite::{Connection, Result, params};

use crate::clock::UnixTime;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultLimits {
    /// Payload bytes in all.
    pub max_bytes: u64,
    /// Age of the oldest.
    pub max_age: Duration,
}

/// A kept result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultRow {
    /// Its number.
    pub seq: u64,
    /// Stream name.
    pub stream: String,
    /// When the frame was captured.
    pub captured_at: UnixTime,
    /// The JSON that was published.
    pub payload: Vec<u8>,
}

/// Which results to read, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResultQuery {
    /// Only this stream.
    pub stream: Option<String>,
    /// Captured at or after.
    pub since: UnixTime,
    /// Captured before.
    pub until: UnixTime,
    /// At most so many rows.
    pub limit: u32,
}

pub(super) const SCHEMA: &str = "
    CREATE TABLE result (seq INTEGER PRIMARY KEY, stream TEXT NOT NULL, captured_at INTEGER NOT NULL,
        payload BLOB NOT NULL);
    CREATE INDEX result_by_time ON result (captured_at);";

/// Adds rows, then removes what is too old or too much.
pub(super) fn keep(
    connection: &Connection,
    rows: &[ResultRow],
    limits: ResultLimits,
    now: UnixTime,
) -> Result<()> {
    let mut insert =
        connection.prepare_cached("INSERT OR REPLACE INTO result VALUES (?1, ?2, ?3, ?4)")?;
    for row in rows {
        insert.execute(params![row.seq, row.stream, row.captured_at.as_micros(), row.payload])?;
    }
    let max_age = u64::try_from(limits.max_age.as_micros()).unwrap_or(u64::MAX);
    connection
        .prepare_cached("DELETE FROM result WHERE captured_at < ?1")?
        .execute([now.as_micros().saturating_sub(max_age)])?;
    let mut excess = bytes(connection)?.saturating_sub(limits.max_bytes);
    let mut oldest = connection
        .prepare_cached("SELECT seq, length(payload) FROM result ORDER BY seq LIMIT 64")?;
    let mut delete = connection.prepare_cached("DELETE FROM result WHERE seq = ?1")?;
    while excess > 0 {
        let rows: Vec<(u64, u64)> =
            oldest.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_>>()?;
        if rows.is_empty() {
            break;
        }
        for (seq, length) in rows {
            if excess == 0 {
                break;
            }
            delete.execute([seq])?;
            excess = excess.saturating_sub(length);
        }
    }
    Ok(())
}

fn bytes(connection: &Connection) -> Result<u64> {
    connection
        .prepare_cached("SELECT coalesce(sum(length(payload)), 0) FROM result")?
        .query_row([], |row| row.get(0))
}

/// Rows that fit the query, newest first.
pub(super) fn query(connection: &Connection, query: &ResultQuery) -> Result<Vec<ResultRow>> {
    connection
        .prepare_cached(
            "SELECT seq, stream, captured_at, payload FROM result
             WHERE captured_at >= ?1 AND captured_at < ?2 AND (?3 IS NULL OR stream = ?3)
             ORDER BY captured_at DESC, seq DESC LIMIT ?4",
        )?
        .query_map(
            params![query.since.as_micros(), query.until.as_micros(), query.stream, query.limit],
            |row| {
                Ok(ResultRow {
                    seq: row.get(0)?,
                    stream: row.get(1)?,
                    captured_at: UnixTime::from_micros(row.get(2)?),
                    payload: row.get(3)?,
                })
            },
        )?
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seq: u64, stream: &str, seconds: u64) -> ResultRow {
        ResultRow {
            seq,
            stream: stream.into(),
            captured_at: UnixTime::from_micros(seconds * 1_000_000),
            payload: vec![b'x'; 100],
        }
    }

    fn all(connection: &Connection, stream: Option<&str>) -> Vec<u64> {
        let until = UnixTime::from_micros(i64::MAX as u64);
        let all = ResultQuery {
            stream: stream.map(str::to_owned),
            since: UnixTime::default(),
            until,
            limit: 100,
        };
        query(connection, &all).unwrap().iter().map(|row| row.seq).collect()
    }

    #[test]
    fn keeps_the_newest_within_age_and_bytes() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        let limits = ResultLimits { max_bytes: 300, max_age: Duration::from_secs(60) };
        let now = UnixTime::from_micros(100_000_000);
        let rows: Vec<_> = [(1, 30), (2, 50), (3, 60), (4, 70), (5, 80)]
            .map(|(seq, seconds)| row(seq, if seq % 2 == 0 { "a" } else { "b" }, seconds))
            .into();
        keep(&connection, &rows, limits, now).unwrap();
        assert_eq!(all(&connection, None), [5, 4, 3]);
        assert_eq!(all(&connection, Some("a")), [4]);
    }
}
