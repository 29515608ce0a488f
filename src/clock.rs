//! The one place that may ask for the time. Everybody else receives it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub use ocelli_protocol::time::UnixTime;

/// Source of time.
pub trait Clock: Send + Sync {
    /// Time that never goes back; for durations and deadlines.
    fn now(&self) -> Instant;
    /// Time of day; may jump.
    fn wall(&self) -> UnixTime;
}

/// The operating system's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

#[expect(clippy::disallowed_methods, reason = "the one place that may ask for the time")]
impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall(&self) -> UnixTime {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixTime::from_micros(u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX))
    }
}
