//! At most so many results a second and stream. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ocelli_protocol::Id;

/// Lets through what keeps each stream within its rate.
#[derive(Debug, Default)]
pub(super) struct RateLimit {
    general: Option<Duration>,
    streams: HashMap<Id, Stream>,
}

#[derive(Debug, Default)]
struct Stream {
    own: Option<Option<Duration>>,
    due: Option<Instant>,
}

impl RateLimit {
    /// At most `max_rate` results a second for each stream; `None` is no limit.
    #[must_use]
    pub(super) fn new(max_rate: Option<f32>) -> Self {
        Self { general: interval(max_rate), streams: HashMap::new() }
    }

    /// Another rate for one stream.
    pub(super) fn set(&mut self, stream: Id, max_rate: Option<f32>) {
        let stream = self.streams.entry(stream).or_default();
        stream.own = Some(interval(max_rate));
        stream.due = None;
    }

    /// Whether a result of `stream` passes now.
    pub(super) fn admit(&mut self, stream: &Id, now: Instant) -> bool {
        if !self.streams.contains_key(stream) {
            self.streams.insert(stream.clone(), Stream::default());
        }
        let Some(state) = self.streams.get_mut(stream) else { return true };
        let Some(interval) = state.own.unwrap_or(self.general) else { return true };
        // A frame that is a little early still passes, or a camera at exactly the limit would lose every second one.
        match state.due {
            Some(due) if now + interval / 8 < due => false,
            // In step: the next is due one interval later, so that the average is kept.
            Some(due) if now < due + interval => {
                state.due = Some(due + interval);
                true
            }
            _ => {
                state.due = Some(now + interval);
                true
            }
        }
    }
}

fn interval(max_rate: Option<f32>) -> Option<Duration> {
    let rate = max_rate.filter(|rate| rate.is_finite() && *rate > 0.0)?;
    Duration::try_from_secs_f32(1.0 / rate).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    fn passed(
        limit: &mut RateLimit,
        stream: &str,
        start: Instant,
        step_ms: u64,
        count: u64,
    ) -> usize {
        let stream = stream.parse().unwrap();
        (0..count)
            .filter(|step| limit.admit(&stream, start + Duration::from_millis(step * step_ms)))
            .count()
    }

    #[test]
    fn keeps_the_average_and_separates_streams() {
        let start = SystemClock.now();
        let mut limit = RateLimit::new(Some(5.0));
        limit.set("free".parse().unwrap(), None);
        assert_eq!(passed(&mut limit, "a", start, 10, 1000), 51, "50 intervals and both ends");
        assert_eq!(passed(&mut limit, "b", start, 200, 50), 50);
        assert_eq!(passed(&mut limit, "free", start, 1, 100), 100);
    }

    #[test]
    fn a_camera_that_jitters_around_the_limit_loses_nothing() {
        let start = SystemClock.now();
        let mut limit = RateLimit::new(Some(10.0));
        let stream = "a".parse().unwrap();
        let jitter = [0, 8, 3, 11, 1, 5, 9, 2];
        let passed = (0..80)
            .filter(|n| {
                let at = n * 100 + jitter[*n as usize % 8];
                limit.admit(&stream, start + Duration::from_millis(at))
            })
            .count();
        assert_eq!(passed, 80);
    }
}
