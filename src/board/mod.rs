//! What is wired to the board besides the camera: an indicator light, a trigger input, a power meter, thermometers, a watchdog.
//!
//! Logic is generic over embedded-hal 1.0 or works on events and bytes; only `linux` opens devices. Hardware that is
//! not there is reported once, and stops the agent only when the config says that it is required.

pub mod indicator;
#[cfg(target_os = "linux")]
pub mod linux;
pub mod power;
mod retry;
pub mod temperature;
pub mod trigger;
pub mod watchdog;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub use indicator::{Indicator, Polarity, State};
pub use power::{Chip, Energy, PowerMeter, Reading};
pub use temperature::{Temperature, Thermometers};
pub use trigger::{Edge, Trigger};
pub use watchdog::Watchdog;

/// What is wired. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// Light that tells the agent's state.
    pub indicator: Option<IndicatorSettings>,
    /// Input that asks for a capture.
    pub trigger: Option<TriggerSettings>,
    /// Meter in the supply line.
    pub power_meter: Option<PowerMeterSettings>,
    /// Hardware watchdog.
    pub watchdog: Option<WatchdogSettings>,
}

/// Whether the agent may start without a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Presence {
    /// Reported once when it is not there.
    #[default]
    Optional,
    /// The agent does not start without it.
    Required,
}

/// An output line with a light on it.
#[derive(Debug, Clone, PartialEq)]
pub struct IndicatorSettings {
    /// The line.
    pub line: Line,
    /// Level that lights it.
    pub polarity: Polarity,
    /// Whether the agent may start without it.
    pub presence: Presence,
}

/// An input line with a sensor or button on it.
#[derive(Debug, Clone, PartialEq)]
pub struct TriggerSettings {
    /// The line.
    pub line: Line,
    /// Edge that asks for a capture.
    pub edge: Edge,
    /// How long the line must have been quiet before an edge counts.
    pub debounce: Duration,
    /// Whether the agent may start without it.
    pub presence: Presence,
}

/// A power meter on an I2C bus.
#[derive(Debug, Clone, PartialEq)]
pub struct PowerMeterSettings {
    /// Device file of the bus, for example `/dev/i2c-1`.
    pub bus: PathBuf,
    /// Address of the chip, 0x40 to 0x4f.
    pub address: u8,
    /// Which chip.
    pub chip: Chip,
    /// Resistance of the shunt, ohm, above 0.
    pub shunt_ohm: f32,
    /// Whether the agent may start without it.
    pub presence: Presence,
}

/// A hardware watchdog that the agent feeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchdogSettings {
    /// Device file, for example `/dev/watchdog`.
    pub device: PathBuf,
    /// Whether the agent may start without it.
    pub presence: Presence,
}

/// A GPIO line: `gpiochip0:17` is line 17 of `/dev/gpiochip0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Device file of the chip.
    pub chip: PathBuf,
    /// Number of the line on the chip.
    pub offset: u32,
}

impl FromStr for Line {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts = text.rsplit_once(':').filter(|(chip, _)| !chip.is_empty());
        let parsed = parts.and_then(|(chip, offset)| Some((chip, offset.parse().ok()?)));
        let (chip, offset) = parsed.ok_or_else(|| Error::Setting {
            setting: "line",
            value: text.to_owned(),
            expected: "chip and line number, as in gpiochip0:17 (gpioinfo lists them)",
        })?;
        // An absolute path stands for itself.
        Ok(Self { chip: PathBuf::from("/dev").join(chip), offset })
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}", self.chip.display(), self.offset)
    }
}

/// Why a device does not serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is not there, not ours to use, or something else.
    #[error("{device}: {seen}; {cure}")]
    Unavailable {
        /// Device file, with line number or address.
        device: String,
        /// What was seen.
        seen: String,
        /// What to do.
        cure: String,
    },
    /// The config asks for what cannot be.
    #[error("board: {setting} is {value}, it must be {expected}")]
    Setting {
        /// Key of the config.
        setting: &'static str,
        /// What it says.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
}

/// Opens the gate for what is not there: `None` and one warning when it is optional.
///
/// # Errors
/// The error itself when the device is required, or when it is the config that is wrong.
pub fn accept<T>(device: Result<T, Error>, presence: Presence) -> Result<Option<T>, Error> {
    match (device, presence) {
        (Ok(device), _) => Ok(Some(device)),
        (Err(error @ Error::Unavailable { .. }), Presence::Optional) => {
            log::warn!("{error}; going on without it");
            Ok(None)
        }
        (Err(error), _) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_chip_and_number() {
        let line: Line = "gpiochip0:17".parse().unwrap();
        assert_eq!(line, Line { chip: "/dev/gpiochip0".into(), offset: 17 });
        assert_eq!(line.to_string(), "/dev/gpiochip0:17");
        let line: Line = "/dev/gpio/by-name:3".parse().unwrap();
        assert_eq!(line.chip, PathBuf::from("/dev/gpio/by-name"));
        for wrong in ["", "17", "gpiochip0", "gpiochip0:", ":17", "gpiochip0:-1", "gpiochip0:x"] {
            let error = wrong.parse::<Line>().unwrap_err();
            assert!(matches!(error, Error::Setting { setting: "line", .. }), "{wrong}: {error}");
        }
    }

    #[test]
    fn absent_hardware_is_fatal_only_when_required() {
        let absent = Error::Unavailable {
            device: "/dev/i2c-1".into(),
            seen: "not there".into(),
            cure: "enable it".into(),
        };
        assert_eq!(accept::<()>(Err(absent.clone()), Presence::Optional), Ok(None));
        assert_eq!(accept::<()>(Err(absent.clone()), Presence::Required), Err(absent));
        assert_eq!(accept(Ok(1), Presence::Required), Ok(Some(1)));
        let wrong = Error::Setting { setting: "shunt_ohm", value: "0".into(), expected: "above 0" };
        assert_eq!(accept::<()>(Err(wrong.clone()), Presence::Optional), Err(wrong));
    }
}
