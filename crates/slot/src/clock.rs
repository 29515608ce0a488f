//! The one place of this crate that may ask for or set the time. Everybody else receives it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_settime};

/// Time that never goes back.
#[expect(clippy::disallowed_methods, reason = "the one place that may ask for the time")]
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// Time of day since 1970 in UTC; zero when the clock stands before that.
#[expect(clippy::disallowed_methods, reason = "the one place that may ask for the time")]
#[must_use]
pub fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Sets the time of day.
///
/// # Errors
/// Without the right to do so, or when the kernel has no such time.
pub fn set_wall(since_1970: Duration) -> std::io::Result<()> {
    let seconds = i64::try_from(since_1970.as_secs()).map_err(std::io::Error::other)?;
    let time = Timespec { tv_sec: seconds, tv_nsec: since_1970.subsec_nanos().into() };
    Ok(clock_settime(ClockId::Realtime, time)?)
}
