//! The store on a real disk: what a kill, a damaged file, a newer schema and a full disk leave.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

use crate::clock::{Clock, SystemClock, UnixTime};
use crate::store::*;

fn open(dir: &Path) -> (Store, Recovered) {
    start(Settings::in_dir(dir), Arc::new(SystemClock)).unwrap()
}

fn apply(store: &Store, batch: Batch) -> Applied {
    let (reply, answer) = channel();
    store.apply(batch, move |applied| reply.send(applied).unwrap()).unwrap();
    answer.recv().unwrap()
}

fn close(store: &Store) {
    let (reply, answer) = channel();
    store.close(move |()| reply.send(()).unwrap()).unwrap();
    answer.recv().unwrap();
}

fn rows(numbers: std::ops::RangeInclusive<u64>) -> Vec<OutboxRow> {
    let row = |seq: u64| OutboxRow {
        seq,
        at: UnixTime::from_micros(seq),
        topic: "t".into(),
        payload: seq.to_be_bytes().into(),
    };
    numbers.map(row).collect()
}

/// A store that holds 3 and 4 of 1 to 4, and promised numbers up to 6.
fn filled(dir: &Path) -> Store {
    let (store, recovered) = open(dir);
    assert_eq!(recovered.next_seq, 1);
    let batch = Batch { append: rows(1..=4), reserved: 4, mark: 4, ceiling: 6, ..Batch::default() };
    apply(&store, batch).outcome.unwrap();
    let batch = Batch {
        delete: vec![1, 2],
        reserved: 6,
        mark: 4,
        settled: 2,
        ceiling: 8,
        ..Batch::default()
    };
    apply(&store, batch).outcome.unwrap();
    store
}

#[test]
fn what_was_committed_is_there_and_what_was_promised_is_announced() {
    let dir = tempfile::tempdir().unwrap();
    close(&filled(dir.path()));
    let gap = GapRow { from: 5, to: 6, reason: GapReason::PowerLoss };
    // The second start must not announce anything new.
    for _ in 0..2 {
        let (store, recovered) = open(dir.path());
        assert_eq!(recovered.gaps, [gap]);
        assert_eq!(
            (recovered.next_seq, recovered.rows, recovered.first_row, recovered.last_row),
            (7, 2, Some(3), Some(4))
        );
        let (reply, page) = channel();
        store.load(0, 10, 1 << 20, move |page| reply.send(page).unwrap()).unwrap();
        assert_eq!(page.recv().unwrap().unwrap(), rows(3..=4));
        close(&store);
    }
}

#[test]
fn a_damaged_database_is_kept_aside_and_its_numbers_are_not_given_again() {
    let dir = tempfile::tempdir().unwrap();
    close(&filled(dir.path()));
    let path = dir.path().join(DATABASE_FILE);
    let damaged = vec![0x5a; fs::metadata(&path).unwrap().len() as usize];
    fs::write(&path, &damaged).unwrap();
    let (store, recovered) = open(dir.path());
    assert_eq!(recovered.gaps, [GapRow { from: 3, to: 8, reason: GapReason::Storage }]);
    assert_eq!((recovered.next_seq, recovered.rows, recovered.known), (9, 0, true));
    assert!(recovered.notes[0].contains("damaged-1"), "{:?}", recovered.notes);
    assert_eq!(fs::read(dir.path().join("ocelli.db.damaged-1")).unwrap(), damaged);
    close(&store);
    // With the second file gone as well, nothing tells where numbers stopped.
    fs::write(&path, &damaged).unwrap();
    fs::remove_file(dir.path().join(SEQUENCE_FILE)).unwrap();
    let (store, recovered) = open(dir.path());
    assert!(!recovered.known);
    close(&store);
}

#[test]
fn a_page_damaged_in_the_middle_is_found_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(dir.path());
    let batch = Batch {
        append: rows(1..=5000),
        reserved: 5000,
        mark: 5000,
        ceiling: 6000,
        ..Batch::default()
    };
    apply(&store, batch).outcome.unwrap();
    close(&store);
    let path = dir.path().join(DATABASE_FILE);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let (store, recovered) = open(dir.path());
    assert_eq!(recovered.next_seq, 6001, "{recovered:?}");
    assert_eq!(recovered.gaps, [GapRow { from: 1, to: 6000, reason: GapReason::Storage }]);
    close(&store);
}

#[test]
fn a_newer_schema_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(DATABASE_FILE);
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let before = fs::read(&path).unwrap();
    let error = start(Settings::in_dir(dir.path()), Arc::new(SystemClock)).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 99, known: 2, .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn a_place_that_cannot_hold_a_store_is_told_and_not_fatal() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "not a folder").unwrap();
    let (store, recovered) = open(&file);
    assert!(!recovered.known && !recovered.notes.is_empty(), "{recovered:?}");
    let applied = apply(&store, Batch { append: rows(1..=1), ..Batch::default() });
    assert!(matches!(applied.outcome, Err(StoreError::Unavailable { .. })), "{applied:?}");
    close(&store);
}

#[test]
fn a_second_agent_on_the_same_store_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let first = filled(dir.path());
    let (second, recovered) = open(dir.path());
    assert!(!recovered.known && recovered.notes[0].contains("locked"), "{recovered:?}");
    close(&second);
    close(&first);
}

/// A clock that goes on when it is told to.
#[derive(Debug, Default)]
struct Told(std::sync::atomic::AtomicU64);

impl Told {
    fn pass(&self, seconds: u64) {
        self.0.fetch_add(seconds, std::sync::atomic::Ordering::SeqCst);
    }
}

impl Clock for Told {
    fn now(&self) -> std::time::Instant {
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        let passed = self.0.load(std::sync::atomic::Ordering::SeqCst);
        *START.get_or_init(|| SystemClock.now()) + std::time::Duration::from_secs(passed)
    }

    fn wall(&self) -> UnixTime {
        SystemClock.wall()
    }
}

fn audit(store: &Store, detail: &str) -> Result<AuditRow, StoreError> {
    let (at, detail) = (UnixTime::from_micros(1), detail.to_owned());
    let entry = AuditEntry { at, kind: "command".into(), subject: "ping".into(), detail };
    let (reply, answer) = channel();
    store.audit(entry, move |row| reply.send(row).unwrap()).unwrap();
    answer.recv().unwrap()
}

#[test]
fn a_database_that_was_locked_at_the_start_is_used_as_soon_as_it_is_free() {
    let dir = tempfile::tempdir().unwrap();
    close(&filled(dir.path()));
    let other = rusqlite::Connection::open(dir.path().join(DATABASE_FILE)).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let clock = Arc::new(Told::default());
    let settings =
        Settings { group_commit: std::time::Duration::ZERO, ..Settings::in_dir(dir.path()) };
    let (store, recovered) = start(settings, Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
    assert_eq!((recovered.next_seq, recovered.known), (9, false));
    assert!(recovered.notes[0].contains("end the other program"), "{:?}", recovered.notes);
    let batch = |numbers: std::ops::RangeInclusive<u64>| {
        let last = *numbers.end();
        let settled = numbers.start() - 1;
        let append = rows(numbers);
        Batch { append, reserved: last, mark: last, settled, ceiling: last, ..Batch::default() }
    };
    assert!(matches!(
        apply(&store, batch(1000..=1001)).outcome,
        Err(StoreError::Unavailable { .. })
    ));
    for number in 0..300 {
        assert!(audit(&store, &number.to_string()).is_err());
    }
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    clock.pass(4);
    assert!(apply(&store, batch(1000..=1002)).outcome.is_err(), "not before its time");
    clock.pass(1);
    let applied = apply(&store, batch(1000..=1003));
    applied.outcome.unwrap();
    // What an earlier run left, and what it and this one passed over; none of the numbers of this run.
    let found = applied.found.unwrap();
    assert_eq!((found.rows, found.first_row, found.last_row), (2, Some(3), Some(4)));
    assert_eq!(found.gaps, [GapRow { from: 5, to: 8, reason: GapReason::Storage }]);
    assert_eq!(audit(&store, "new").unwrap().number, 258);
    assert!(apply(&store, batch(1004..=1004)).found.is_none());
    let (reply, answer) = channel();
    store.audit_after(254, 10, move |rows| reply.send(rows).unwrap()).unwrap();
    let details: Vec<_> =
        answer.recv().unwrap().unwrap().into_iter().map(|row| row.entry.detail).collect();
    let lost = r#"{"lost":44,"reason":"no row could be written"}"#;
    assert_eq!(details, ["254", "255", lost, "new"]);
    close(&store);
    let (store, recovered) = open(dir.path());
    assert_eq!((recovered.rows, recovered.next_seq), (2 + 5, 1005));
    assert_eq!(recovered.gaps, [GapRow { from: 5, to: 8, reason: GapReason::Storage }]);
    close(&store);
}

#[test]
fn a_folder_that_comes_late_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mount");
    fs::write(&file, "nothing is mounted yet").unwrap();
    let clock = Arc::new(Told::default());
    let settings = Settings::in_dir(file.join("store"));
    let (store, recovered) = start(settings, Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
    assert!(!recovered.known);
    assert!(audit(&store, "a").is_err());
    fs::remove_file(&file).unwrap();
    // Nobody has to write: the question whether the store lives is enough.
    clock.pass(5);
    let (reply, answer) = channel();
    store.audit_head(move |head| reply.send(head).unwrap()).unwrap();
    assert_eq!(answer.recv().unwrap().unwrap().number, 1);
    assert!(apply(&store, Batch { ceiling: 7, ..Batch::default() }).found.is_some());
    close(&store);
    assert!(file.join("store").join(SEQUENCE_FILE).exists());
}

#[test]
fn audit_rows_are_chained_across_starts() {
    let dir = tempfile::tempdir().unwrap();
    let mut rows = Vec::new();
    for detail in ["a", "b"] {
        let (store, _) = open(dir.path());
        let entry = AuditEntry {
            at: SystemClock.wall(),
            kind: "command".into(),
            subject: "ping".into(),
            detail: detail.into(),
        };
        let (reply, answer) = channel();
        store.audit(entry, move |row| reply.send(row).unwrap()).unwrap();
        rows.push(answer.recv().unwrap().unwrap());
        close(&store);
        // The next start knows where the log ends, before it adds a row.
        let (store, _) = open(dir.path());
        let (reply, answer) = channel();
        store.audit_head(move |head| reply.send(head).unwrap()).unwrap();
        let newest = rows.last().unwrap();
        let head = AuditHead { number: newest.number, digest: newest.digest };
        assert_eq!(answer.recv().unwrap(), Ok(head));
        close(&store);
    }
    assert_eq!(rows[1].previous, rows[0].digest);
    assert_eq!(rows[1].number, 2);
}

#[test]
fn a_query_sees_the_rows_sent_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        group_commit: std::time::Duration::from_secs(60),
        ..Settings::in_dir(dir.path())
    };
    let (store, _) = start(settings, Arc::new(SystemClock)).unwrap();
    let entry = AuditEntry {
        at: UnixTime::from_micros(1),
        kind: "start".into(),
        subject: "test".into(),
        detail: "{}".into(),
    };
    store.audit(entry, |row| assert!(row.is_ok())).unwrap();
    let (reply, answer) = channel();
    store.audit_head(move |head| reply.send(head).unwrap()).unwrap();
    assert_eq!(answer.recv().unwrap().unwrap().number, 1);
    close(&store);
}
