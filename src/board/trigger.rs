//! Capture on edge: which edges of an input line ask for a frame. Takes events with their time, does no I/O.

use std::collections::VecDeque;
use std::time::Duration;

/// Requests that wait; one more drops the oldest, whose moment has passed.
pub const MOST_WAITING: usize = 16;

/// Which edges ask for a capture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Edge {
    /// Low to high.
    #[default]
    Rising,
    /// High to low.
    Falling,
    /// Either.
    Both,
}

/// A change of the line, as the kernel saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineEvent {
    /// [`Edge::Rising`] or [`Edge::Falling`].
    pub edge: Edge,
    /// When, on the kernel's clock; only differences count.
    pub at: Duration,
}

/// Turns edges into requests for a capture.
///
/// An edge counts when the line was quiet for the debounce time before it. Edges of both directions must be fed:
/// the contact of a released button bounces too, and its bounces must not count as presses.
#[derive(Debug)]
pub struct Trigger {
    edge: Edge,
    debounce: Duration,
    last: Option<Duration>,
    waiting: VecDeque<Duration>,
    bounced: u64,
    dropped: u64,
}

impl Trigger {
    /// A trigger on `edge`; without debounce when that is zero.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ocelli::board::trigger::{Edge, LineEvent, Trigger};
    /// let mut trigger = Trigger::new(Edge::Rising, Duration::from_millis(5));
    /// trigger.feed(LineEvent { edge: Edge::Rising, at: Duration::from_millis(100) });
    /// trigger.feed(LineEvent { edge: Edge::Rising, at: Duration::from_millis(101) });
    /// assert_eq!(trigger.take(), Some(Duration::from_millis(100)));
    /// assert_eq!(trigger.take(), None);
    /// ```
    #[must_use]
    pub fn new(edge: Edge, debounce: Duration) -> Self {
        let waiting = VecDeque::with_capacity(MOST_WAITING);
        Self { edge, debounce, last: None, waiting, bounced: 0, dropped: 0 }
    }

    /// Takes a change of the line.
    pub fn feed(&mut self, event: LineEvent) {
        // A clock that went back tells nothing about quiet: the edge counts.
        let quiet = self
            .last
            .and_then(|last| event.at.checked_sub(last))
            .is_none_or(|since| since >= self.debounce);
        self.last = Some(event.at);
        if !quiet {
            self.bounced = self.bounced.saturating_add(1);
            return;
        }
        if self.edge != Edge::Both && self.edge != event.edge {
            return;
        }
        if self.waiting.len() == MOST_WAITING {
            self.waiting.pop_front();
            self.dropped = self.dropped.saturating_add(1);
        }
        self.waiting.push_back(event.at);
    }

    /// The oldest request that waits: when its edge was, on the kernel's clock.
    pub fn take(&mut self) -> Option<Duration> {
        self.waiting.pop_front()
    }

    /// Edges ignored because the line was not quiet before them.
    #[must_use]
    pub fn bounced(&self) -> u64 {
        self.bounced
    }

    /// Requests that nobody took in time.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn edges_count_after_quiet() {
        use Edge::{Both, Falling, Rising};
        // Press at 100 with bounces, release at 300 with bounces.
        const PRESS: [(Edge, u64); 6] = [
            (Rising, 100),
            (Falling, 101),
            (Rising, 102),
            (Falling, 300),
            (Rising, 301),
            (Falling, 303),
        ];
        type Case = (&'static str, Edge, u64, &'static [(Edge, u64)], &'static [u64]);
        let cases: &[Case] = &[
            ("press", Rising, 5, &PRESS, &[100]),
            ("release", Falling, 5, &PRESS, &[300]),
            ("both", Both, 5, &PRESS, &[100, 300]),
            ("no debounce", Rising, 0, &PRESS, &[100, 102, 301]),
            ("just quiet enough", Rising, 5, &[(Rising, 10), (Rising, 15)], &[10, 15]),
            ("not quite", Rising, 5, &[(Rising, 10), (Rising, 14)], &[10]),
            ("quiet starts anew", Rising, 5, &[(Rising, 10), (Rising, 14), (Rising, 18)], &[10]),
            ("clock back", Rising, 5, &[(Rising, 1000), (Rising, 3)], &[1000, 3]),
            ("at zero", Rising, 5, &[(Rising, 0)], &[0]),
        ];
        for (name, edge, debounce, events, expected) in cases {
            let mut trigger = Trigger::new(*edge, ms(*debounce));
            for (edge, at) in *events {
                trigger.feed(LineEvent { edge: *edge, at: ms(*at) });
            }
            let found: Vec<_> = std::iter::from_fn(|| trigger.take()).collect();
            let expected: Vec<_> = expected.iter().map(|at| ms(*at)).collect();
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn the_oldest_request_goes_when_nobody_takes_them() {
        let mut trigger = Trigger::new(Edge::Rising, ms(1));
        for n in 0..40 {
            trigger.feed(LineEvent { edge: Edge::Rising, at: ms(10 * n) });
        }
        assert_eq!(trigger.dropped(), 24);
        assert_eq!(trigger.bounced(), 0);
        let found: Vec<_> = std::iter::from_fn(|| trigger.take()).collect();
        assert_eq!(found, (24..40).map(|n| ms(10 * n)).collect::<Vec<_>>());
    }
}
