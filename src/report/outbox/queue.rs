//! The queue itself: order, limits, drops and their announcement.

use super::{
    Entry, GapEntry, GapReason, GapRow, Health, Kept, MEMORY_BYTES, MEMORY_ROWS, Outbox, Overflow,
    ROW_OVERHEAD,
};

impl Outbox {
    pub(super) fn is_degraded(&self) -> bool {
        matches!(self.health, Health::Degraded { .. })
    }

    pub(super) fn held_bytes(&self) -> u64 {
        let rows = self.window.len() as u64 + self.tail.rows + self.staging.len() as u64;
        self.window_bytes + self.tail.bytes + self.staging_bytes + rows * ROW_OVERHEAD
    }

    pub(super) fn window_has_room(&self) -> bool {
        self.window.len() < MEMORY_ROWS && self.window_bytes < MEMORY_BYTES
    }

    pub(super) fn window_push(&mut self, entry: Entry) {
        self.window_bytes += entry.bytes();
        self.window.push_back(entry);
    }

    pub(super) fn rewind(&mut self) {
        self.in_flight = 0;
        for gap in &mut self.gaps {
            gap.in_flight = false;
        }
        self.place_found();
    }

    pub(super) fn remove(&mut self, index: usize) {
        let entry = self.window.remove(index).expect("the caller found it there");
        self.window_bytes -= entry.bytes();
        if entry.kept != Kept::Memory {
            self.delete.push(entry.row.seq);
        }
    }

    pub(super) fn drop_at(&mut self, index: usize, reason: GapReason) {
        let seq = self.window[index].row.seq;
        self.remove(index);
        self.state.dropped += 1;
        self.announce(seq, seq, reason);
    }

    pub(super) fn enforce_limits(&mut self) {
        if self.settings.overflow == Overflow::Block {
            return;
        }
        if self.held_bytes() > self.settings.max_bytes {
            // Some room at once: one gap and one write for many results, and sending waits for it only now and then.
            let target = self.settings.max_bytes - self.settings.max_bytes / 16;
            while self.held_bytes() > target && self.window.len() > self.in_flight {
                self.drop_at(self.in_flight, GapReason::Overflow);
                self.refill();
            }
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
    pub(super) fn refill(&mut self) {
        while let Some(entry) = self.staging.front() {
            let direct = self.tail.rows == 0 && !self.loading && self.window_has_room();
            if !direct && (entry.kept != Kept::Stored || self.found.is_some()) {
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

    pub(super) fn announce(&mut self, from: u64, to: u64, reason: GapReason) {
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
