//! Events of a kind that come all the time share rows of the audit log: nobody who sends them pushes older rows out of it.

use std::time::{Duration, Instant};

/// Longest time between two rows of a kind.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Which events get a row. The first of a kind does; those that follow are counted, for a row when a window of time has passed.
/// The window doubles, up to a day, for as long as more come.
#[derive(Debug)]
pub(crate) struct Floods {
    first: Duration,
    open: Vec<Flood>,
}

#[derive(Debug)]
struct Flood {
    kind: &'static str,
    since: Instant,
    window: Duration,
    more: u64,
}

impl Floods {
    /// Nothing came yet; the first window of a kind is so long.
    pub(crate) fn new(first: Duration) -> Self {
        Self { first, open: Vec::new() }
    }

    /// Whether this event gets a row of its own. If not, it is counted.
    pub(crate) fn admit(&mut self, kind: &'static str, now: Instant) -> bool {
        match self.open.iter_mut().find(|flood| flood.kind == kind) {
            Some(flood) => {
                flood.more += 1;
                false
            }
            None => {
                self.open.push(Flood { kind, since: now, window: self.first, more: 0 });
                true
            }
        }
    }

    /// Kinds whose window has passed with more events than the one that got a row: how many. Each is worth a row now.
    pub(crate) fn ended(&mut self, now: Instant) -> Vec<(&'static str, u64)> {
        let mut ended = Vec::new();
        self.open.retain_mut(|flood| {
            if now.saturating_duration_since(flood.since) < flood.window {
                return true;
            }
            let more = std::mem::take(&mut flood.more);
            if more > 0 {
                ended.push((flood.kind, more));
            }
            (flood.since, flood.window) = (now, (flood.window * 2).min(LONGEST));
            more > 0
        });
        ended
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do as the origin")]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_a_month_gets_few_rows_and_none_of_it_is_uncounted() {
        let start = Instant::now();
        let mut floods = Floods::new(Duration::from_secs(3600));
        let (mut rows, mut counted, mut sent) = (0, 0, 0);
        for minute in 0..31 * 24 * 60 {
            let now = start + Duration::from_secs(60 * minute);
            sent += 1;
            rows += u64::from(floods.admit("malformed", now));
            for (kind, more) in floods.ended(now) {
                assert_eq!(kind, "malformed");
                (rows, counted) = (rows + 1, counted + more);
            }
        }
        assert!(rows <= 40, "{rows} rows");
        let end = start + Duration::from_secs(40 * 24 * 3600);
        counted += floods.ended(end).iter().map(|(_, more)| more).sum::<u64>();
        assert_eq!(counted + 1, sent);
        // Over: the next one of the kind has a row again.
        let later = end + LONGEST;
        assert!(floods.ended(later).is_empty());
        assert!(floods.admit("malformed", later) && floods.admit("expired", later));
    }
}
