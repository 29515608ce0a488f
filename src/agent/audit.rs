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
pub(super) struct Requests(Floods);

impl Requests {
    pub(super) fn new() -> Self {
        Self(Floods::new(FLOOD_WINDOW))
    }

    /// Whether a request that was done or refused gets a row of its own.
    pub(super) fn admit(&mut self, now: Instant) -> bool {
        self.0.admit_alone(now) || self.0.admit("many", now)
    }

    /// Whether a request of a kind that may come in floods gets one.
    pub(super) fn admit_kind(&mut self, kind: &'static str, now: Instant) -> bool {
        self.0.admit(kind, now)
    }

    /// Kinds of requests of which more came than have rows, and how many: for a row each.
    pub(super) fn ended(&mut self, now: Instant) -> Vec<(&'static str, u64)> {
        self.0.ended(now)
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

    /// Rows, and requests that they tell of, of a month with one request of each kind in each of so many seconds.
    fn month(every: u64) -> (u64, u64, u64) {
        let start = Instant::now();
        let mut requests = Requests::new();
        let (mut rows, mut told, mut sent) = (0, 0, 0);
        for second in (0..30 * 24 * 3600).step_by(30) {
            while sent * every <= second {
                let now = start + Duration::from_secs(sent * every);
                let kinds = ["busy", "repeated", "ignored"];
                let kinds = kinds.map(|kind| u64::from(requests.admit_kind(kind, now)));
                let alone = u64::from(requests.admit(now)) + kinds.iter().sum::<u64>();
                (rows, told, sent) = (rows + alone, told + alone, sent + 1);
            }
            for (_, more) in requests.ended(start + Duration::from_secs(second)) {
                (rows, told) = (rows + 1, told + more);
            }
        }
        (rows, told, 4 * sent)
    }

    #[test]
    fn a_month_of_requests_gets_at_most_24_rows_a_day_however_slowly_they_come() {
        for every in [5, 61, 121, 300, 601, 3601, 7201] {
            let (rows, told, sent) = month(every);
            assert!(rows <= 40 + 30 * 24, "in {every} s: {rows} rows");
            // But for what the last windows, of a day at most, still count.
            assert!(told + 4 * 2 * 24 * 3600 / every + 4 >= sent, "in {every} s: {told} of {sent}");
        }
    }
}
