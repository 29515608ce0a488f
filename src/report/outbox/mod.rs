//! The outbox: gives numbers, keeps results until the broker has them, announces what will not come.
//!
//! Rule: each number arrives, or lies in exactly one announced gap. No I/O and no clock in here: the caller brings
//! events, carries out what [`Outbox::next_publish`], [`Outbox::next_batch`] and [`Outbox::next_load`] ask for, and
//! tells what came of it. At most one batch and one load are under way.
//!
//! Order of results, oldest first: `window` (in memory, its first `in_flight` sent and not acknowledged), `tail` (only in
//! the store), `staging` (in memory, on the way to the store because the window is full).

mod disk;
mod queue;
#[cfg(test)]
mod tests;

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
const BLOCK: u64 = 256;
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

impl Tail {
    /// What the store held when it was opened.
    fn of(recovered: &Recovered) -> Self {
        Self {
            rows: recovered.rows,
            bytes: recovered.bytes,
            after: recovered.first_row.map_or(0, |first| first - 1),
            last: recovered.last_row.unwrap_or(0),
        }
    }
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
    /// Numbers announced as a gap because none was known: first and last.
    passed_over: Option<(u64, u64)>,
    /// Results of earlier runs, in a database that was opened late, until they can take their place.
    found: Option<Tail>,
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
            passed_over: None,
            found: None,
            window: VecDeque::new(),
            window_bytes: 0,
            in_flight: 0,
            tail: Tail::of(recovered),
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
        if self.found.is_some() && !degraded {
            return None;
        }
        let entry = self.window.get(self.in_flight)?;
        let stored = entry.kept == Kept::Stored || self.settings.durability == Durability::Spill;
        // Were a later result sent first, a crash could bring the dropped one back, out of order.
        let announced =
            !self.gaps.iter().any(|gap| gap.kept != Kept::Stored && gap.row.from < entry.row.seq);
        let safe = stored && announced;
        if !safe && !degraded {
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
                    self.place_found();
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
