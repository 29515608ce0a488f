//! Proves that nothing was lost: each sequence number of a device arrives, or lies in an announced gap. No I/O.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// A hole is reported after this time: messages may come late and out of order around a reconnect.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The numbers of one device, from the first one seen.
#[derive(Debug, Default)]
pub(crate) struct Sequence {
    /// Lowest number never seen nor announced, once the first has come.
    next: Option<u64>,
    /// Numbers below `next` that are neither here nor announced: first to (last, since when).
    holes: BTreeMap<u64, (u64, Instant)>,
    /// Holes that were reported and are still open: first to last.
    reported: BTreeMap<u64, u64>,
    /// What happened so far.
    pub(crate) totals: Totals,
}

/// Counts for the summary.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Results, each counted once.
    pub(crate) results: u64,
    /// Results that came again.
    pub(crate) repeated: u64,
    /// Numbers announced as gaps.
    pub(crate) announced: u64,
}

/// What a number means to the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Seen for the first time.
    New,
    /// Seen before: drop it.
    Repeated,
}

impl Sequence {
    /// Notes a result.
    pub(crate) fn result(&mut self, seq: u64, now: Instant) -> Arrival {
        let known = self.next;
        let arrival = match known {
            Some(next) if seq < next && !self.fill(seq, seq) => Arrival::Repeated,
            _ => {
                self.advance(seq, seq, now);
                Arrival::New
            }
        };
        match arrival {
            Arrival::New => self.totals.results += 1,
            Arrival::Repeated => self.totals.repeated += 1,
        }
        arrival
    }

    /// Notes numbers that will not come.
    pub(crate) fn gap(&mut self, from: u64, to: u64, now: Instant) {
        if from > to {
            return;
        }
        self.fill(from, to);
        // A gap before the first result says nothing about where this receiver began.
        if self.next.is_some() {
            self.advance(from, to, now);
        }
        self.totals.announced += to - from + 1;
    }

    /// Holes that became overdue since the last call.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<RangeInclusive<u64>> {
        let late = |since: Instant| now.saturating_duration_since(since) >= PATIENCE;
        let found: Vec<_> = self
            .holes
            .iter()
            .filter(|(_, (_, since))| late(*since))
            .map(|(from, (to, _))| (*from, *to))
            .filter(|(from, to)| self.reported.get(from) != Some(to))
            .collect();
        found
            .into_iter()
            .map(|(from, to)| {
                self.reported.insert(from, to);
                from..=to
            })
            .collect()
    }

    /// Every hole, overdue or not.
    pub(crate) fn missing(&self) -> Vec<RangeInclusive<u64>> {
        self.holes.iter().map(|(from, (to, _))| *from..=*to).collect()
    }

    fn advance(&mut self, from: u64, to: u64, now: Instant) {
        let next = self.next.unwrap_or(from);
        if from > next {
            self.holes.insert(next, (from - 1, now));
        }
        self.next = Some(next.max(to.saturating_add(1)));
    }

    /// Takes `from..=to` out of the holes; whether any number of it was missing.
    fn fill(&mut self, from: u64, to: u64) -> bool {
        let touched: Vec<_> = self
            .holes
            .range(..=to)
            .filter(|(_, (last, _))| *last >= from)
            .map(|(first, (last, since))| (*first, *last, *since))
            .collect();
        for (first, last, since) in &touched {
            self.holes.remove(first);
            self.reported.remove(first);
            if *first < from {
                self.holes.insert(*first, (from - 1, *since));
            }
            if *last > to {
                self.holes.insert(to + 1, (*last, *since));
            }
        }
        !touched.is_empty()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a start for invented times")]
mod tests {
    use super::*;

    #[test]
    fn a_hole_is_missing_until_it_is_filled_or_announced() {
        let now = Instant::now();
        let mut sequence = Sequence::default();
        for seq in [7, 8, 12, 20] {
            assert_eq!(sequence.result(seq, now), Arrival::New, "{seq}");
        }
        assert_eq!(sequence.missing(), [9..=11, 13..=19]);
        assert_eq!(sequence.result(10, now), Arrival::New);
        assert_eq!(sequence.missing(), [9..=9, 11..=11, 13..=19]);
        sequence.gap(9, 11, now);
        sequence.gap(14, 17, now);
        assert_eq!(sequence.missing(), [13..=13, 18..=19]);
        assert_eq!(sequence.totals.results, 5);
    }

    #[test]
    fn a_repeated_number_is_no_news() {
        let now = Instant::now();
        let mut sequence = Sequence::default();
        assert_eq!(sequence.result(3, now), Arrival::New);
        assert_eq!(sequence.result(3, now), Arrival::Repeated);
        assert_eq!(sequence.result(2, now), Arrival::Repeated);
        assert!(sequence.missing().is_empty());
    }

    #[test]
    fn a_gap_ahead_of_the_results_closes_up() {
        let now = Instant::now();
        let mut sequence = Sequence::default();
        assert_eq!(sequence.result(1, now), Arrival::New);
        sequence.gap(2, 9, now);
        assert_eq!(sequence.result(10, now), Arrival::New);
        assert!(sequence.missing().is_empty());
        sequence.gap(5, 4, now);
        assert_eq!(sequence.totals, Totals { results: 2, repeated: 0, announced: 8 });
    }

    #[test]
    fn a_hole_is_reported_once_and_only_after_patience() {
        let now = Instant::now();
        let mut sequence = Sequence::default();
        assert_eq!(sequence.result(1, now), Arrival::New);
        assert_eq!(sequence.result(5, now), Arrival::New);
        assert!(sequence.overdue(now + PATIENCE / 2).is_empty());
        assert_eq!(sequence.overdue(now + PATIENCE), [2..=4]);
        assert!(sequence.overdue(now + 2 * PATIENCE).is_empty());
    }
}
