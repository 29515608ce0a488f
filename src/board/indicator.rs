//! A light that tells the agent's state by how often it flashes. It never stays on or off: a light that does not
//! change means that no agent runs.

use std::time::{Duration, Instant};

use embedded_hal::digital::{OutputPin, PinState};

use super::retry::Retry;

/// What the light tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Loading the model, opening the camera: evenly on and off, once a second.
    Starting,
    /// Frames are processed and the broker is connected: one flash every 2 s.
    Running,
    /// Frames are processed, the broker is away: two flashes.
    NoBroker,
    /// No frames: camera or model failed: four flashes.
    Fault,
}

const PERIOD: Duration = Duration::from_secs(2);
const FLASH: Duration = Duration::from_millis(120);
const SPACING: Duration = Duration::from_millis(360);

impl State {
    /// Whether the light is on, this long after the state was entered.
    #[must_use]
    pub fn lit(self, elapsed: Duration) -> bool {
        let at = remainder(elapsed, PERIOD);
        match self.flashes() {
            None => remainder(at, PERIOD / 2) < PERIOD / 4,
            Some(count) => at < SPACING * count && remainder(at, SPACING) < FLASH,
        }
    }

    /// Flashes every 2 s; `None` for an even rhythm.
    fn flashes(self) -> Option<u32> {
        match self {
            Self::Starting => None,
            Self::Running => Some(1),
            Self::NoBroker => Some(2),
            Self::Fault => Some(4),
        }
    }
}

fn remainder(time: Duration, period: Duration) -> Duration {
    let nanos = time.as_nanos() % period.as_nanos();
    Duration::from_nanos(u64::try_from(nanos).expect("less than the period"))
}

/// Level that lights the light.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Polarity {
    /// Lit when high.
    #[default]
    ActiveHigh,
    /// Lit when low.
    ActiveLow,
}

/// The light on an output pin. Failures are counted and tried again later.
pub struct Indicator<P> {
    pin: P,
    polarity: Polarity,
    state: State,
    since: Instant,
    written: Option<PinState>,
    retry: Retry,
}

impl<P: OutputPin> Indicator<P> {
    /// Longest time between calls of [`Indicator::tick`] that still shows every flash.
    pub const TICK: Duration = Duration::from_millis(60);

    /// A light that tells [`State::Starting`] from `now` on. Nothing is written before the first tick.
    pub fn new(pin: P, polarity: Polarity, now: Instant) -> Self {
        Self {
            pin,
            polarity,
            state: State::Starting,
            since: now,
            written: None,
            retry: Retry::default(),
        }
    }

    /// What to tell from now on; the rhythm starts anew only when the state changes.
    pub fn set(&mut self, state: State, now: Instant) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
    }

    /// Switches the light when it is time to.
    pub fn tick(&mut self, now: Instant) {
        let lit = self.state.lit(now.saturating_duration_since(self.since));
        let level = PinState::from(lit == (self.polarity == Polarity::ActiveHigh));
        if self.written == Some(level) || !self.retry.ready(now) {
            return;
        }
        match self.pin.set_state(level) {
            Ok(()) => {
                self.written = Some(level);
                self.retry.succeeded("indicator");
            }
            Err(error) => {
                self.written = None;
                self.retry.failed(now, "indicator", &format_args!("{error:?}"));
            }
        }
    }

    /// Writes that failed.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.retry.errors()
    }

    /// Switches the light off; the end of an orderly shutdown.
    pub fn off(&mut self) {
        let level = PinState::from(self.polarity == Polarity::ActiveLow);
        if let Err(error) = self.pin.set_state(level) {
            log::debug!("indicator: {error:?}");
        }
        self.written = None;
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use embedded_hal_mock::eh1::MockError;
    use embedded_hal_mock::eh1::digital::{Mock, State as Level, Transaction};

    use crate::clock::{Clock, SystemClock};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn states_differ_in_their_number_of_flashes() {
        for (state, flashes) in
            [(State::Starting, 2), (State::Running, 1), (State::NoBroker, 2), (State::Fault, 4)]
        {
            let lit: Vec<bool> = (0..2000).map(|ms| state.lit(MS * ms)).collect();
            let rises = (0..2000).filter(|&ms| lit[ms] && !lit[(ms + 1999) % 2000]).count();
            assert_eq!(rises, flashes, "{state:?}");
            assert!(lit[0], "{state:?} shows at once");
            for ms in 0..2000 {
                assert_eq!(
                    state.lit(MS * (ms + 86_400_000)),
                    lit[ms as usize],
                    "{state:?} at {ms}"
                );
            }
        }
        let share = |state: State| (0..2000).filter(|&ms| state.lit(MS * ms)).count();
        assert_eq!(share(State::Starting), 1000);
        assert_eq!(share(State::NoBroker), 240);
    }

    #[test]
    fn writes_only_changes_and_in_the_right_sense() {
        for (polarity, levels) in [
            (Polarity::ActiveHigh, [Level::High, Level::Low]),
            (Polarity::ActiveLow, [Level::Low, Level::High]),
        ] {
            let [on, off] = levels;
            let mut pin = Mock::new(&[
                Transaction::set(on),
                Transaction::set(off),
                Transaction::set(on),
                Transaction::set(off),
            ]);
            let start = SystemClock.now();
            let mut indicator = Indicator::new(pin.clone(), polarity, start);
            for ms in [0, 100, 499, 500, 900] {
                indicator.tick(start + MS * ms);
            }
            indicator.set(State::Running, start + MS * 900);
            indicator.set(State::Running, start + MS * 950);
            indicator.tick(start + MS * 960);
            indicator.off();
            pin.done();
        }
    }

    #[test]
    fn a_dead_pin_is_counted_and_left_alone_for_a_while() {
        let broken = || MockError::Io(ErrorKind::NotConnected);
        let mut pin = Mock::new(&[
            Transaction::set(Level::High).with_error(broken()),
            Transaction::set(Level::High).with_error(broken()),
            Transaction::set(Level::High),
        ]);
        let start = SystemClock.now();
        let mut indicator = Indicator::new(pin.clone(), Polarity::ActiveHigh, start);
        for ms in [0, 60, 400, 1000, 1060, 2900, 3000, 3100] {
            indicator.tick(start + MS * ms);
        }
        assert_eq!(indicator.errors(), 2);
        pin.done();
    }
}
