//! The thread that owns the disk: takes commands, groups them into transactions, answers by callback.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use rusqlite::Connection;

use crate::clock::Clock;
use crate::store::sequence::SequenceFile;
use crate::store::{
    Applied, AuditEntry, AuditHead, AuditRow, Batch, DATABASE_FILE, HighWater, OutboxRow,
    Recovered, ResultQuery, ResultRow, SEQUENCE_FILE, Settings, StoreError, audit, database,
    outbox, results,
};

/// Commands that may wait; more are refused with [`StoreError::Busy`].
const QUEUE: usize = 256;
/// Commands in one transaction.
const MAX_GROUP: usize = 64;

/// Called once, on the store's thread, with the answer. It must not block.
type Reply<T> = Box<dyn FnOnce(T) + Send>;

enum Command {
    Apply(Box<Batch>, Reply<Applied>),
    Load {
        after: u64,
        limit: usize,
        max_bytes: usize,
        reply: Reply<Result<Vec<OutboxRow>, StoreError>>,
    },
    Keep(Vec<ResultRow>),
    Query(ResultQuery, Reply<Result<Vec<ResultRow>, StoreError>>),
    Audit(AuditEntry, Reply<Result<AuditRow, StoreError>>),
    AuditAfter {
        number: u64,
        limit: u32,
        reply: Reply<Result<Vec<AuditRow>, StoreError>>,
    },
    AuditHead(Reply<Result<AuditHead, StoreError>>),
    Close(Reply<()>),
}

/// Handle to the store's thread. Cheap to clone; no method waits for the disk.
#[derive(Debug, Clone)]
pub struct Store {
    commands: SyncSender<Command>,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Command")
    }
}

/// Opens the store and starts its thread. Reads the whole database once, so it may take a second.
///
/// A store that cannot be used is no error: commands then answer [`StoreError::Unavailable`], and
/// [`Recovered::notes`] says why.
///
/// # Errors
/// [`StoreError::Newer`] when a newer agent wrote the database.
pub fn start(settings: Settings, clock: Arc<dyn Clock>) -> Result<(Store, Recovered), StoreError> {
    let (commands, queue) = sync_channel(QUEUE);
    let (worker, recovered) = Worker::open(settings, clock)?;
    let spawned =
        std::thread::Builder::new().name("store".into()).spawn(move || worker.run(&queue));
    if let Err(error) = spawned {
        return Err(StoreError::Unavailable {
            path: DATABASE_FILE.into(),
            detail: error.to_string(),
        });
    }
    Ok((Store { commands }, recovered))
}

impl Store {
    /// Commits a batch of the outbox.
    ///
    /// # Errors
    /// [`StoreError::Busy`]; `reply` is then not called.
    pub fn apply(
        &self,
        batch: Batch,
        reply: impl FnOnce(Applied) + Send + 'static,
    ) -> Result<(), StoreError> {
        self.send(Command::Apply(Box::new(batch), Box::new(reply)))
    }

    /// Reads waiting results after number `after`, oldest first, up to `limit` rows and about `max_bytes`.
    ///
    /// # Errors
    /// [`StoreError::Busy`]; `reply` is then not called.
    pub fn load(
        &self,
        after: u64,
        limit: usize,
        max_bytes: usize,
        reply: impl FnOnce(Result<Vec<OutboxRow>, StoreError>) + Send + 'static,
    ) -> Result<(), StoreError> {
        self.send(Command::Load { after, limit, max_bytes, reply: Box::new(reply) })
    }

    /// Keeps results for queries, within the limits of the settings.
    ///
    /// # Errors
    /// [`StoreError::Busy`]: not kept.
    pub fn keep(&self, rows: Vec<ResultRow>) -> Result<(), StoreError> {
        self.send(Command::Keep(rows))
    }

    /// Reads kept results, newest first.
    ///
    /// # Errors
    /// [`StoreError::Busy`]; `reply` is then not called.
    pub fn query(
        &self,
        query: ResultQuery,
        reply: impl FnOnce(Result<Vec<ResultRow>, StoreError>) + Send + 'static,
    ) -> Result<(), StoreError> {
        self.send(Command::Query(query, Box::new(reply)))
    }

    /// Adds a row to the audit log; answers when it is on the disk.
    ///
    /// # Errors
    /// [`StoreError::Busy`]; `reply` is then not called.
    pub fn audit(
        &self,
        entry: AuditEntry,
        reply: impl FnOnce(Result<AuditRow, StoreError>) + Send + 'static,
    ) -> Result<(), StoreError> {
        self.send(Command::Audit(entry, Box::new(reply)))
    }

    /// Reads audit rows after `number`, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Busy`]; `reply` is then not called.
    pub fn audit_after(
        &self,
        number: u64,
        limit: u32,
        reply: impl FnOnce(Result<Vec<AuditRow>, StoreError>) + Send + 'static,
    ) -> Result<(), StoreError> {
        self.send(Command::AuditAfter { number, limit, reply: Box::new(reply) })
    }

    /// Reads where the audit log ends.
    ///
    /// # Errors
    /// [`StoreError::Busy`]; `reply` is then not called.
    pub fn audit_head(
        &self,
        reply: impl FnOnce(Result<AuditHead, StoreError>) + Send + 'static,
    ) -> Result<(), StoreError> {
        self.send(Command::AuditHead(Box::new(reply)))
    }

    /// Does what waits, closes the database and ends the thread; then calls `reply`.
    ///
    /// # Errors
    /// [`StoreError::Busy`]; `reply` is then not called.
    pub fn close(&self, reply: impl FnOnce(()) + Send + 'static) -> Result<(), StoreError> {
        self.send(Command::Close(Box::new(reply)))
    }

    fn send(&self, command: Command) -> Result<(), StoreError> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Busy,
            TrySendError::Disconnected(_) => StoreError::Unavailable {
                path: DATABASE_FILE.into(),
                detail: "the store is closed".into(),
            },
        })
    }
}

struct Worker {
    settings: Settings,
    clock: Arc<dyn Clock>,
    path: PathBuf,
    connection: Option<Connection>,
    sequence: Option<SequenceFile>,
}

impl Worker {
    fn open(settings: Settings, clock: Arc<dyn Clock>) -> Result<(Self, Recovered), StoreError> {
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
        let mut worker = Self { settings, clock, path, connection: None, sequence };
        let mut recovered = match worker.open_database(&mut notes) {
            Ok(recovered) => recovered,
            Err(error @ StoreError::Newer { .. }) => return Err(error),
            Err(error) => {
                notes.push(error.to_string());
                let next_seq = worker.file_mark().map_or(1, |mark| mark.ceiling + 1);
                Recovered { next_seq, known: false, ..Recovered::default() }
            }
        };
        recovered.notes = notes;
        Ok((worker, recovered))
    }

    fn open_database(&mut self, notes: &mut Vec<String>) -> Result<Recovered, StoreError> {
        let opened = database::open(&self.settings.dir)?;
        let lost = opened.moved.is_some();
        if let Some((kept, detail)) = &opened.moved {
            let (path, kept) = (self.path.display().to_string(), kept.display().to_string());
            notes.push(StoreError::Lost { path, detail: detail.clone(), kept }.to_string());
        }
        let mark = self.file_mark();
        let mut connection = opened.connection;
        let recovered =
            transaction(&mut connection, |connection| outbox::recover(connection, mark))
                .map_err(|error| database::unavailable(&self.path, &error))?;
        self.connection = Some(connection);
        let reserved = recovered.next_seq - 1;
        let unsettled =
            recovered.gaps.first().map(|gap| gap.from).into_iter().chain(recovered.first_row);
        self.note_ceiling(HighWater {
            ceiling: reserved.max(mark.map_or(0, |mark| mark.ceiling)),
            settled: unsettled.min().map_or(reserved, |first| first - 1),
            ahead: false,
        });
        // A damaged database without a second mark: nothing tells which numbers were given.
        Ok(Recovered { known: !(lost && mark.is_none()), ..recovered })
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

    fn run(mut self, queue: &Receiver<Command>) {
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
                reply(self.read(|connection| outbox::after(connection, after, limit, max_bytes)));
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
        let result = match &self.connection {
            Some(connection) => read(connection),
            None => return Err(self.closed()),
        };
        result.map_err(|error| self.failed(&error))
    }

    /// Commits all writes of a group in one transaction and answers each.
    fn commit(&mut self, group: Vec<Command>) {
        if group.is_empty() {
            return;
        }
        let behind = self.raise_ceiling(&group);
        let now = self.clock.wall();
        let limits = self.settings.results;
        let outcome = match &mut self.connection {
            None => Err(self.closed()),
            Some(connection) => {
                transaction(connection, |connection| write_group(connection, &group, limits, now))
                    .map_err(|error| self.failed(&error))
            }
        };
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
                    reply(Applied {
                        outcome: outcome.as_ref().map(|_| ()).map_err(Clone::clone),
                        ceiling,
                    });
                }
                Command::Audit(_, reply) => reply(match &mut rows {
                    Ok(rows) => Ok(rows.next().expect("one row for each entry")),
                    Err(error) => Err((*error).clone()),
                }),
                _ => {}
            }
        }
    }

    /// Before a commit: no number is given that the second file does not cover.
    fn raise_ceiling(&mut self, group: &[Command]) -> Option<HighWater> {
        let batch = group.iter().rev().find_map(|command| match command {
            Command::Apply(batch, _) => Some(batch),
            _ => None,
        })?;
        let known = self.file_mark().unwrap_or_default();
        let settled = if batch.ceiling != known.ceiling || !batch.put_gaps.is_empty() {
            batch.settled
        } else {
            known.settled
        };
        let mark = HighWater { ceiling: batch.ceiling, settled, ahead: known.ahead };
        self.note_ceiling(mark);
        Some(mark)
    }

    fn closed(&self) -> StoreError {
        StoreError::Unavailable {
            path: self.path.display().to_string(),
            detail: "it could not be opened".into(),
        }
    }

    /// Translates an error; a damaged database is replaced on the spot.
    fn failed(&mut self, error: &rusqlite::Error) -> StoreError {
        if !database::is_damage(error) {
            return database::unavailable(&self.path, error);
        }
        self.connection = None;
        match database::open(&self.settings.dir) {
            Ok(opened) => {
                self.connection = Some(opened.connection);
                StoreError::Lost {
                    path: self.path.display().to_string(),
                    detail: error.to_string(),
                    kept: opened
                        .moved
                        .map_or_else(String::new, |(kept, _)| kept.display().to_string()),
                }
            }
            Err(error) => error,
        }
    }
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
    now: crate::clock::UnixTime,
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
