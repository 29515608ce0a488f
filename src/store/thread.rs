//! The store's handle and its commands. [`Worker`] does them on a thread of its own.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use crate::clock::Clock;
use crate::store::worker::Worker;
use crate::store::{
    Applied, AuditEntry, AuditHead, AuditRow, Batch, DATABASE_FILE, OutboxRow, Recovered,
    ResultQuery, ResultRow, Settings, StoreError,
};

/// Commands that may wait; more are refused with [`StoreError::Busy`].
const QUEUE: usize = 256;

/// Called once, on the store's thread, with the answer. It must not block.
pub(super) type Reply<T> = Box<dyn FnOnce(T) + Send>;

pub(super) enum Command {
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
/// A store that cannot be used is no error: commands then answer [`StoreError::Unavailable`], [`Recovered::notes`] says why, and
/// it is tried again every 5 s.
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
