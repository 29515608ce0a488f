//! The configuration file: TOML, parsed once into validated values. Modules never see it; they get their `Settings`.
//!
//! `defaults.toml` beside this file is the one list of keys and defaults; users read it with `ocelli check
//! --defaults`. Secrets never stand in the file, only paths to them.

mod read;
mod section;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ocelli_protocol::Id;
use toml::de::{DeTable, Error as TomlError};

use crate::file::read_regular;
use crate::inference::Sandbox;
use crate::inference::session::Closeness;
use crate::processor::Processor;

pub use crate::mqtt::{SecretError, read_password, readable_by_others};
pub use section::Problem;
use section::{Section, Source};
pub use settings::MAX_ROOT_BYTES;

/// Every key with its default and meaning, as a valid configuration.
pub const DEFAULTS: &str = include_str!("defaults.toml");

/// Largest configuration file accepted, bytes.
pub const MAX_CONFIG_BYTES: u64 = 256 * 1024;

/// A valid configuration. Paths are absolute or relative to the working directory.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "defaults.toml documents each section and key under the same name")]
pub struct Config {
    pub device: Device,
    pub streams: Vec<Stream>,
    pub model: Model,
    pub npu: Npu,
    pub plugins: Vec<Plugin>,
    /// `None`: no broker, results go to standard output.
    pub mqtt: Option<Mqtt>,
    pub outbox: Outbox,
    /// `None`: the model changes only with the configuration.
    pub update: Option<Update>,
    pub store: PathBuf,
    pub board: Board,
    pub health_interval: Duration,
    pub log_level: log::LevelFilter,
}

/// `[device]`
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// Name in topics and results.
    pub id: Id,
    /// What the device is.
    pub labels: Vec<Id>,
}

/// `[[stream]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    /// Last level of the result topic.
    pub name: Id,
    /// Device, picture or folder; `None`: the sample pictures.
    pub camera: Option<PathBuf>,
    /// Pictures start again after the last one.
    pub repeat: bool,
    /// Frames looked at a second, at most.
    pub fps: f32,
    /// Width and height asked for, pixels.
    pub size: Option<(usize, usize)>,
    /// Frames are taken when the board's input fires.
    pub triggered: bool,
}

/// `[model]`
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Folder or tar; `None`: the zoo's detector.
    pub path: Option<PathBuf>,
    /// Delegates in order of preference, without tract, which is always last.
    pub delegates: Vec<Id>,
    /// `"auto"`: the order is what a measurement on this device says.
    pub by_measurement: bool,
    /// Threads that compute, and their cores.
    pub processor: Processor,
    /// Longest inference of one frame.
    pub deadline: Duration,
}

/// `[npu]`
#[derive(Debug, Clone, PartialEq)]
pub struct Npu {
    /// The program that hosts plug-ins; `None`: where it is installed.
    pub worker: Option<PathBuf>,
    /// Words before it.
    pub runner: Vec<String>,
    /// Frames between two comparisons with the stand-in; 0: never.
    pub shadow_every: u32,
    /// What may differ.
    pub closeness: Closeness,
}

/// `[[plugin]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Plugin {
    /// Name of the delegate.
    pub name: Id,
    /// Shared library.
    pub library: PathBuf,
    /// For the plug-in.
    pub options: BTreeMap<String, String>,
    /// How far its process is fenced in.
    pub sandbox: Sandbox,
    /// Address space, bytes; 0: no limit.
    pub memory: u64,
    /// Longest time for loading and compiling.
    pub patience: Duration,
    /// Folder for compiled models.
    pub cache: Option<PathBuf>,
}

/// `[mqtt]`
#[derive(Debug, Clone, PartialEq)]
pub struct Mqtt {
    /// Name or address of the broker.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Encryption; `None`: plain TCP.
    pub tls: Option<Tls>,
    /// User.
    pub username: Option<String>,
    /// File with the password in its first line.
    pub password_file: Option<PathBuf>,
    /// MQTT client identifier.
    pub client_id: String,
    /// First level of topics.
    pub root: String,
    /// Longest silence of a link.
    pub keep_alive: Duration,
    /// Longest wait before the next attempt to connect.
    pub retry_max: Duration,
}

/// `mqtt.tls`
#[derive(Debug, Clone, PartialEq)]
pub struct Tls {
    /// Certificates that the broker's must come from.
    pub ca: PathBuf,
    /// Client certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// `[outbox]`
#[derive(Debug, Clone, PartialEq)]
pub struct Outbox {
    /// When results go to disk.
    pub durability: Durability,
    /// Bytes kept at most.
    pub max_bytes: u64,
    /// Age kept at most.
    pub max_age: Duration,
    /// What gives way when it is full.
    pub overflow: Overflow,
}

/// `outbox.durability`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// In memory while the broker acknowledges.
    Spill,
    /// On disk before it counts.
    Results,
}

/// `outbox.overflow`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// The oldest result, announced as a gap.
    DropOldest,
    /// New frames wait.
    Block,
}

/// `[update]`
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Repository followed.
    pub repo: Id,
    /// Model followed.
    pub model: Id,
    /// Channel followed.
    pub channel: Id,
    /// First root metadata.
    pub root: PathBuf,
    /// Refuse updates without a synchronised clock.
    pub require_clock: bool,
    /// How long a new model is watched at least.
    pub probation: Duration,
    /// Frames it must look at without fault.
    pub probation_frames: u64,
    /// Longest time that its trial may take.
    pub trial_timeout: Duration,
    /// Program that starts the child process of a trial, with its arguments.
    pub runner: Vec<String>,
}

/// `[board]`
#[derive(Debug, Clone, PartialEq)]
pub struct Board {
    /// Output that shows the state.
    pub indicator: Option<GpioLine>,
    /// Input that takes a frame.
    pub trigger: Option<GpioLine>,
    /// Power meter.
    pub power_meter: Option<PowerMeter>,
    /// Hardware watchdog, `/dev/watchdogN`.
    pub watchdog: Option<PathBuf>,
    /// Parts without which the agent does not start.
    pub required: Vec<Part>,
}

/// A part of the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `indicator`
    Indicator,
    /// `trigger`
    Trigger,
    /// `power_meter`
    PowerMeter,
    /// `watchdog`
    Watchdog,
}

/// A line of a GPIO chip, written `gpiochip0:17`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpioLine {
    /// `/dev/gpiochipN`
    pub chip: PathBuf,
    /// Offset on the chip.
    pub line: u32,
}

/// `board.power_meter`
#[derive(Debug, Clone, PartialEq)]
pub struct PowerMeter {
    /// `/dev/i2c-N`
    pub bus: PathBuf,
    /// Address on the bus, 7 bit.
    pub address: u8,
    /// Kind of chip.
    pub chip: PowerChip,
    /// Shunt resistor, ohm.
    pub shunt_ohm: f32,
}

/// `board.power_meter.chip`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerChip {
    /// TI INA219.
    Ina219,
    /// TI INA226.
    Ina226,
}

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {detail}; check the path", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        detail: String,
    },
    /// The file's content is refused.
    #[error("{}", Listing(path, problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All that is wrong, in the order of the file; never empty.
        problems: Vec<Problem>,
    },
}

/// The first problem in one line, and how to see the others.
struct Listing<'a>(&'a Path, &'a [Problem]);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(path, problems) = self;
        let (first, others) = problems.split_first().expect("an invalid file has a problem");
        write!(formatter, "{}: {first}", path.display())?;
        if !others.is_empty() {
            let count = others.len();
            write!(formatter, " (and {count} more: ocelli check {})", path.display())?;
        }
        Ok(())
    }
}

impl Config {
    /// The defaults: sample pictures, the zoo's detector, no broker.
    #[must_use]
    pub fn defaults() -> Self {
        Self::parse(DEFAULTS, Path::new("defaults.toml")).expect("a test parses defaults.toml")
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the line and the key, and what was expected.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |detail: String| ConfigError::Unreadable { path: path.to_owned(), detail };
        let bytes =
            read_regular(path, MAX_CONFIG_BYTES).map_err(|error| unreadable(error.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|_| unreadable("not UTF-8 text".to_owned()))?;
        Self::parse(&text, path)
    }

    /// Reads a configuration from text; `path` serves messages and relative paths.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with all problems.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let defaults = DeTable::parse(DEFAULTS).expect("a test parses defaults.toml");
        let source = Source {
            text,
            base: path.parent().unwrap_or(Path::new("")),
            defaults: defaults.get_ref(),
            problems: Vec::new().into(),
        };
        let config = match DeTable::parse(text) {
            Ok(given) => Some(read::read(Section::top(&source, given.get_ref()))),
            Err(error) => {
                report_syntax(&source, &error);
                None
            }
        };
        let mut problems = source.problems.take();
        problems.sort_by_key(|problem| problem.line);
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(ConfigError::Invalid { path: path.to_owned(), problems }),
        }
    }
}

fn report_syntax(source: &Source<'_>, error: &TomlError) {
    let line = error.span().map_or(1, |span| source.line(&span));
    let message = error.message().lines().collect::<Vec<_>>().join(", ");
    source.report(line, "", format!("not valid TOML: {message}"));
}
