//! Opens GPIO lines and I2C buses of a Linux board. The only place that knows linux-embedded-hal and gpio-cdev.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use embedded_hal::digital::OutputPin;
use embedded_hal::i2c::I2c;
use gpio_cdev::{Chip, EventRequestFlags, EventType, LineEventHandle, LineRequestFlags};
use linux_embedded_hal::{CdevPin, I2cdev};

use super::trigger::{Edge, LineEvent};
use super::{Error, Line, Polarity};

/// What the kernel shows as the user of our lines (`gpioinfo`).
const CONSUMER: &str = "ocelli";
/// Edges on their way from the kernel; one more is lost and counted.
const MOST_EVENTS: usize = 64;

/// Opens a line as output, dark.
///
/// # Errors
/// [`Error::Unavailable`] names the line, what was seen and the cure.
pub fn open_output(
    line: &Line,
    polarity: Polarity,
) -> Result<impl OutputPin + Send + use<>, Error> {
    let dark = u8::from(polarity == Polarity::ActiveLow);
    let handle = free_line(line)?
        .request(LineRequestFlags::OUTPUT, dark, CONSUMER)
        .map_err(|error| refused(line, &error))?;
    CdevPin::new(handle).map_err(|error| refused(line, &error))
}

/// Opens an I2C bus and makes sure that no kernel driver holds the chip at `address`.
///
/// # Errors
/// [`Error::Unavailable`] names the bus, what was seen and the cure.
pub fn open_i2c(bus: &Path, address: u8) -> Result<impl I2c + Send + use<>, Error> {
    let failed = |error: &io::Error| Error::Unavailable {
        device: format!("{} (chip 0x{address:02x})", bus.display()),
        seen: error.to_string(),
        cure: i2c_cure(error.raw_os_error(), bus, address),
    };
    let mut i2c = I2cdev::new(bus).map_err(|error| failed(&error.into()))?;
    i2c.set_slave_address(u16::from(address)).map_err(|error| failed(&error.into()))?;
    Ok(i2c)
}

/// Edges of an input line, read by a thread of their own.
pub struct Edges {
    events: Receiver<LineEvent>,
    lost: Arc<AtomicU64>,
}

impl Edges {
    /// Starts to watch a line for edges in both directions.
    ///
    /// # Errors
    /// [`Error::Unavailable`] names the line, what was seen and the cure.
    pub fn watch(line: &Line) -> Result<Self, Error> {
        let handle = free_line(line)?
            .events(LineRequestFlags::INPUT, EventRequestFlags::BOTH_EDGES, CONSUMER)
            .map_err(|error| refused(line, &error))?;
        let (sender, events) = sync_channel(MOST_EVENTS);
        let lost = Arc::new(AtomicU64::new(0));
        let (name, counter) = (line.to_string(), Arc::clone(&lost));
        thread::Builder::new()
            .name("trigger".to_owned())
            .spawn(move || forward(handle, &name, &sender, &counter))
            .map_err(|error| Error::Unavailable {
                device: line.to_string(),
                seen: format!("no thread to watch it: {error}"),
                cure: "raise the limit of tasks (TasksMax of the service)".to_owned(),
            })?;
        Ok(Self { events, lost })
    }

    /// The next edge, if one comes within `timeout`.
    #[must_use]
    pub fn next(&self, timeout: Duration) -> Option<LineEvent> {
        self.events.recv_timeout(timeout).ok()
    }

    /// Edges lost because nobody took them.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Until the line fails or, at its next edge, nobody listens any more.
fn forward(handle: LineEventHandle, name: &str, sender: &SyncSender<LineEvent>, lost: &AtomicU64) {
    for event in handle {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                log::warn!("trigger {name}: {error}; no more captures on edge until a restart");
                return;
            }
        };
        let edge = match event.event_type() {
            EventType::RisingEdge => Edge::Rising,
            EventType::FallingEdge => Edge::Falling,
        };
        let at = Duration::from_nanos(event.timestamp());
        match sender.try_send(LineEvent { edge, at }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                lost.fetch_add(1, Ordering::Relaxed);
            }
            Err(TrySendError::Disconnected(_)) => return,
        }
    }
}

/// A line that nobody else uses.
fn free_line(line: &Line) -> Result<gpio_cdev::Line, Error> {
    // gpio-cdev hides the error number; the same open by hand shows it.
    OpenOptions::new().read(true).open(&line.chip).map_err(|error| Error::Unavailable {
        device: line.to_string(),
        seen: error.to_string(),
        cure: gpio_cure(error.raw_os_error()).to_owned(),
    })?;
    let mut chip = Chip::new(&line.chip).map_err(|error| refused(line, &error))?;
    if line.offset >= chip.num_lines() {
        return Err(Error::Unavailable {
            device: line.to_string(),
            seen: format!("the chip has lines 0 to {}", chip.num_lines().saturating_sub(1)),
            cure: "gpioinfo lists chips and lines".to_owned(),
        });
    }
    let found = chip.get_line(line.offset).map_err(|error| refused(line, &error))?;
    let info = found.info().map_err(|error| refused(line, &error))?;
    if info.is_used() {
        let holder = info.consumer().unwrap_or("the kernel");
        return Err(Error::Unavailable {
            device: line.to_string(),
            seen: format!("in use by {holder}"),
            cure: "stop that user, remove its overlay, or choose another line".to_owned(),
        });
    }
    Ok(found)
}

fn refused(line: &Line, error: &gpio_cdev::Error) -> Error {
    Error::Unavailable {
        device: line.to_string(),
        seen: error.to_string(),
        cure: "check that it is a GPIO chip and the line is free (gpioinfo)".to_owned(),
    }
}

fn gpio_cure(errno: Option<i32>) -> &'static str {
    match errno {
        Some(libc::EACCES | libc::EPERM) => "add the agent's user to the group gpio",
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => {
            "check the name of the chip (gpiodetect), and that its driver or overlay is loaded"
        }
        Some(libc::EBUSY) => "stop the program that uses it (gpioinfo names it)",
        _ => "check that it is a GPIO chip (gpiodetect)",
    }
}

fn i2c_cure(errno: Option<i32>, bus: &Path, address: u8) -> String {
    match errno {
        Some(libc::EACCES | libc::EPERM) => "add the agent's user to the group i2c".to_owned(),
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => {
            "enable the bus (on a Raspberry Pi dtparam=i2c_arm=on) and load the module i2c-dev"
                .to_owned()
        }
        Some(libc::EBUSY) => {
            let number = bus.to_string_lossy();
            let number = number.rsplit('-').next().unwrap_or_default();
            format!(
                "a kernel driver holds the chip: \
                 readlink /sys/bus/i2c/devices/{number}-{address:04x}/driver names it; \
                 remove its overlay"
            )
        }
        _ => "check that it is an I2C bus (i2cdetect -l)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<T>(result: Result<T, Error>) -> String {
        result.err().expect("refused").to_string()
    }

    #[test]
    fn what_is_not_there_is_named_with_the_cure() {
        let line: Line = "gpiochip777:17".parse().unwrap();
        for said in
            [message(open_output(&line, Polarity::ActiveHigh)), message(Edges::watch(&line))]
        {
            assert!(said.starts_with("/dev/gpiochip777:17: No such file"), "{said}");
            assert!(said.contains("gpiodetect"), "{said}");
        }
        let said = message(open_i2c(Path::new("/dev/i2c-777"), 0x40));
        assert!(said.starts_with("/dev/i2c-777 (chip 0x40): No such file"), "{said}");
        assert!(said.contains("i2c-dev"), "{said}");
    }

    #[test]
    fn what_is_something_else_is_refused() {
        let line = Line { chip: "/dev/null".into(), offset: 0 };
        let said = message(open_output(&line, Polarity::ActiveHigh));
        assert!(said.contains("check that it is a GPIO chip"), "{said}");
        let said = message(open_i2c(Path::new("/dev/null"), 0x40));
        assert!(said.contains("check that it is an I2C bus"), "{said}");
    }

    #[test]
    fn every_refusal_has_its_cure() {
        assert!(gpio_cure(Some(libc::EACCES)).contains("group gpio"));
        assert!(gpio_cure(Some(libc::ENOENT)).contains("overlay"));
        assert!(gpio_cure(Some(libc::EBUSY)).contains("gpioinfo"));
        let cure = |errno| i2c_cure(Some(errno), Path::new("/dev/i2c-1"), 0x40);
        assert!(cure(libc::EACCES).contains("group i2c"));
        assert!(cure(libc::ENOENT).contains("dtparam"));
        assert!(cure(libc::EBUSY).contains("/sys/bus/i2c/devices/1-0040/driver"));
    }
}
