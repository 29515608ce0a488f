//! The trial of a new model in a child process of our own binary: a model that crashes, hangs, eats memory or gives wrong
//! answers harms nothing but the child.
//!
//! The child prints one line of JSON, [`Report`], and ends. It never waits for anybody.

use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use crate::update::limits::{Limits, confine};

/// Name of the hidden command that the child runs.
pub const COMMAND: &str = "try-model";
/// Most of the child's output that is read.
const MAX_REPORT_BYTES: u64 = 16 * 1024;
/// How long the output may take to end after the child: something that it started may hold on to it.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How often, and how many times, a killed child is looked at. One that hangs in the kernel is left behind.
const BURIAL: (Duration, u32) = (Duration::from_millis(10), 500);

/// How a child is started.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Our own binary.
    pub program: PathBuf,
    /// Program and arguments before it, for binaries of another machine (tests under an emulator).
    pub runner: Vec<String>,
    /// Delegates as configured.
    pub delegates: Vec<String>,
    /// Labels of the device, for its budget.
    pub labels: Vec<String>,
    /// Longest time until it has ended.
    pub timeout: Duration,
}

/// What the child tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Report {
    /// All golden pictures are as expected, and the memory is within the budget.
    Passed {
        /// Golden pictures.
        golden: usize,
        /// Memory that the model added, bytes, where the system tells it.
        memory_bytes: Option<u64>,
    },
    /// Why not.
    Failed {
        /// For people.
        reason: String,
    },
    /// The system did not let it try.
    Unable {
        /// For people.
        reason: String,
    },
}

/// Why a trial was not passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The model failed: it gave wrong answers, crashed, or was ended for what it takes.
    Model(String),
    /// The device could not try it; of the model nothing is known.
    Device(String),
}

impl Failure {
    fn device(what: &str, error: &io::Error) -> Self {
        Self::Device(format!("{what}: {error}"))
    }
}

/// A trial under way. The child is killed on drop.
#[derive(Debug)]
pub struct Trial {
    child: Child,
    output: Receiver<Vec<u8>>,
    deadline: Instant,
    timeout: Duration,
}

impl Trial {
    /// Starts the child on a package file.
    ///
    /// # Errors
    /// [`Failure::Device`]: the system starts no process.
    pub fn start(settings: &Settings, package: &Path, now: Instant) -> Result<Self, Failure> {
        let mut command = program(settings);
        command.arg(COMMAND).arg("--package").arg(package);
        if !settings.delegates.is_empty() {
            command.arg("--delegates").arg(settings.delegates.join(","));
        }
        if !settings.labels.is_empty() {
            command.arg("--labels").arg(settings.labels.join(","));
        }
        // The child must not take the parent's place with the service manager.
        command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC");
        let pipe = io::pipe().and_then(|(reader, writer)| Ok((listen(reader)?, writer)));
        let (output, writer) = pipe.map_err(|error| Failure::device("the trial", &error))?;
        command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| {
            Failure::device(&format!("cannot start {}", settings.program.display()), &error)
        })?;
        Ok(Self { child, output, deadline: now + settings.timeout, timeout: settings.timeout })
    }

    /// What came of it, once the child has ended or its time is up.
    pub fn poll(&mut self, now: Instant) -> Option<Result<(), Failure>> {
        match self.child.try_wait() {
            Ok(Some(status)) => Some(self.judge(status)),
            Ok(None) if now < self.deadline => None,
            Ok(None) => {
                self.kill();
                let seconds = self.timeout.as_secs();
                Some(Err(Failure::Model(format!("the trial did not end within {seconds} s"))))
            }
            Err(error) => Some(Err(Failure::device("the trial was lost", &error))),
        }
    }

    fn judge(&mut self, status: ExitStatus) -> Result<(), Failure> {
        let mut text = Vec::new();
        while let Ok(bytes) = self.output.recv_timeout(LAST_WORDS) {
            text.extend(bytes);
        }
        match serde_json::from_slice::<Report>(&text).ok() {
            Some(Report::Passed { golden, memory_bytes }) if status.success() => {
                let mebibytes = memory_bytes.unwrap_or(0) >> 20;
                log::info!("update trial passed golden={golden} memory_mib={mebibytes}");
                Ok(())
            }
            Some(Report::Failed { reason }) => Err(Failure::Model(format!("trial: {reason}"))),
            Some(Report::Unable { reason }) => Err(Failure::Device(format!("trial: {reason}"))),
            _ if is_from_outside(status) => Err(Failure::Device(format!(
                "the trial was ended from outside ({status}): by somebody, or for want of memory"
            ))),
            _ => Err(Failure::Model(format!(
                "the trial ended without a report ({status}): it crashed or took too much memory"
            ))),
        }
    }

    fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let (pause, times) = BURIAL;
        for _ in 0..times {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(pause);
        }
        log::error!(
            "update: the process {} of a trial cannot be ended; it is left",
            self.child.id()
        );
    }
}

/// Our own binary. Where the system shows it, the very file that runs now: what lies at its path may have been replaced.
fn program(settings: &Settings) -> Command {
    const RUNS: &str = "/proc/self/exe";
    let Some((runner, words)) = settings.runner.split_first() else {
        if !Path::new(RUNS).exists() {
            return Command::new(&settings.program);
        }
        let mut command = Command::new(RUNS);
        command.arg0(&settings.program);
        return command;
    };
    let mut command = Command::new(runner);
    command.args(words).arg(&settings.program);
    command
}

/// Signals that a process sends to others. Our own kill is not asked about, and the limits of a trial end it otherwise: by a signal
/// of their own for time and files, by an error or an abort for memory.
fn is_from_outside(status: ExitStatus) -> bool {
    let signals = [libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];
    status.signal().is_some_and(|signal| signals.contains(&signal))
}

/// What arrives at a pipe, up to [`MAX_REPORT_BYTES`], read by a thread of its own that ends with the pipe.
fn listen(pipe: io::PipeReader) -> io::Result<Receiver<Vec<u8>>> {
    let (sender, output) = channel();
    let read = move || {
        let mut pipe = pipe.take(MAX_REPORT_BYTES);
        let mut bytes = [0; 1024];
        while let Ok(count @ 1..) = pipe.read(&mut bytes) {
            if sender.send(bytes[..count].to_vec()).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("trial-output".into()).spawn(read)?;
    Ok(output)
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell in place of the binary: what follows `-c` is the child's life.
    fn trial(script: &str, timeout: Duration) -> (Trial, Instant) {
        let settings = Settings {
            program: "ignored".into(),
            runner: vec!["/bin/sh".into(), "-c".into(), script.into()],
            delegates: Vec::new(),
            labels: Vec::new(),
            timeout,
        };
        let now = crate::clock::Clock::now(&crate::clock::SystemClock);
        (Trial::start(&settings, Path::new("a.tar"), now).unwrap(), now)
    }

    fn outcome(script: &str) -> Result<(), Failure> {
        let (mut trial, now) = trial(script, Duration::from_secs(3600));
        loop {
            if let Some(outcome) = trial.poll(now) {
                return outcome;
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn only_a_passing_report_of_a_child_that_ended_well_passes() {
        let passed = r#"echo '{"passed":{"golden":1,"memory_bytes":null}}'"#;
        assert_eq!(outcome(passed), Ok(()));
        let cases = [
            (format!("{passed}; exit 1"), "exit status: 1"),
            (format!("{passed}; echo more"), "without a report"),
            (r#"echo '{"failed":{"reason":"found cat"}}'; exit 1"#.to_owned(), "trial: found cat"),
            ("head -c 60000 /dev/zero".to_owned(), "without a report"),
            ("kill -ABRT $$".to_owned(), "signal: 6"),
            ("kill -SEGV $$".to_owned(), "signal: 11"),
            ("ulimit -S -t 1; while :; do :; done".to_owned(), "signal: 24"),
            ("exit 0".to_owned(), "without a report"),
        ];
        for (script, says) in cases {
            let Err(Failure::Model(why)) = outcome(&script) else { panic!("{script}") };
            assert!(why.contains(says), "{script}: {why}");
        }
    }

    #[test]
    fn a_trial_that_the_device_could_not_hold_says_nothing_of_the_model() {
        let passed = r#"echo '{"passed":{"golden":1,"memory_bytes":null}}'"#;
        let cases = [
            (format!("{passed}; kill -9 $$"), "ended from outside (signal: 9"),
            ("kill -9 $$".to_owned(), "ended from outside (signal: 9"),
            ("kill -TERM $$".to_owned(), "ended from outside (signal: 15"),
            (r#"echo '{"unable":{"reason":"no limits"}}'; exit 1"#.to_owned(), "trial: no limits"),
        ];
        for (script, says) in cases {
            let Err(Failure::Device(why)) = outcome(&script) else { panic!("{script}") };
            assert!(why.contains(says), "{script}: {why}");
        }
        let settings = Settings {
            program: "ignored".into(),
            runner: vec!["/nowhere/runner".into()],
            delegates: Vec::new(),
            labels: Vec::new(),
            timeout: Duration::from_secs(5),
        };
        let now = crate::clock::Clock::now(&crate::clock::SystemClock);
        let started = Trial::start(&settings, Path::new("a.tar"), now).map(drop);
        let Err(Failure::Device(why)) = started else { panic!("it started") };
        assert!(why.contains("cannot start ignored: No such file"), "{why}");
    }

    #[test]
    fn a_program_that_was_replaced_or_removed_is_started_all_the_same() {
        let settings = Settings {
            program: "/nowhere/ocelli".into(),
            runner: Vec::new(),
            delegates: Vec::new(),
            labels: Vec::new(),
            timeout: Duration::from_secs(60),
        };
        let command = program(&settings);
        assert_eq!(command.get_program(), "/proc/self/exe");
    }

    #[test]
    fn nobody_waits_for_what_a_child_left_behind() {
        let start = crate::clock::Clock::now(&crate::clock::SystemClock);
        let script = r#"sleep 60 & echo '{"passed":{"golden":1,"memory_bytes":null}}'"#;
        assert_eq!(outcome(script), Ok(()));
        let end = crate::clock::Clock::now(&crate::clock::SystemClock);
        assert!(end - start < Duration::from_secs(50), "it waited for the sleeper");
    }

    #[test]
    fn a_child_that_hangs_is_ended() {
        let (mut trial, now) = trial("exec sleep 1000", Duration::from_secs(5));
        assert_eq!(trial.poll(now + Duration::from_secs(4)), None);
        let error = trial.poll(now + Duration::from_secs(5)).unwrap().unwrap_err();
        assert_eq!(error, Failure::Model("the trial did not end within 5 s".into()));
        assert!(trial.child.try_wait().unwrap().is_some());
    }
}
