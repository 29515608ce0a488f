//! The thread that owns the disk: takes commands, groups them into transactions, answers by callback. A database that cannot be
//! opened is tried again; what is to be audited waits meanwhile.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::json;

use crate::clock::{Clock, UnixTime};
use crate::store::sequence::SequenceFile;
use crate::store::thread::{Command, Reply};
use crate::store::{
    Applied, AuditEntry, AuditRow, DATABASE_FILE, HighWater, Recovered, SEQUENCE_FILE, Settings,
    StoreError, audit, database, outbox, results,
};

/// Commands in one transaction.
const MAX_GROUP: usize = 64;
/// Between two attempts to open a database that is not there.
const OPEN_AGAIN: Duration = Duration::from_secs(5);
/// Rows of the audit log that wait in memory while none can be written; more are lost, and counted.
const MOST_WAITING: usize = 256;

/// The database, as far as it is there.
enum Database {
    Open(Connection),
    Away {
        /// Why, for whoever asks.
        why: StoreError,
        /// When it is tried again.
        again: Instant,
        since: Since,
    },
}

/// Since when there is no database, and so what its return means.
#[derive(Clone)]
enum Since {
    /// It could not be opened at the start; the second file had this mark then.
    Start(Option<HighWater>),
    /// It was found damaged in use, and no new one could be made. What was wrong.
    Damage(String),
}

/// What the outbox does not know yet of a database that is open again.
enum News {
    /// What it holds of earlier runs.
    Found(Recovered),
    /// It is a new one.
    Lost(StoreError),
}

/// The store's thread.
pub(super) struct Worker {
    settings: Settings,
    clock: Arc<dyn Clock>,
    path: PathBuf,
    database: Database,
    sequence: Option<SequenceFile>,
    news: Option<News>,
    /// To be audited as soon as a row can be written.
    waiting: VecDeque<AuditEntry>,
    /// Rows beyond those that could wait.
    unaudited: u64,
}

impl Worker {
    /// Opens what can be opened.
    pub(super) fn open(
        settings: Settings,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Recovered), StoreError> {
        let path = settings.dir.join(DATABASE_FILE);
        let mut notes = Vec::new();
        if let Err(error) = std::fs::create_dir_all(&settings.dir) {
            notes.push(database::unavailable(&path, &error).to_string());
        }
        let sequence = SequenceFile::open(&settings.dir.join(SEQUENCE_FILE))
            .map_err(|error| {
                notes.push(format!("{SEQUENCE_FILE}: {error}; numbers rely on the database alone"))
            })
            .ok();
        let mark = sequence.as_ref().and_then(SequenceFile::current);
        let why = StoreError::Busy;
        let database = Database::Away { why, again: clock.now(), since: Since::Start(mark) };
        let (news, waiting, unaudited) = (None, VecDeque::new(), 0);
        let mut worker =
            Self { settings, clock, path, database, sequence, news, waiting, unaudited };
        let mut recovered = match worker.open_database(mark, &mut notes) {
            Ok(recovered) => {
                worker.cover(&recovered, mark);
                recovered
            }
            Err(error @ StoreError::Newer { .. }) => return Err(error),
            Err(error) => {
                notes.push(error.to_string());
                worker.put_off(error, Since::Start(mark));
                let next_seq = mark.map_or(1, |mark| mark.ceiling + 1);
                Recovered { next_seq, known: false, ..Recovered::default() }
            }
        };
        recovered.notes = notes;
        Ok((worker, recovered))
    }

    /// Opens the database and accounts for the numbers of earlier runs.
    fn open_database(
        &mut self,
        mark: Option<HighWater>,
        notes: &mut Vec<String>,
    ) -> Result<Recovered, StoreError> {
        let opened = database::open(&self.settings.dir)?;
        let lost = opened.moved.is_some();
        if let Some((kept, detail)) = &opened.moved {
            let (path, kept) = (self.path.display().to_string(), kept.display().to_string());
            notes.push(StoreError::Lost { path, detail: detail.clone(), kept }.to_string());
        }
        let mut connection = opened.connection;
        let recovered =
            transaction(&mut connection, |connection| outbox::recover(connection, mark))
                .map_err(|error| database::unavailable(&self.path, &error))?;
        self.database = Database::Open(connection);
        // A damaged database without a second mark: nothing tells which numbers were given.
        Ok(Recovered { known: !(lost && mark.is_none()), ..recovered })
    }

    /// The second file follows the database.
    fn cover(&mut self, recovered: &Recovered, mark: Option<HighWater>) {
        let reserved = recovered.next_seq - 1;
        let unsettled =
            recovered.gaps.first().map(|gap| gap.from).into_iter().chain(recovered.first_row);
        self.note_ceiling(HighWater {
            ceiling: reserved.max(mark.map_or(0, |mark| mark.ceiling)),
            settled: unsettled.min().map_or(reserved, |first| first - 1),
            ahead: false,
        });
    }

    fn put_off(&mut self, why: StoreError, since: Since) {
        self.database = Database::Away { why, again: self.clock.now() + OPEN_AGAIN, since };
    }

    /// Tries a database that is not there again, at its time.
    fn open_when_due(&mut self) {
        let Database::Away { again, since, .. } = &self.database else { return };
        if self.clock.now() < *again {
            return;
        }
        let since = since.clone();
        let outcome = match &since {
            Since::Start(mark) => self.open_late(*mark).map(News::Found),
            Since::Damage(detail) => self.replace(detail).map(News::Lost),
        };
        match outcome {
            Ok(news) => {
                log::warn!("{} can be used from now on", self.path.display());
                self.news = Some(news);
            }
            Err(why) => self.put_off(why, since),
        }
    }

    /// `mark` is of the start: numbers that were given since are not those of an earlier run.
    fn open_late(&mut self, mark: Option<HighWater>) -> Result<Recovered, StoreError> {
        std::fs::create_dir_all(&self.settings.dir)
            .map_err(|error| database::unavailable(&self.path, &error))?;
        if self.sequence.is_none() {
            self.sequence = SequenceFile::open(&self.settings.dir.join(SEQUENCE_FILE)).ok();
        }
        // The numbers between what the database knows and the mark were passed over when this run began.
        let mark = mark.map(|mark| HighWater { ahead: true, ..mark });
        let mut notes = Vec::new();
        let recovered = self.open_database(mark, &mut notes)?;
        notes.iter().for_each(|note| log::warn!("store: {note}"));
        Ok(recovered)
    }

    /// A new database in the place of a damaged one; the error says where that is.
    fn replace(&mut self, detail: &str) -> Result<StoreError, StoreError> {
        let opened = database::open(&self.settings.dir)?;
        self.database = Database::Open(opened.connection);
        Ok(StoreError::Lost {
            path: self.path.display().to_string(),
            detail: detail.to_owned(),
            kept: opened.moved.map_or_else(String::new, |(kept, _)| kept.display().to_string()),
        })
    }

    fn file_mark(&self) -> Option<HighWater> {
        self.sequence.as_ref().and_then(SequenceFile::current)
    }

    /// Raises the second mark; a failure leaves the one before, which the answer to the batch then tells.
    fn note_ceiling(&mut self, mark: HighWater) {
        if let Some(file) = &mut self.sequence
            && let Err(error) = file.write(mark)
        {
            log::debug!("sequence file: {error}");
        }
    }

    /// Does commands until the last handle is gone, or one closes the store.
    pub(super) fn run(mut self, queue: &Receiver<Command>) {
        while let Ok(first) = queue.recv() {
            let deadline = self.clock.now() + self.settings.group_commit;
            let mut group = Vec::with_capacity(8);
            let mut closing = self.take(first, &mut group);
            while closing.is_none() && !group.is_empty() && group.len() < MAX_GROUP {
                let left = deadline.saturating_duration_since(self.clock.now());
                match queue.recv_timeout(left) {
                    Ok(command) => closing = self.take(command, &mut group),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
                if left == Duration::ZERO {
                    break;
                }
            }
            self.commit(group);
            if let Some(reply) = closing {
                // Dropping the connection checkpoints the log.
                drop(self);
                reply(());
                return;
            }
        }
    }

    /// Puts writes into the group; answers reads at once. Returns the reply of a close.
    ///
    /// A query sees the writes that were sent before it. A load of outbox rows need not: the outbox knows what it has under way.
    fn take(&mut self, command: Command, group: &mut Vec<Command>) -> Option<Reply<()>> {
        if matches!(
            command,
            Command::Query(..) | Command::AuditAfter { .. } | Command::AuditHead(_)
        ) {
            self.commit(std::mem::take(group));
        }
        match command {
            Command::Load { after, limit, max_bytes, reply } => {
                let page =
                    self.read(|connection| outbox::after(connection, after, limit, max_bytes));
                // What the outbox wants to read lay in the database before this one.
                reply(match self.news.take() {
                    Some(News::Lost(error)) => Err(error),
                    news => {
                        self.news = news;
                        page
                    }
                });
            }
            Command::Query(query, reply) => {
                reply(self.read(|connection| results::query(connection, &query)));
            }
            Command::AuditAfter { number, limit, reply } => {
                reply(self.read(|connection| audit::after(connection, number, limit)));
            }
            Command::AuditHead(reply) => reply(self.read(audit::head)),
            Command::Close(reply) => return Some(reply),
            write @ (Command::Apply(..) | Command::Keep(_) | Command::Audit(..)) => {
                group.push(write)
            }
        }
        None
    }

    fn read<T>(
        &mut self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.open_when_due();
        let result = match &self.database {
            Database::Open(connection) => read(connection),
            Database::Away { why, .. } => return Err(why.clone()),
        };
        result.map_err(|error| self.failed(&error))
    }

    /// Commits all writes of a group in one transaction, and answers each.
    fn commit(&mut self, group: Vec<Command>) {
        self.open_when_due();
        let away = matches!(self.database, Database::Away { .. });
        if group.is_empty() && (away || self.waiting.is_empty()) {
            return;
        }
        let behind = self.raise_ceiling(&group);
        let outcome = self.write(&group);
        match (&outcome, behind) {
            (Ok(_), Some(mark)) if mark.ahead => {
                self.note_ceiling(HighWater { ahead: false, ..mark })
            }
            (Err(_), Some(mark)) => self.note_ceiling(HighWater { ahead: true, ..mark }),
            _ => {}
        }
        let ceiling = self.file_mark().map_or(0, |mark| mark.ceiling);
        let mut rows = outcome.as_ref().map(|rows| rows.clone().into_iter());
        for command in group {
            match command {
                Command::Apply(_, reply) => {
                    let found = match self.news.take() {
                        Some(News::Found(recovered)) if outcome.is_ok() => Some(recovered),
                        news => {
                            self.news = news;
                            None
                        }
                    };
                    let outcome = outcome.as_ref().map(|_| ()).map_err(Clone::clone);
                    reply(Applied { outcome, ceiling, found });
                }
                Command::Audit(entry, reply) => reply(match &mut rows {
                    Ok(rows) => Ok(rows.next().expect("one row for each entry")),
                    Err(error) => {
                        self.wait(entry);
                        Err((*error).clone())
                    }
                }),
                _ => {}
            }
        }
    }

    /// Writes a group and, before it, what waited to be audited.
    fn write(&mut self, group: &[Command]) -> Result<Vec<AuditRow>, StoreError> {
        if let Some(News::Lost(error)) = &self.news
            && group.iter().any(|command| matches!(command, Command::Apply(..)))
        {
            // This batch counts on the database that was lost: the outbox has to begin anew.
            let error = error.clone();
            self.news = None;
            return Err(error);
        }
        let now = self.clock.wall();
        let (limits, waiting) =
            (self.settings.results, waiting(&self.waiting, self.unaudited, now));
        let connection = match &mut self.database {
            Database::Open(connection) => connection,
            Database::Away { why, .. } => return Err(why.clone()),
        };
        let outcome = transaction(connection, |connection| {
            for entry in &waiting {
                audit::append(connection, entry)?;
            }
            write_group(connection, group, limits, now)
        });
        if outcome.is_ok() {
            (self.waiting, self.unaudited) = (VecDeque::new(), 0);
        }
        outcome.map_err(|error| self.failed(&error))
    }

    fn wait(&mut self, entry: AuditEntry) {
        if self.waiting.len() < MOST_WAITING {
            self.waiting.push_back(entry);
        } else {
            self.unaudited += 1;
        }
    }

    /// Before a commit: no number is given that the second file does not cover.
    fn raise_ceiling(&mut self, group: &[Command]) -> Option<HighWater> {
        let batch = group.iter().rev().find_map(|command| match command {
            Command::Apply(batch, _) => Some(batch),
            _ => None,
        })?;
        let known = self.file_mark().unwrap_or_default();
        let never_open = matches!(self.database, Database::Away { since: Since::Start(_), .. });
        // Of results of earlier runs the outbox knows nothing while the database was never open.
        let told = batch.ceiling != known.ceiling || !batch.put_gaps.is_empty();
        let settled = if told && !never_open { batch.settled } else { known.settled };
        let mark = HighWater { ceiling: batch.ceiling, settled, ahead: known.ahead };
        self.note_ceiling(mark);
        Some(mark)
    }

    /// Translates an error; a damaged database is replaced on the spot.
    fn failed(&mut self, error: &rusqlite::Error) -> StoreError {
        if !database::is_damage(error) {
            return database::unavailable(&self.path, error);
        }
        let detail = error.to_string();
        // It is closed before another one takes its place.
        self.news = None;
        self.put_off(StoreError::Busy, Since::Damage(detail.clone()));
        match self.replace(&detail) {
            Ok(lost) => lost,
            Err(why) => {
                self.put_off(why.clone(), Since::Damage(detail));
                why
            }
        }
    }
}

/// Rows that waited, and one that says how many could not.
fn waiting(entries: &VecDeque<AuditEntry>, lost: u64, now: UnixTime) -> Vec<AuditEntry> {
    let (kind, subject) = ("audit".to_owned(), "store".to_owned());
    let detail = json!({ "lost": lost, "reason": "no row could be written" }).to_string();
    let missing = (lost > 0).then_some(AuditEntry { at: now, kind, subject, detail });
    entries.iter().cloned().chain(missing).collect()
}

fn transaction<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let transaction = connection.transaction()?;
    let done = work(&transaction)?;
    transaction.commit()?;
    Ok(done)
}

fn write_group(
    connection: &Connection,
    group: &[Command],
    limits: Option<results::ResultLimits>,
    now: UnixTime,
) -> rusqlite::Result<Vec<AuditRow>> {
    let mut rows = Vec::new();
    for command in group {
        match command {
            Command::Apply(batch, _) => outbox::apply(connection, batch)?,
            Command::Keep(kept) => {
                if let Some(limits) = limits {
                    results::keep(connection, kept, limits, now)?;
                }
            }
            Command::Audit(entry, _) => rows.push(audit::append(connection, entry)?),
            _ => {}
        }
    }
    Ok(rows)
}
