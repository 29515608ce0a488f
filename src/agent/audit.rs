//! Rows of the audit log: what a row may hold, which requests get one, and how rows are told. No I/O.

use std::time::{Duration, Instant};

use ocelli_protocol::repository::Digest;
use serde_json::{Value, json};

use crate::clock::UnixTime;
use crate::mqtt::MAX_OUTGOING_BYTES;
use crate::store::{AuditEntry, AuditRow};
use crate::update::{Floods, in_short};

/// Rows of the audit log in one answer.
pub(super) const PAGE_ROWS: u32 = 200;
/// Bytes of them, unless it is one row.
const PAGE_BYTES: usize = 256 * 1024;
/// Bytes of the largest row that an answer can hold: a packet without topic and envelope.
const MOST_ROW_BYTES: usize = MAX_OUTGOING_BYTES - 4096;
/// Bytes of a row's detail.
const MOST_DETAIL_BYTES: usize = 8 * 1024;
/// Requests of one kind within this time share a row of the audit log, at first.
const FLOOD_WINDOW: Duration = Duration::from_secs(60);
/// Requests with rows of their own: so many at once, and one more in each of so much time.
const ROWS_AT_ONCE: u32 = 100;
const ONE_MORE_IN: Duration = Duration::from_secs(900);

/// A row to be written; no text in it is long.
pub(super) fn entry(at: UnixTime, kind: &str, subject: &str, detail: &Value) -> AuditEntry {
    let mut text = detail.to_string();
    if text.len() > MOST_DETAIL_BYTES {
        text = json!({ "cut": in_short(&text), "bytes": text.len() }).to_string();
    }
    AuditEntry { at, kind: kind.to_owned(), subject: in_short(subject), detail: text }
}

/// A page of rows as it is told: at least one where there is one, and as many as fit. `more`: there are others behind it.
///
/// A row that no packet can hold, which only an agent of the past can have written, is told without its detail: `omitted` has
/// the bytes that are missing, and its digest cannot be verified, only that the next row follows on it.
pub(super) fn page(rows: &[AuditRow]) -> Value {
    let mut bytes = 0;
    let mut told = Vec::new();
    for row in rows {
        let mut value = document(row);
        let mut length = value.to_string().len();
        if length > MOST_ROW_BYTES {
            value["detail"] = json!("");
            value["omitted"] = json!(row.entry.detail.len());
            length = value.to_string().len();
        }
        bytes += length;
        if bytes > PAGE_BYTES && !told.is_empty() {
            break;
        }
        told.push(value);
    }
    let more = told.len() < rows.len() || rows.len() == PAGE_ROWS as usize;
    json!({ "rows": told, "more": more })
}

fn document(row: &AuditRow) -> Value {
    json!({
        "number": row.number,
        "at_us": row.entry.at.as_micros(),
        "kind": row.entry.kind,
        "subject": row.entry.subject,
        "detail": row.entry.detail,
        "previous": Digest(row.previous).to_string(),
        "sha256": Digest(row.digest).to_string(),
    })
}

/// Which requests get a row of the audit log. Whoever may send requests must not push older rows out of it.
pub(super) struct Requests {
    floods: Floods,
    /// Rows left, and when the next one was added.
    left: (u32, Instant),
}

impl Requests {
    pub(super) fn new(now: Instant) -> Self {
        Self { floods: Floods::new(FLOOD_WINDOW), left: (ROWS_AT_ONCE, now) }
    }

    /// Whether a request that was done or refused gets a row of its own.
    pub(super) fn admit(&mut self, now: Instant) -> bool {
        let (left, since) = &mut self.left;
        let earned = now.saturating_duration_since(*since).as_secs() / ONE_MORE_IN.as_secs();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(ROWS_AT_ONCE);
            (*left, *since) = (left.saturating_add(earned).min(ROWS_AT_ONCE), now);
        }
        if *left > 0 {
            *left -= 1;
            return true;
        }
        self.floods.admit("many", now)
    }

    /// Whether a request of a kind that may come in floods gets one.
    pub(super) fn admit_kind(&mut self, kind: &'static str, now: Instant) -> bool {
        self.floods.admit(kind, now)
    }

    /// Kinds of requests of which more came than have rows, and how many: for a row each.
    pub(super) fn ended(&mut self, now: Instant) -> Vec<(&'static str, u64)> {
        self.floods.ended(now)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do as the origin")]
mod tests {
    use super::*;

    fn row(number: u64, detail: String) -> AuditRow {
        let at = UnixTime::from_micros(number);
        let entry = AuditEntry { at, kind: "update".into(), subject: "metadata".into(), detail };
        let previous = [7; 32];
        AuditRow { number, digest: AuditRow::digest_of(&previous, number, &entry), entry, previous }
    }

    fn numbers(page: &Value) -> Vec<u64> {
        page["rows"].as_array().unwrap().iter().map(|row| row["number"].as_u64().unwrap()).collect()
    }

    #[test]
    fn a_large_row_hides_none_behind_it() {
        let large = row(2, "\"".repeat(AUDIT_LARGE));
        let rows = [row(1, "a".into()), large.clone(), row(3, "b".into())];
        let first = page(&rows);
        assert_eq!((numbers(&first), first["more"].as_bool()), (vec![1], Some(true)));
        let second = page(&rows[1..]);
        assert_eq!((numbers(&second), second["more"].as_bool()), (vec![2], Some(true)));
        assert_eq!(second["rows"][0]["detail"], large.entry.detail, "whole: it can be verified");
        let third = page(&rows[2..]);
        assert_eq!((numbers(&third), third["more"].as_bool()), (vec![3], Some(false)));
        assert!(second.to_string().len() < MAX_OUTGOING_BYTES);
    }

    /// Bytes that are more than a page and less than a packet, escaped.
    const AUDIT_LARGE: usize = 300 * 1024;

    #[test]
    fn a_row_that_no_packet_holds_is_told_as_such() {
        let rows = [row(1, "\"".repeat(MAX_OUTGOING_BYTES)), row(2, "b".into())];
        let page = page(&rows);
        assert_eq!(numbers(&page), [1, 2]);
        assert_eq!(page["rows"][0]["omitted"], MAX_OUTGOING_BYTES);
        assert_eq!(page["rows"][0]["sha256"], Digest(rows[0].digest).to_string());
        assert!(page["rows"][1].get("omitted").is_none());
    }

    #[test]
    fn what_is_written_always_fits_a_page() {
        let detail = json!({ "reason": "\u{1}".repeat(200_000) });
        let entry = entry(UnixTime::from_micros(1), "update", &"\"".repeat(9999), &detail);
        assert!(entry.detail.contains("\"bytes\":1200013"), "{}", entry.detail);
        let long = AuditRow { number: u64::MAX, entry, previous: [0; 32], digest: [0; 32] };
        assert!(document(&long).to_string().len() < 4096);
        let rows: Vec<_> =
            (0..3).map(|number| row(number, "\"".repeat(MOST_DETAIL_BYTES))).collect();
        assert_eq!(numbers(&page(&rows)), [0, 1, 2]);
    }

    #[test]
    fn a_month_of_requests_fills_less_than_a_third_of_the_log() {
        let start = Instant::now();
        let mut requests = Requests::new(start);
        let (mut rows, mut counted) = (0_u64, 0);
        for second in 0..30 * 24 * 3600_u64 {
            let now = start + Duration::from_secs(second);
            rows += u64::from(requests.admit(now)) + u64::from(requests.admit_kind("busy", now));
            for (_, more) in requests.ended(now) {
                (rows, counted) = (rows + 1, counted + more);
            }
        }
        // At about 300 bytes each; the log has 4 MiB.
        assert!(rows * 300 * 3 < 4 << 20, "{rows} rows");
        assert!(counted > 4_000_000, "{counted}");
    }
}
