//! Tells the service manager how the agent is, and feeds its watchdog and the board's only while everything that must
//! move moves.
//!
//! The rule is [`stuck`], a pure function; [`Notifier`] is the socket of systemd (`NOTIFY_SOCKET`, `WATCHDOG_USEC`).

use std::fmt;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::agent::WatchdogLimits;
use crate::board::Watchdog;

/// Time since the last progress of each part. `None`: the part is not there or has ended in order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// The capture thread that is longest without a turn of its loop. An unplugged camera does not stop it.
    pub capture: Option<Duration>,
    /// The inference thread: a frame finished, none offered, or no room for its report.
    pub inference: Option<Duration>,
    /// The store's last answer.
    pub store: Option<Duration>,
}

/// A part that made no progress for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// A capture thread hangs in its driver.
    Capture,
    /// The inference thread hangs in the model.
    Inference,
    /// The store's thread hangs on the disk.
    Store,
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Capture => "capture",
            Self::Inference => "inference",
            Self::Store => "store",
        })
    }
}

/// The first part that hangs. The watchdog is fed only when there is none.
///
/// The agent's own loop needs no entry: it is the one that asks.
#[must_use]
pub fn stuck(progress: &Progress, limits: &WatchdogLimits) -> Option<Part> {
    let over = |age: Option<Duration>, limit| age.is_some_and(|age| age > limit);
    let parts = [
        (Part::Capture, over(progress.capture, limits.capture)),
        (Part::Inference, over(progress.inference, limits.inference)),
        (Part::Store, over(progress.store, limits.store)),
    ];
    parts.into_iter().find(|(_, over)| *over).map(|(part, _)| part)
}

/// The service manager and the hardware watchdog, where there are such.
#[derive(Debug)]
pub struct Notifier {
    /// Time between two feedings; `None`: nobody watches.
    interval: Option<Duration>,
    hardware: Option<Watchdog>,
    next: Option<Instant>,
    told: Option<Part>,
    status: String,
}

impl Notifier {
    /// Reads the environment that systemd gives its services, and takes over an armed watchdog of the board.
    #[must_use]
    pub fn from_environment(hardware: Option<Watchdog>) -> Self {
        // systemd advises half of the limit (sd_watchdog_enabled(3)); a third leaves room for a slow turn.
        let limits = [sd_notify::watchdog_enabled(), hardware.as_ref().map(Watchdog::timeout)];
        let interval = limits.into_iter().flatten().min().map(|limit| limit / 3);
        Self { interval, hardware, next: None, told: None, status: String::new() }
    }

    /// Time between two calls of [`Notifier::tick`] that keeps the watchdog fed, at most one second.
    #[must_use]
    pub fn tick_interval(&self) -> Duration {
        const LONGEST: Duration = Duration::from_secs(1);
        self.interval
            .map_or(LONGEST, |interval| interval.min(LONGEST))
            .max(Duration::from_millis(10))
    }

    /// Says that the agent serves.
    pub fn ready(&mut self) {
        send(&[NotifyState::Ready]);
    }

    /// Says that the agent ends in order, and stops the hardware watchdog: the end is the service manager's to watch.
    pub fn stopping(&mut self) {
        send(&[NotifyState::Stopping]);
        if let Some(hardware) = self.hardware.take() {
            hardware.disarm();
        }
    }

    /// Tells people how the agent is, when that changed.
    pub fn status(&mut self, status: String) {
        if self.status != status {
            send(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }

    /// Feeds the watchdog if it is time and nothing hangs. Logs a part that begins or ends to hang.
    pub fn tick(&mut self, progress: &Progress, limits: &WatchdogLimits, now: Instant) {
        let stuck = stuck(progress, limits);
        if stuck != self.told {
            match stuck {
                Some(part) => {
                    log::error!("no progress part={part} {progress:?}; the watchdog is not fed")
                }
                None => log::info!("progress again; the watchdog is fed"),
            }
            self.told = stuck;
        }
        let due = self.next.is_none_or(|next| now >= next);
        if let (Some(interval), true, None) = (self.interval, due, stuck) {
            send(&[NotifyState::Watchdog]);
            if let Some(hardware) = &mut self.hardware {
                hardware.feed();
            }
            self.next = Some(now + interval);
        }
    }
}

fn send(states: &[NotifyState<'_>]) {
    // Without a service manager this does nothing; with a broken one there is nobody to tell.
    if let Err(error) = sd_notify::notify(states) {
        log::debug!("service manager not told: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    #[test]
    fn the_boards_watchdog_is_fed_by_the_same_rule() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("watchdog");
        std::fs::write(&device, "").unwrap();
        let armed = Watchdog::arm(&device, folder.path()).unwrap();
        let third = armed.timeout() / 3;
        let mut notifier = Notifier::from_environment(Some(armed));
        let limits = WatchdogLimits::default();
        let (well, hung) = (
            Progress::default(),
            Progress { inference: Some(limits.inference * 2), ..Progress::default() },
        );
        let start = SystemClock.now();
        let fed = |notifier: &mut Notifier, progress: &Progress, thirds: u32| {
            notifier.tick(progress, &limits, start + third * thirds);
            std::fs::read(&device).unwrap().len()
        };
        assert_eq!(fed(&mut notifier, &well, 0), 2, "when armed and at the first tick");
        assert_eq!(fed(&mut notifier, &hung, 1), 2);
        assert_eq!(fed(&mut notifier, &hung, 2), 2);
        assert_eq!(fed(&mut notifier, &well, 3), 3);
        notifier.stopping();
        assert_eq!(std::fs::read(&device).unwrap(), b"\0\0\0V");
    }

    #[test]
    fn the_watchdog_is_fed_only_while_everything_moves() {
        let limits = WatchdogLimits::default();
        let ages = |capture, inference, store| {
            let seconds = |age: Option<u64>| age.map(Duration::from_secs);
            Progress {
                capture: seconds(capture),
                inference: seconds(inference),
                store: seconds(store),
            }
        };
        let cases = [
            ("all fresh", ages(Some(0), Some(0), Some(0)), None),
            ("nothing there", ages(None, None, None), None),
            ("at the limits", ages(Some(30), Some(60), Some(120)), None),
            ("driver hangs", ages(Some(31), Some(0), Some(0)), Some(Part::Capture)),
            ("model hangs", ages(Some(0), Some(61), Some(0)), Some(Part::Inference)),
            ("disk hangs", ages(Some(0), Some(0), Some(121)), Some(Part::Store)),
            ("streams ended, model hangs", ages(None, Some(61), None), Some(Part::Inference)),
            ("all hang", ages(Some(999), Some(999), Some(999)), Some(Part::Capture)),
        ];
        let wrong: Vec<_> = cases
            .into_iter()
            .map(|(name, progress, want)| (name, stuck(&progress, &limits), want))
            .filter(|(_, got, want)| got != want)
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
