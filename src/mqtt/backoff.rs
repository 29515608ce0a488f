//! How long to wait before the next attempt. Pure: randomness and time are arguments.

use std::time::Duration;

/// Bounds of the waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffSettings {
    /// Upper bound of the first wait.
    pub first: Duration,
    /// Upper bound of every wait.
    pub max: Duration,
    /// A connection that lasted this long starts the waits from `first` again.
    pub stable_after: Duration,
}

impl Default for BackoffSettings {
    /// 1 s, 2 s, 4 s … 60 s; stable after 30 s.
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            max: Duration::from_secs(60),
            stable_after: Duration::from_secs(30),
        }
    }
}

/// Jittered exponential back-off: wait number n is between half and the whole of `first * 2^n`, at most `max`.
#[derive(Debug, Clone)]
pub struct Backoff {
    settings: BackoffSettings,
    failures: u32,
}

impl Backoff {
    /// Nothing has failed yet.
    #[must_use]
    pub fn new(settings: BackoffSettings) -> Self {
        Self { settings, failures: 0 }
    }

    /// The wait after an attempt whose connection lasted `connected` (zero when it failed).
    ///
    /// `random` is any number; it chooses the point between half and whole.
    pub fn after(&mut self, connected: Duration, random: u64) -> Duration {
        if connected >= self.settings.stable_after && !connected.is_zero() {
            self.failures = 0;
        }
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let whole = self.settings.first.saturating_mul(factor).min(self.settings.max);
        self.failures = (self.failures + 1).min(31);
        let half = whole / 2;
        let span = u64::try_from(half.as_micros()).unwrap_or(u64::MAX);
        half + Duration::from_micros(random % span.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: BackoffSettings = BackoffSettings {
        first: Duration::from_secs(1),
        max: Duration::from_secs(60),
        stable_after: Duration::from_secs(30),
    };

    #[test]
    fn waits_double_between_half_and_whole_up_to_the_limit() {
        for random in [0, 1, 499_999, 500_000, 7_777_777, u64::MAX] {
            let mut backoff = Backoff::new(SETTINGS);
            for whole in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
                let wait = backoff.after(Duration::ZERO, random);
                let whole = Duration::from_secs(whole);
                assert!(wait >= whole / 2 && wait <= whole, "{wait:?} of {whole:?}, {random}");
            }
        }
    }

    #[test]
    fn only_a_stable_connection_starts_over() {
        let mut backoff = Backoff::new(SETTINGS);
        for _ in 0..4 {
            let _ = backoff.after(Duration::ZERO, 0);
        }
        let short = backoff.after(Duration::from_secs(29), 0);
        assert_eq!(short, Duration::from_secs(8));
        let stable = backoff.after(Duration::from_secs(30), 0);
        assert_eq!(stable, Duration::from_millis(500));
    }

    #[test]
    fn never_overflows() {
        let mut backoff = Backoff::new(SETTINGS);
        for _ in 0..1000 {
            assert!(backoff.after(Duration::ZERO, u64::MAX) <= SETTINGS.max);
        }
    }
}
