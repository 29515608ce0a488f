//! The log on standard error: one line a message, with priorities that journald reads.

use std::io::Write;
use std::sync::Arc;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::clock::Clock;

/// Environment variable that goes before the configuration.
const VARIABLE: &str = "OCELLI_LOG";

struct Logger {
    clock: Arc<dyn Clock>,
    journald: bool,
}

/// Starts logging at `level`, or at that of `OCELLI_LOG`. Does nothing when a logger runs already.
///
/// # Errors
/// A level in `OCELLI_LOG` that is none.
pub(super) fn start(level: LevelFilter, clock: &Arc<dyn Clock>) -> Result<(), String> {
    let level = match std::env::var(VARIABLE) {
        Ok(text) => text.parse().map_err(|_| {
            format!("{VARIABLE} is {text:?}; expected error, warn, info, debug or trace")
        })?,
        Err(_) => level,
    };
    // systemd sets it when standard error goes to the journal.
    let journald = std::env::var_os("JOURNAL_STREAM").is_some();
    if log::set_boxed_logger(Box::new(Logger { clock: Arc::clone(clock), journald })).is_ok() {
        log::set_max_level(level);
    }
    Ok(())
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Dependencies are quiet unless they warn: their details help nobody who runs a camera.
        metadata.level() <= Level::Warn || metadata.target().starts_with("ocelli")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = line(record, self.journald, &self.clock.wall().to_string());
            // A log that cannot be written has nobody to tell.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// One line, whatever the message holds.
fn line(record: &Record<'_>, journald: bool, time: &str) -> String {
    let message = record.args().to_string().replace(['\n', '\r'], " ");
    let (priority, name) = match record.level() {
        Level::Error => (3, "error"),
        Level::Warn => (4, "warn"),
        Level::Info => (6, "info"),
        Level::Debug => (7, "debug"),
        Level::Trace => (7, "trace"),
    };
    let target = record.target();
    if journald {
        format!("<{priority}>{message} target={target}\n")
    } else {
        format!("{time} {name:<5} {message} target={target}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_with_a_priority_for_the_journal() {
        let record = |journald| {
            line(
                &Record::builder()
                    .level(Level::Warn)
                    .target("ocelli::mqtt")
                    .args(format_args!("broker away\nhost=b"))
                    .build(),
                journald,
                "2026-11-21T09:00:00.123Z",
            )
        };
        assert_eq!(record(true), "<4>broker away host=b target=ocelli::mqtt\n");
        assert_eq!(
            record(false),
            "2026-11-21T09:00:00.123Z warn  broker away host=b target=ocelli::mqtt\n"
        );
    }
}
