//! A fixed rate: when the next frame is due. Pure arithmetic; the caller waits.

use std::time::{Duration, Instant};

/// Frames at a fixed rate, from a first one on. Does not drift: each due time is computed from the origin. Does not burst: dues
/// that passed during a stall are left out, and the next one is again on the grid.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    fps: f64,
    /// Due time of the first frame, and how many periods after it the next one is due.
    next: Option<(Instant, u64)>,
}

impl Schedule {
    /// A schedule of `fps` frames a second, above 0. The first frame is due when first asked for.
    pub(super) fn new(fps: f32) -> Self {
        Self { fps: f64::from(fps), next: None }
    }

    /// How long the next frame is still to be waited for.
    pub(super) fn remaining(&self, now: Instant) -> Duration {
        match self.next {
            None => Duration::ZERO,
            Some((origin, periods)) => {
                self.offset(periods).saturating_sub(now.saturating_duration_since(origin))
            }
        }
    }

    /// Notes that the due frame was taken at `now`.
    pub(super) fn advance(&mut self, now: Instant) {
        self.next = Some(match self.next {
            None => (now, 1),
            Some((origin, periods)) => {
                let elapsed = now.saturating_duration_since(origin);
                let passed = (elapsed.as_secs_f64() * self.fps) as u64;
                // Within its period a late frame keeps its place; after a longer stall the passed dues are lost.
                let next = if passed > periods { passed + 1 } else { periods + 1 };
                (origin, next)
            }
        });
    }

    fn offset(&self, periods: u64) -> Duration {
        // Fails only for a due time beyond 500 thousand million years.
        Duration::try_from_secs_f64(periods as f64 / self.fps).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    /// Plays the schedule with a caller that takes each frame `lateness` after it is due; returns the times.
    fn play(fps: f32, frames: usize, mut lateness: impl FnMut(usize) -> Duration) -> Vec<Duration> {
        let origin = SystemClock.now();
        let mut schedule = Schedule::new(fps);
        let mut now = origin;
        let mut taken = Vec::new();
        for frame in 0..frames {
            now += schedule.remaining(now) + lateness(frame);
            schedule.advance(now);
            taken.push(now - origin);
        }
        taken
    }

    #[test]
    fn does_not_drift_over_a_day_at_30_frames_a_second() {
        let frames = 30 * 3600 * 24 + 1;
        let late = Duration::from_millis(3);
        let taken = play(30.0, frames, |frame| if frame == 0 { Duration::ZERO } else { late });
        let day = Duration::from_secs(3600 * 24) + late;
        let error = taken[frames - 1].abs_diff(day);
        assert!(error < Duration::from_micros(1), "{error:?}");
    }

    #[test]
    fn a_stall_is_followed_by_no_burst() {
        let stall = Duration::from_millis(1050);
        let taken = play(10.0, 6, |frame| if frame == 2 { stall } else { Duration::ZERO });
        let millis: Vec<_> = taken.iter().map(Duration::as_millis).collect();
        // Due at 200, taken at 1250; 300…1200 are lost, the next is due on the grid.
        assert_eq!(millis, [0, 100, 1250, 1300, 1400, 1500]);
    }

    #[test]
    fn a_late_frame_keeps_the_grid() {
        let late = Duration::from_millis(40);
        let taken = play(10.0, 4, |frame| if frame == 1 { late } else { Duration::ZERO });
        let millis: Vec<_> = taken.iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [0, 140, 200, 300]);
    }
}
