//! Events that anybody may cause share rows of the audit log: nobody who sends them, fast or slowly, pushes older rows out of it.

use std::time::{Duration, Instant};

/// Longest window of a kind, and the shortest quiet time after which a kind counts as new.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// A kind counts as new after a quiet time of so many of its windows, too.
const QUIET_WINDOWS: u32 = 4;
/// Rows of all kinds: so many at once, and one more in each of so much time.
const ROWS_AT_ONCE: u32 = 40;
const ONE_MORE_IN: Duration = Duration::from_secs(3600);
/// Of those at once, rows that only tell how many events came.
const ROWS_FOR_COUNTS: u32 = 8;

/// Which events get a row. The first of a kind does; those that follow in its window of time are counted, for a row when the
/// window has passed. Each window that saw an event is twice as long as the one before, up to a day, however slowly they come.
/// All kinds together get a limited number of rows; the events beyond are counted as well.
#[derive(Debug)]
pub(crate) struct Floods {
    first: Duration,
    open: Vec<Flood>,
    /// Rows left, and when the last one was added; none before the first event.
    left: Option<(u32, Instant)>,
}

#[derive(Debug)]
struct Flood {
    kind: &'static str,
    since: Instant,
    window: Duration,
    last: Instant,
    more: u64,
}

impl Flood {
    fn has_passed(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= self.window
    }

    fn is_over(&self, now: Instant) -> bool {
        let quiet = (self.window * QUIET_WINDOWS).max(LONGEST);
        self.more == 0 && now.saturating_duration_since(self.last) >= quiet
    }

    fn double(&mut self, now: Instant) {
        (self.since, self.window) = (now, (self.window * 2).min(LONGEST));
    }
}

impl Floods {
    /// Nothing came yet; the first window of a kind is so long.
    pub(crate) fn new(first: Duration) -> Self {
        Self { first, open: Vec::new(), left: None }
    }

    /// Whether there is a row for an event that shares none with others, as long as there are any.
    pub(crate) fn admit_alone(&mut self, now: Instant) -> bool {
        self.take(ROWS_FOR_COUNTS, now)
    }

    /// Whether this event gets a row of its own. If not, it is counted.
    pub(crate) fn admit(&mut self, kind: &'static str, now: Instant) -> bool {
        self.open.retain(|flood| flood.kind != kind || !flood.is_over(now));
        let known = self.open.iter().position(|flood| flood.kind == kind);
        let may_be_alone =
            known.is_none_or(|at| self.open[at].more == 0 && self.open[at].has_passed(now));
        let alone = may_be_alone && self.take(ROWS_FOR_COUNTS, now);
        let more = u64::from(!alone);
        match known {
            Some(at) => {
                let flood = &mut self.open[at];
                flood.last = now;
                flood.more += more;
                // One that comes just after its window is as much of a flood as one just before.
                if may_be_alone {
                    flood.double(now);
                }
            }
            None => {
                self.open.push(Flood { kind, since: now, window: self.first, last: now, more });
            }
        }
        alone
    }

    /// Kinds whose window has passed with more events than have rows: how many. Each is worth a row now.
    pub(crate) fn ended(&mut self, now: Instant) -> Vec<(&'static str, u64)> {
        let mut ended = Vec::new();
        for at in 0..self.open.len() {
            if self.open[at].more > 0 && self.open[at].has_passed(now) && self.take(0, now) {
                let flood = &mut self.open[at];
                ended.push((flood.kind, std::mem::take(&mut flood.more)));
                flood.double(now);
            }
        }
        ended
    }

    /// Takes one of the rows that are left, unless only so many are.
    fn take(&mut self, kept: u32, now: Instant) -> bool {
        let (mut left, mut since) = self.left.unwrap_or((ROWS_AT_ONCE, now));
        let earned = now.saturating_duration_since(since).as_secs() / ONE_MORE_IN.as_secs();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        left = left.saturating_add(earned).min(ROWS_AT_ONCE);
        since += ONE_MORE_IN * earned;
        let taken = left > kept;
        self.left = Some((left - u32::from(taken), since));
        taken
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do as the origin")]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;

    /// Rows, and events told in them, of a month in which one event of each kind comes in each of so many seconds.
    fn month(first: u64, kinds: &[&'static str], every: u64) -> (u64, u64, u64) {
        let start = Instant::now();
        let mut floods = Floods::new(Duration::from_secs(first));
        let (mut rows, mut told, mut sent) = (0, 0, 0);
        for second in (0..30 * DAY).step_by(30) {
            while sent * every <= second {
                for kind in kinds {
                    let now = start + Duration::from_secs(sent * every);
                    let alone = u64::from(floods.admit(kind, now));
                    (rows, told) = (rows + alone, told + alone);
                }
                sent += 1;
            }
            for (_, more) in floods.ended(start + Duration::from_secs(second)) {
                (rows, told) = (rows + 1, told + more);
            }
        }
        let end = start + Duration::from_secs(40 * DAY);
        told += floods.ended(end).iter().map(|(_, more)| more).sum::<u64>();
        (rows, told, sent * kinds.len() as u64)
    }

    #[test]
    fn a_drip_of_a_month_gets_few_rows_however_slow_and_none_of_it_is_uncounted() {
        let kinds = [
            "malformed",
            "unsigned",
            "rollback",
            "expired",
            "metadata",
            "document",
            "absent",
            "damaged",
            "flood",
        ];
        for first in [60, 3600] {
            for every in [20, 61, 121, 241, 300, 481, 601, 3661, 7201, 14_401, 43_201, 86_399] {
                let (rows, told, sent) = month(first, &kinds[..1], every);
                assert!(rows <= 40, "one kind in {every} s: {rows} rows");
                assert_eq!(told, sent, "one kind in {every} s");
                let (rows, told, sent) = month(first, &kinds, every);
                // Ten while the windows grow to a day, and one a day.
                assert!(rows <= 9 * 40, "nine kinds in {every} s: {rows} rows");
                assert_eq!(told, sent, "nine kinds in {every} s");
            }
        }
    }

    #[test]
    fn all_kinds_together_get_forty_rows_and_one_more_an_hour() {
        let start = Instant::now();
        let mut floods = Floods::new(Duration::from_secs(60));
        let (mut rows, mut alone) = (0_u64, 0_u64);
        for second in (0..30 * DAY).step_by(10) {
            let now = start + Duration::from_secs(second);
            let admitted = u64::from(floods.admit_alone(now));
            (rows, alone) = (rows + admitted, alone + admitted);
            for kind in ["a", "b", "c", "d"] {
                rows += u64::from(floods.admit(kind, now));
            }
            rows += floods.ended(now).len() as u64;
        }
        assert!(rows <= 40 + 30 * 24, "{rows} rows");
        assert!(alone >= 500, "counts leave rows for others: {alone}");
    }

    #[test]
    fn after_a_quiet_time_a_kind_has_a_row_and_a_short_window_again() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut floods = Floods::new(Duration::from_secs(60));
        assert!(floods.admit("malformed", at(0)) && !floods.admit("malformed", at(1)));
        assert_eq!(floods.ended(at(60)), [("malformed", 1)]);
        // The second window has 120 s; what comes after it has a row, and the third has 240 s.
        assert!(!floods.admit("malformed", at(61)) && floods.ended(at(179)).is_empty());
        assert_eq!(floods.ended(at(180)), [("malformed", 1)]);
        assert!(floods.admit("malformed", at(180 + 240)) && floods.admit("expired", at(500)));
        assert!(!floods.admit("malformed", at(420 + 240)));
        assert_eq!(floods.ended(at(420 + 480)), [("malformed", 1)]);
        // A quiet day, and the first window has 60 s again.
        assert!(
            floods.admit("malformed", at(660 + DAY)) && !floods.admit("malformed", at(661 + DAY))
        );
        assert_eq!(floods.ended(at(720 + DAY)), [("malformed", 1)]);
    }
}
