//! The outbox towards the store: what to write, what to read back, and what a failure means.

use super::{
    Applied, BLOCK, Batch, CEILING_STEP, Durability, Entry, GapEntry, GapReason, GapRow, Health,
    Instant, Kept, LAZY, Link, Load, MEMORY_BYTES, MEMORY_ROWS, Outbox, OutboxRow, PAGE_BYTES,
    PAGE_ROWS, Pending, RETRY, Recovered, StoreError, Tail, UnixTime,
};

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
        let put_gaps: Vec<GapRow> = put_gaps.collect();
        let highest =
            append.iter().map(|row| row.seq).chain(put_gaps.iter().map(|gap| gap.to)).max();
        let reserved = self.reservation(highest, short, retrying);
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
                if let Some(found) = &applied.found {
                    self.found(found, now);
                }
                self.place_found();
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
        let applied = Applied { outcome: Err(error), ceiling: self.ceiling, found: None };
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
    fn reservation(&self, highest: Option<u64>, short: bool, retrying: bool) -> u64 {
        let given = self.next_seq - 1;
        match self.settings.durability {
            _ if self.closing => given,
            Durability::Spill if short => given + BLOCK,
            Durability::Spill => self.reserved.max(given),
            Durability::Results if retrying || self.ledger_behind => given,
            Durability::Results => self.reserved.max(highest.unwrap_or(0)),
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

    /// The database that could not be opened at the start is there, with what earlier runs left.
    fn found(&mut self, found: &Recovered, now: Instant) {
        for gap in &found.gaps {
            let told = |(from, to): (u64, u64)| from <= gap.from && gap.to <= to;
            if self.passed_over.is_some_and(told) {
                self.delete_gaps.push(gap.from);
                self.lazy_since.get_or_insert(now);
            } else {
                self.state.gaps += 1;
                let kept = Kept::Stored;
                self.gaps.push(GapEntry { row: *gap, kept, sent: true, in_flight: false });
            }
        }
        // Numbers of a clock that was never set began too low.
        if found.next_seq > self.next_seq {
            (self.next_seq, self.ledger_behind) = (found.next_seq, true);
        }
        self.found = (found.rows > 0).then(|| Tail::of(found));
    }

    /// Results of earlier runs take their place before those in memory: once none of these is in flight, and the store holds no
    /// row that memory has forgotten.
    pub(super) fn place_found(&mut self) {
        if self.in_flight > 0 || self.pending.is_some() || !self.delete.is_empty() {
            return;
        }
        let Some(tail) = self.found.take() else { return };
        while let Some(entry) = self.window.pop_back() {
            self.staging_bytes += entry.bytes();
            self.staging.push_front(entry);
        }
        (self.window_bytes, self.tail) = (0, tail);
        self.refill();
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
    pub(super) fn jump_to_clock(&mut self, wall: UnixTime) {
        let milliseconds = wall.as_micros() / 1000;
        if milliseconds > self.next_seq {
            self.announce(self.next_seq, milliseconds - 1, GapReason::Storage);
            self.passed_over.get_or_insert((self.next_seq, milliseconds - 1));
            self.next_seq = milliseconds;
            self.ledger_behind = true;
        }
    }
}
