//! The outbox: gives numbers, keeps results until the broker has them, announces what will not come.
//!
//! Rule: each number arrives, or lies in exactly one announced gap. No I/O and no clock in here: the caller brings
//! events, carries out what [`Outbox::next_publish`], [`Outbox::next_batch`] and [`Outbox::next_load`] ask for, and
//! tells what came of it. At most one batch and one load are under way.
//!
//! Order of results, oldest first: `window` (in memory, its first `in_flight` sent and not acknowledged), `tail` (only in
//! the store), `staging` (in memory, on the way to the store because the window is full).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ocelli_protocol::message::GapReason;

use crate::clock::UnixTime;
use crate::store::{Applied, Batch, GapRow, OutboxRow, Recovered, StoreError};

/// Results in the window, and as many again in staging.
const MEMORY_ROWS: usize = 512;
/// Payload bytes in the window, and as many again in staging.
const MEMORY_BYTES: u64 = 2 << 20;
/// Rows of one batch or load.
const PAGE_ROWS: usize = 256;
/// Payload bytes of one batch or load, about.
const PAGE_BYTES: u64 = 1 << 20;
/// Numbers reserved at a time when they are given before the result is stored.
const BLOCK: u64 = 512;
/// How far the second file runs ahead of numbers that are stored as they are given.
const CEILING_STEP: u64 = 4096;
/// Deliveries are noted in the store this late: noting them later only means sending twice after a crash.
const LAZY: Duration = Duration::from_secs(1);
/// Wait after a write failed.
const RETRY: Duration = Duration::from_secs(5);
/// What a row costs beside its payload.
const ROW_OVERHEAD: u64 = 64;
/// 2025-01-01: a clock before that was never set, and ages taken from it mean nothing.
const PLAUSIBLE: UnixTime = UnixTime::from_micros(1_735_689_600_000_000);

/// When a result is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Before it is sent, in the transaction that gives its number.
    Results,
    /// Only while the broker is away or slow, and at shutdown.
    Spill,
}

/// What gives way when the outbox is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// The oldest results, announced as a gap.
    DropOldest,
    /// The producer, who has to wait.
    Block,
}

/// Limits and rules of the outbox.
#[derive(Debug, Clone)]
pub struct OutboxSettings {
    /// When a result is on the disk.
    pub durability: Durability,
    /// What gives way.
    pub overflow: Overflow,
    /// Payloads and 64 bytes each, in memory and store together.
    pub max_bytes: u64,
    /// Older results are dropped and announced. Counts only between two times of a clock that was set.
    pub max_age: Duration,
    /// Messages sent and not yet acknowledged.
    pub window: usize,
    /// With [`Durability::Spill`]: how long the broker may be away or slow before results go to the store.
    pub spill_after: Duration,
}

impl Default for OutboxSettings {
    /// `spill`, `drop-oldest`, 64 MiB, 7 days, 64 in flight, 2 s.
    fn default() -> Self {
        Self {
            durability: Durability::Spill,
            overflow: Overflow::DropOldest,
            max_bytes: 64 << 20,
            max_age: Duration::from_secs(7 * 24 * 3600),
            window: 64,
            spill_after: Duration::from_secs(2),
        }
    }
}

/// Something to publish. Unacknowledged, it is published again in the next session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A result.
    Result(OutboxRow),
    /// An announcement.
    Gap(GapRow),
}

/// What the broker acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// The result of this number.
    Result(u64),
    /// The gap that begins with this number.
    Gap(u64),
}

/// A page of stored results to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Rows with greater numbers.
    pub after: u64,
    /// At most so many.
    pub limit: usize,
    /// About so many payload bytes.
    pub max_bytes: usize,
}

/// What the outbox holds and has done, for health.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutboxState {
    /// Results waiting or in flight.
    pub depth: u64,
    /// Their payload bytes, overhead included.
    pub bytes: u64,
    /// Entry time of the oldest result in memory.
    pub oldest: Option<UnixTime>,
    /// Numbers given.
    pub accepted: u64,
    /// Results the broker acknowledged.
    pub acked: u64,
    /// Results dropped, each announced in a gap.
    pub dropped: u64,
    /// Gaps announced or to be announced, since the start.
    pub gaps: u64,
    /// The store takes no writes; results are only in memory.
    pub degraded: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Memory,
    Writing,
    Stored,
}

#[derive(Debug)]
struct Entry {
    row: OutboxRow,
    kept: Kept,
    since: Instant,
}

impl Entry {
    fn bytes(&self) -> u64 {
        self.row.payload.len() as u64
    }
}

#[derive(Debug)]
struct GapEntry {
    row: GapRow,
    kept: Kept,
    /// Once sent, its range is fixed.
    sent: bool,
    in_flight: bool,
}

/// Rows that are only in the store: numbers in `after + 1..=last`.
#[derive(Debug, Default)]
struct Tail {
    rows: u64,
    bytes: u64,
    after: u64,
    last: u64,
}

#[derive(Debug)]
enum Health {
    Good,
    /// The last write failed; `bounded` tells that numbers still have a durable ceiling.
    Degraded {
        retry_at: Instant,
        bounded: bool,
    },
}

#[derive(Debug, Clone, Copy)]
enum Link {
    Up(Instant),
    Down(Instant),
}

#[derive(Debug)]
struct Pending {
    reserved: u64,
    delete: Vec<u64>,
    delete_gaps: Vec<u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Outbox {
    settings: OutboxSettings,
    next_seq: u64,
    reserved: u64,
    ceiling: u64,
    /// The store's ledger may be behind the numbers given: the next batch must catch up.
    ledger_behind: bool,
    window: VecDeque<Entry>,
    window_bytes: u64,
    in_flight: usize,
    tail: Tail,
    staging: VecDeque<Entry>,
    staging_bytes: u64,
    gaps: Vec<GapEntry>,
    delete: Vec<u64>,
    delete_gaps: Vec<u64>,
    lazy_since: Option<Instant>,
    pending: Option<Pending>,
    loading: bool,
    load_retry_at: Option<Instant>,
    health: Health,
    link: Link,
    closing: bool,
    state: OutboxState,
}

impl Outbox {
    /// An outbox that goes on where the store stopped. `wall` serves when the store knows no number.
    #[must_use]
    pub fn new(
        settings: OutboxSettings,
        recovered: &Recovered,
        wall: UnixTime,
        now: Instant,
    ) -> Self {
        let gaps = recovered.gaps.iter().map(|gap| GapEntry {
            row: *gap,
            kept: Kept::Stored,
            sent: true,
            in_flight: false,
        });
        let mut outbox = Self {
            settings,
            next_seq: recovered.next_seq,
            reserved: recovered.next_seq - 1,
            ceiling: 0,
            ledger_behind: false,
            window: VecDeque::new(),
            window_bytes: 0,
            in_flight: 0,
            tail: Tail {
                rows: recovered.rows,
                bytes: recovered.bytes,
                after: recovered.first_row.map_or(0, |first| first - 1),
                last: recovered.last_row.unwrap_or(0),
            },
            staging: VecDeque::new(),
            staging_bytes: 0,
            gaps: gaps.collect(),
            delete: Vec::new(),
            delete_gaps: Vec::new(),
            lazy_since: None,
            pending: None,
            loading: false,
            load_retry_at: None,
            health: Health::Good,
            link: Link::Down(now),
            closing: false,
            state: OutboxState::default(),
        };
        outbox.state.gaps = outbox.gaps.len() as u64;
        if !recovered.known {
            outbox.jump_to_clock(wall);
        }
        outbox
    }

    /// Whether [`Outbox::push`] may be called now. When not, the producer waits.
    #[must_use]
    pub fn can_accept(&self) -> bool {
        let limit = match (&self.health, self.settings.durability) {
            (Health::Good, Durability::Results) => u64::MAX,
            (Health::Good, Durability::Spill) => self.reserved,
            (Health::Degraded { bounded: true, .. }, _) => self.ceiling,
            (Health::Degraded { bounded: false, .. }, _) => u64::MAX,
        };
        let drops = self.settings.overflow == Overflow::DropOldest;
        let staging_full = self.staging.len() >= MEMORY_ROWS || self.staging_bytes >= MEMORY_BYTES;
        !self.closing
            && self.next_seq <= limit
            && !(staging_full && !(drops && self.is_degraded()))
            && (drops || self.held_bytes() < self.settings.max_bytes)
    }

    /// The number that the next [`Outbox::push`] gives; it belongs into the payload.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Takes a result under the number [`Outbox::next_seq`]. Only after [`Outbox::can_accept`].
    pub fn push(&mut self, topic: Arc<str>, payload: Arc<[u8]>, at: UnixTime, now: Instant) {
        let row = OutboxRow { seq: self.next_seq, at, topic, payload };
        self.next_seq += 1;
        self.state.accepted += 1;
        let entry = Entry { row, kept: Kept::Memory, since: now };
        if self.tail.rows == 0 && self.staging.is_empty() && self.window_has_room() {
            self.window_push(entry);
        } else {
            self.staging_bytes += entry.bytes();
            self.staging.push_back(entry);
        }
        self.enforce_limits();
    }

    /// A session began.
    pub fn connected(&mut self, now: Instant) {
        self.rewind();
        self.link = Link::Up(now);
    }

    /// The session ended: what is not acknowledged will be sent again.
    pub fn disconnected(&mut self, now: Instant) {
        self.rewind();
        if matches!(self.link, Link::Up(_)) {
            self.link = Link::Down(now);
        }
        self.enforce_limits();
    }

    /// The next message to publish, oldest first; it counts as sent.
    pub fn next_publish(&mut self) -> Option<Message> {
        let gaps_in_flight = self.gaps.iter().filter(|gap| gap.in_flight).count();
        if matches!(self.link, Link::Down(_))
            || self.in_flight + gaps_in_flight >= self.settings.window
        {
            return None;
        }
        let degraded = self.is_degraded();
        let due = |gap: &&mut GapEntry| !gap.in_flight && (gap.kept == Kept::Stored || degraded);
        if let Some(gap) = self.gaps.iter_mut().find(due) {
            gap.in_flight = true;
            gap.sent = true;
            return Some(Message::Gap(gap.row));
        }
        let entry = self.window.get(self.in_flight)?;
        let safe =
            entry.kept == Kept::Stored || self.settings.durability == Durability::Spill || degraded;
        if !safe {
            return None;
        }
        self.in_flight += 1;
        Some(Message::Result(entry.row.clone()))
    }

    /// The broker has it.
    pub fn acked(&mut self, item: Item, now: Instant) {
        match item {
            Item::Result(seq) => {
                let sent =
                    self.window.iter().take(self.in_flight).position(|entry| entry.row.seq == seq);
                if let Some(index) = sent {
                    self.in_flight -= 1;
                    self.remove(index);
                    self.state.acked += 1;
                    self.refill();
                }
            }
            Item::Gap(from) => {
                if let Some(index) =
                    self.gaps.iter().position(|gap| gap.row.from == from && gap.sent)
                {
                    self.gaps.remove(index);
                    self.delete_gaps.push(from);
                }
            }
        }
        if !self.delete.is_empty() || !self.delete_gaps.is_empty() {
            self.lazy_since.get_or_insert(now);
        }
    }

    /// Drops what is too old. Call every second or so.
    pub fn expire(&mut self, wall: UnixTime) {
        let max_age = u64::try_from(self.settings.max_age.as_micros()).unwrap_or(u64::MAX);
        while let Some(entry) = self.window.get(self.in_flight)
            && entry.row.at >= PLAUSIBLE
            && wall.as_micros().saturating_sub(entry.row.at.as_micros()) > max_age
        {
            self.drop_at(self.in_flight, GapReason::Expired);
        }
        self.refill();
    }

    /// From now on everything goes to the store, and nothing new is taken.
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// Whether every result and gap was delivered.
    #[must_use]
    pub fn is_delivered(&self) -> bool {
        self.window.is_empty()
            && self.tail.rows == 0
            && self.staging.is_empty()
            && self.gaps.is_empty()
    }

    /// Whether a closed outbox can be left: everything is in the store, and no unused number is reserved.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        let in_memory = |entry: &Entry| entry.kept != Kept::Stored;
        self.pending.is_none()
            && self.delete.is_empty()
            && self.delete_gaps.is_empty()
            && self.reserved == self.next_seq - 1
            && !self.window.iter().chain(&self.staging).any(in_memory)
            && !self.gaps.iter().any(|gap| gap.kept != Kept::Stored)
    }

    /// What the outbox holds and has done.
    #[must_use]
    pub fn state(&self) -> OutboxState {
        let oldest = self.window.front().or(self.staging.front());
        OutboxState {
            depth: self.window.len() as u64 + self.tail.rows + self.staging.len() as u64,
            bytes: self.held_bytes(),
            oldest: oldest.map(|entry| entry.row.at),
            degraded: self.is_degraded(),
            ..self.state
        }
    }

    /// When to ask again although nothing happened; `None` when nothing is held.
    #[must_use]
    pub fn next_wake(&self, now: Instant) -> Option<Instant> {
        let idle = self.is_delivered()
            && self.pending.is_none()
            && self.lazy_since.is_none()
            && !self.is_degraded()
            && !self.closing;
        (!idle).then(|| now + Duration::from_millis(200))
    }
}

// Towards the store.
impl Outbox {
    /// The next step for the store; [`Outbox::batch_done`] must follow.
    pub fn next_batch(&mut self, now: Instant) -> Option<Batch> {
        if self.pending.is_some() {
            return None;
        }
        let retrying = match self.health {
            Health::Good => false,
            Health::Degraded { retry_at, .. } if now < retry_at => return None,
            Health::Degraded { .. } => true,
        };
        let append = self.rows_to_append(now);
        let short = self.settings.durability == Durability::Spill
            && !self.closing
            && self.reserved < self.next_seq - 1 + BLOCK / 2;
        let unused = self.closing && append.is_empty() && self.reserved != self.next_seq - 1;
        let gaps_wait = self.gaps.iter().any(|gap| gap.kept == Kept::Memory);
        let late = self.lazy_since.is_some_and(|since| now >= since + LAZY || self.closing);
        if append.is_empty()
            && !(retrying || short || unused || gaps_wait || late || self.ledger_behind)
        {
            return None;
        }
        self.lazy_since = None;
        let changed = self.gaps.iter_mut().filter(|gap| gap.kept == Kept::Memory);
        let put_gaps = changed.map(|gap| {
            gap.kept = Kept::Writing;
            gap.row
        });
        let put_gaps = put_gaps.collect();
        let reserved = self.reservation(append.last().map(|row| row.seq), short, retrying);
        let batch = Batch {
            put_gaps,
            delete: std::mem::take(&mut self.delete),
            delete_gaps: std::mem::take(&mut self.delete_gaps),
            reserved,
            mark: self.mark(),
            settled: self.settled(),
            ceiling: self.next_ceiling(reserved, retrying),
            append,
        };
        self.pending = Some(Pending {
            reserved,
            delete: batch.delete.clone(),
            delete_gaps: batch.delete_gaps.clone(),
        });
        Some(batch)
    }

    /// What became of the batch. `wall` serves when no number can be reserved any more.
    pub fn batch_done(&mut self, applied: &Applied, wall: UnixTime, now: Instant) {
        let Some(pending) = self.pending.take() else { return };
        self.ceiling = applied.ceiling;
        match &applied.outcome {
            Ok(()) => {
                self.settle(Kept::Stored);
                self.reserved = pending.reserved;
                self.ledger_behind = false;
                self.health = Health::Good;
                self.refill();
            }
            Err(StoreError::Lost { .. }) => self.store_lost(),
            Err(_) => {
                self.settle(Kept::Memory);
                self.delete.extend(pending.delete);
                self.delete_gaps.extend(pending.delete_gaps);
                let unbounded = matches!(self.health, Health::Degraded { bounded: false, .. });
                let bounded = !unbounded && self.next_seq <= self.ceiling;
                if !bounded && !unbounded {
                    self.jump_to_clock(wall);
                }
                self.health = Health::Degraded { retry_at: now + RETRY, bounded };
            }
        }
    }

    /// The store did not take the batch at all.
    pub fn batch_refused(&mut self, error: StoreError, wall: UnixTime, now: Instant) {
        let applied = Applied { outcome: Err(error), ceiling: self.ceiling };
        self.batch_done(&applied, wall, now);
    }

    /// The next page to read; [`Outbox::loaded`] must follow.
    pub fn next_load(&mut self, now: Instant) -> Option<Load> {
        let room = self.window.len() < MEMORY_ROWS / 2 && self.window_bytes < MEMORY_BYTES / 2;
        let waiting = self.load_retry_at.is_some_and(|at| now < at);
        if self.loading || self.tail.rows == 0 || !room || waiting {
            return None;
        }
        self.loading = true;
        Some(Load { after: self.tail.after, limit: PAGE_ROWS, max_bytes: PAGE_BYTES as usize })
    }

    /// The page, or why it could not be read.
    pub fn loaded(&mut self, page: Result<Vec<OutboxRow>, StoreError>, now: Instant) {
        self.loading = false;
        self.load_retry_at = None;
        match page {
            Ok(rows) => {
                // Rows after the tail are still held in staging.
                let rows = rows.into_iter().filter(|row| row.seq <= self.tail.last);
                let rows: Vec<_> = rows.collect();
                for row in &rows {
                    self.tail.rows = self.tail.rows.saturating_sub(1);
                    self.tail.bytes = self.tail.bytes.saturating_sub(row.payload.len() as u64);
                    self.tail.after = row.seq;
                }
                if rows.is_empty() || self.tail.after >= self.tail.last {
                    self.tail = Tail::default();
                }
                for row in rows {
                    self.window_push(Entry { row, kept: Kept::Stored, since: now });
                }
                self.refill();
                self.enforce_limits();
            }
            Err(StoreError::Lost { .. }) => self.store_lost(),
            Err(_) => self.load_retry_at = Some(now + RETRY),
        }
    }

    fn rows_to_append(&mut self, now: Instant) -> Vec<OutboxRow> {
        let whole = self.must_store(now);
        let window = self.window.iter_mut().filter(|_| whole);
        let mut rows = Vec::new();
        let mut bytes = 0;
        for entry in window.chain(&mut self.staging).filter(|entry| entry.kept == Kept::Memory) {
            if rows.len() == PAGE_ROWS || bytes >= PAGE_BYTES {
                break;
            }
            bytes += entry.bytes();
            entry.kept = Kept::Writing;
            rows.push(entry.row.clone());
        }
        rows
    }

    /// Whether the window has to be stored as well.
    fn must_store(&self, now: Instant) -> bool {
        if self.settings.durability == Durability::Results || self.closing {
            return true;
        }
        let patience = self.settings.spill_after;
        let slow_since = match (self.link, self.window.front()) {
            (_, None) => return false,
            (Link::Down(since), Some(_)) => since,
            (Link::Up(since), Some(oldest)) => since.max(oldest.since),
        };
        now >= slow_since + patience || self.window.len() >= MEMORY_ROWS / 2
    }

    /// Bound of numbers for the ledger: what is stored now, or a block ahead.
    fn reservation(&self, appended: Option<u64>, short: bool, retrying: bool) -> u64 {
        let given = self.next_seq - 1;
        match self.settings.durability {
            _ if self.closing => given,
            Durability::Spill if short => given + BLOCK,
            Durability::Spill => self.reserved.max(given),
            Durability::Results if retrying || self.ledger_behind => given,
            Durability::Results => self.reserved.max(appended.unwrap_or(0)),
        }
    }

    fn next_ceiling(&self, reserved: u64, retrying: bool) -> u64 {
        let given = self.next_seq - 1;
        if self.closing {
            return reserved;
        }
        if self.settings.durability == Durability::Spill && !retrying {
            return reserved;
        }
        if self.ceiling < given + CEILING_STEP / 2 {
            return reserved.max(given + CEILING_STEP);
        }
        self.ceiling.max(reserved)
    }

    /// Every number up to this is delivered, a row, or in a gap, once the batch being made is committed.
    fn mark(&self) -> u64 {
        let held = self.window.iter().chain(&self.staging);
        let first =
            held.filter(|entry| entry.kept == Kept::Memory).map(|entry| entry.row.seq).min();
        first.unwrap_or(self.next_seq) - 1
    }

    fn settled(&self) -> u64 {
        let rows = self.window.iter().chain(&self.staging).map(|entry| entry.row.seq);
        let tail = (self.tail.rows > 0).then_some(self.tail.after + 1);
        let gaps = self.gaps.iter().map(|gap| gap.row.from);
        rows.chain(tail).chain(gaps).min().unwrap_or(self.next_seq) - 1
    }

    fn settle(&mut self, kept: Kept) {
        for entry in self.window.iter_mut().chain(&mut self.staging) {
            if entry.kept == Kept::Writing {
                entry.kept = kept;
            }
        }
        for gap in &mut self.gaps {
            if gap.kept == Kept::Writing {
                gap.kept = kept;
            }
        }
    }

    /// The store's file is gone: what is still in memory has to be written again, the rest is lost.
    fn store_lost(&mut self) {
        for entry in self.window.iter_mut().chain(&mut self.staging) {
            entry.kept = Kept::Memory;
        }
        for gap in &mut self.gaps {
            gap.kept = Kept::Memory;
        }
        self.delete.clear();
        self.delete_gaps.clear();
        self.reserved = 0;
        self.ledger_behind = true;
        self.load_retry_at = None;
        let tail = std::mem::take(&mut self.tail);
        if tail.rows > 0 {
            self.state.dropped += tail.rows;
            let known = self.gaps.iter().map(|gap| (gap.row.from, gap.row.to)).collect();
            for (from, to) in crate::store::unaccounted(tail.after, tail.last, known) {
                self.announce(from, to, GapReason::Storage);
            }
        }
        self.refill();
    }

    /// Without any durable mark, the time of day keeps numbers from being given twice.
    fn jump_to_clock(&mut self, wall: UnixTime) {
        let milliseconds = wall.as_micros() / 1000;
        if milliseconds > self.next_seq {
            self.announce(self.next_seq, milliseconds - 1, GapReason::Storage);
            self.next_seq = milliseconds;
            self.ledger_behind = true;
        }
    }
}

// The queue itself.
impl Outbox {
    fn is_degraded(&self) -> bool {
        matches!(self.health, Health::Degraded { .. })
    }

    fn held_bytes(&self) -> u64 {
        let rows = self.window.len() as u64 + self.tail.rows + self.staging.len() as u64;
        self.window_bytes + self.tail.bytes + self.staging_bytes + rows * ROW_OVERHEAD
    }

    fn window_has_room(&self) -> bool {
        self.window.len() < MEMORY_ROWS && self.window_bytes < MEMORY_BYTES
    }

    fn window_push(&mut self, entry: Entry) {
        self.window_bytes += entry.bytes();
        self.window.push_back(entry);
    }

    fn rewind(&mut self) {
        self.in_flight = 0;
        for gap in &mut self.gaps {
            gap.in_flight = false;
        }
    }

    fn remove(&mut self, index: usize) {
        let entry = self.window.remove(index).expect("the caller found it there");
        self.window_bytes -= entry.bytes();
        if entry.kept != Kept::Memory {
            self.delete.push(entry.row.seq);
        }
    }

    fn drop_at(&mut self, index: usize, reason: GapReason) {
        let seq = self.window[index].row.seq;
        self.remove(index);
        self.state.dropped += 1;
        self.announce(seq, seq, reason);
    }

    fn enforce_limits(&mut self) {
        if self.settings.overflow == Overflow::Block {
            return;
        }
        while self.held_bytes() > self.settings.max_bytes && self.window.len() > self.in_flight {
            self.drop_at(self.in_flight, GapReason::Overflow);
            self.refill();
        }
        // A store that takes nothing: memory alone is the limit.
        while self.is_degraded()
            && (self.staging.len() > MEMORY_ROWS || self.staging_bytes > MEMORY_BYTES)
        {
            if self.tail.rows == 0 && self.window.len() > self.in_flight {
                self.drop_at(self.in_flight, GapReason::Storage);
                self.refill();
            } else if let Some(entry) = self.staging.pop_front() {
                self.staging_bytes -= entry.bytes();
                if entry.kept == Kept::Writing {
                    self.delete.push(entry.row.seq);
                }
                self.state.dropped += 1;
                self.announce(entry.row.seq, entry.row.seq, GapReason::Storage);
            }
        }
    }

    /// Moves results towards the front: staging to the window, or, when stored, to the tail.
    fn refill(&mut self) {
        while let Some(entry) = self.staging.front() {
            let direct = self.tail.rows == 0 && !self.loading && self.window_has_room();
            if !direct && entry.kept != Kept::Stored {
                return;
            }
            let entry = self.staging.pop_front().expect("front was there");
            self.staging_bytes -= entry.bytes();
            if direct {
                self.window_push(entry);
            } else {
                if self.tail.rows == 0 {
                    self.tail.after = entry.row.seq - 1;
                }
                self.tail.rows += 1;
                self.tail.bytes += entry.bytes();
                self.tail.last = entry.row.seq;
            }
        }
    }

    fn announce(&mut self, from: u64, to: u64, reason: GapReason) {
        if let Some(last) = self.gaps.last_mut()
            && !last.sent
            && last.row.reason == reason
            && last.row.to + 1 == from
        {
            last.row.to = to;
            last.kept = Kept::Memory;
            return;
        }
        self.state.gaps += 1;
        let row = GapRow { from, to, reason };
        self.gaps.push(GapEntry { row, kept: Kept::Memory, sent: false, in_flight: false });
    }
}
