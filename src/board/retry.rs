//! When to try a failing device again, and when to say so: one warning per series of failures.

use std::fmt::Display;
use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// Back-off of one device: 1 s after a failure, doubling up to 60 s.
#[derive(Debug, Default)]
pub(super) struct Retry {
    series: u32,
    errors: u64,
    not_before: Option<Instant>,
}

impl Retry {
    /// Whether the device may be tried.
    pub(super) fn ready(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|time| now >= time)
    }

    /// Failures ever.
    pub(super) fn errors(&self) -> u64 {
        self.errors
    }

    pub(super) fn failed(&mut self, now: Instant, device: &str, error: &dyn Display) {
        if self.series == 0 {
            log::warn!("{device}: {error}; trying again later");
        } else {
            log::debug!("{device}: {error}");
        }
        let wait = FIRST.saturating_mul(1 << self.series.min(6)).min(LONGEST);
        self.not_before = now.checked_add(wait);
        self.series = self.series.saturating_add(1);
        self.errors = self.errors.saturating_add(1);
    }

    pub(super) fn succeeded(&mut self, device: &str) {
        if self.series > 0 {
            log::info!("{device}: works again after {} failures", self.series);
        }
        self.series = 0;
        self.not_before = None;
    }
}

#[cfg(test)]
mod tests {
    use crate::clock::{Clock, SystemClock};

    use super::*;

    #[test]
    fn waits_longer_each_time_up_to_a_minute() {
        let mut now = SystemClock.now();
        let mut retry = Retry::default();
        assert!(retry.ready(now));
        for expected in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            retry.failed(now, "device", &"gone");
            let wait = Duration::from_secs(expected);
            assert!(!retry.ready(now + wait - Duration::from_millis(1)), "{expected}");
            now += wait;
            assert!(retry.ready(now), "{expected}");
        }
        assert_eq!(retry.errors(), 9);
        retry.succeeded("device");
        retry.failed(now, "device", &"gone");
        assert!(retry.ready(now + FIRST), "a new series starts short");
    }
}
