//! Time of day as every payload writes it.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

/// Wall-clock time since 1970-01-01 UTC, without leap seconds, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime {
    micros: u64,
}

impl UnixTime {
    /// A time from microseconds since 1970.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self { micros }
    }

    /// Microseconds since 1970.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.micros
    }

    /// Seconds since 1970.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.micros / 1_000_000
    }
}

/// RFC 3339 in UTC with milliseconds, as in every payload: `2026-11-21T09:00:00.123Z`.
impl fmt::Display for UnixTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // humantime refuses years beyond 9999; such a clock is wrong anyway, and must not stop the agent.
        const YEAR_9999: u64 = 253_402_300_799_000_000;
        let time = UNIX_EPOCH + Duration::from_micros(self.micros.min(YEAR_9999));
        humantime::format_rfc3339_millis(time).fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_rfc_3339_with_milliseconds() {
        assert_eq!(UnixTime::from_micros(0).to_string(), "1970-01-01T00:00:00.000Z");
        let time = UnixTime::from_micros(1_795_251_600_123_456);
        assert_eq!(time.to_string(), "2026-11-21T09:00:00.123Z");
        assert_eq!(UnixTime::from_micros(u64::MAX).to_string(), "9999-12-31T23:59:59.000Z");
    }
}
