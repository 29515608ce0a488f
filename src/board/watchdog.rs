//! The board's hardware watchdog: a timer that resets the machine unless it is fed. Who decides whether to feed it is
//! the agent; here is only the device file (Linux, Documentation/watchdog/watchdog-api.rst).

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Error;

/// Closing the device after this byte stops the timer ("magic close"), unless the kernel forbids stopping it.
const MAGIC_CLOSE: &[u8] = b"V";
/// Any other byte feeds the watchdog.
const FEED: &[u8] = b"\0";
/// What is assumed where the kernel does not tell the timeout: the shortest that boards have.
const SHORTEST: Duration = Duration::from_secs(3);

/// An armed watchdog. Dropping it without [`Watchdog::disarm`] leaves it armed: a crash ends in a reset, unless the
/// next run of the agent feeds in time.
#[derive(Debug)]
pub struct Watchdog {
    file: File,
    path: PathBuf,
    timeout: Duration,
    failing: bool,
}

impl Watchdog {
    /// Arms the watchdog: from now on it must be fed. `class` is `/sys/class/watchdog` on a device.
    ///
    /// # Errors
    /// [`Error::Unavailable`] names the device, what was seen and the cure.
    pub fn arm(path: &Path, class: &Path) -> Result<Self, Error> {
        let file =
            OpenOptions::new().write(true).open(path).map_err(|error| Error::Unavailable {
                device: path.display().to_string(),
                seen: error.to_string(),
                cure: cure(error.raw_os_error()).to_owned(),
            })?;
        let timeout = timeout(path, class).unwrap_or(SHORTEST);
        log::info!("watchdog {} armed timeout={}s", path.display(), timeout.as_secs());
        let mut watchdog = Self { file, path: path.to_owned(), timeout, failing: false };
        watchdog.feed();
        Ok(watchdog)
    }

    /// Without being fed for this long it resets the machine.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Starts its time anew.
    pub fn feed(&mut self) {
        let fed = self.file.write_all(FEED);
        match &fed {
            Err(error) if !self.failing => {
                log::error!("watchdog {} cannot be fed: {error}", self.path.display());
            }
            Ok(()) if self.failing => log::info!("watchdog {} is fed again", self.path.display()),
            _ => {}
        }
        self.failing = fed.is_err();
    }

    /// Stops the timer, for an orderly end. A kernel that forbids it (`nowayout`) resets the machine.
    pub fn disarm(mut self) {
        if let Err(error) = self.file.write_all(MAGIC_CLOSE) {
            log::error!("watchdog {} cannot be stopped: {error}", self.path.display());
        }
    }
}

/// The kernel's word: `<class>/watchdogN/timeout`, seconds. `/dev/watchdog` is the first one.
fn timeout(path: &Path, class: &Path) -> Option<Duration> {
    let name = path.file_name()?.to_str()?;
    let name = if name == "watchdog" { "watchdog0" } else { name };
    let text = fs::read_to_string(class.join(name).join("timeout")).ok()?;
    text.trim().parse().ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

fn cure(errno: Option<i32>) -> &'static str {
    match errno {
        Some(libc::EACCES | libc::EPERM) => {
            "give it to the agent's user (DeviceAllow= and a udev rule)"
        }
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => {
            "load the driver of the board's watchdog, or clear board.watchdog"
        }
        Some(libc::EBUSY) => {
            "another program feeds it: stop that (systemd: RuntimeWatchdogSec=0), or clear board.watchdog"
        }
        _ => "check that it is a watchdog (ls /sys/class/watchdog)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file in place of the device, and a class folder that tells its timeout.
    fn stand_in(timeout: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("watchdog");
        fs::write(&device, "").unwrap();
        fs::create_dir(folder.path().join("watchdog0")).unwrap();
        fs::write(folder.path().join("watchdog0/timeout"), timeout).unwrap();
        (folder, device)
    }

    #[test]
    fn is_fed_when_armed_and_stopped_only_when_disarmed() {
        let (class, device) = stand_in("16\n");
        let mut watchdog = Watchdog::arm(&device, class.path()).unwrap();
        assert_eq!(watchdog.timeout(), Duration::from_secs(16));
        watchdog.feed();
        assert_eq!(fs::read(&device).unwrap(), b"\0\0");
        watchdog.disarm();
        assert_eq!(fs::read(&device).unwrap(), b"\0\0V");
        drop(Watchdog::arm(&device, class.path()).unwrap());
        assert_eq!(fs::read(&device).unwrap(), b"\0\0V", "a crash does not disarm");
    }

    #[test]
    fn an_unknown_timeout_is_taken_as_the_shortest() {
        for text in ["", "0", "soon"] {
            let (class, device) = stand_in(text);
            let watchdog = Watchdog::arm(&device, class.path()).unwrap();
            assert_eq!(watchdog.timeout(), SHORTEST, "{text:?}");
        }
    }

    #[test]
    fn an_absent_watchdog_is_named_with_the_cure() {
        let error = Watchdog::arm(Path::new("/dev/watchdog777"), Path::new("/sys/class/watchdog"));
        let said = error.unwrap_err().to_string();
        assert!(said.starts_with("/dev/watchdog777: No such file"), "{said}");
        assert!(said.contains("load the driver"), "{said}");
    }
}
