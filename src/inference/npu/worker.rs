//! The worker's process: started with a socket as its standard input, asked, killed.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ocelli_delegate::abi::Status;
use ocelli_delegate::link::{self, Link, Received};
use ocelli_delegate::wire::{self, Failed, Packet, Reply, Request};

use super::WorkerSettings;
use crate::clock::Clock;
use crate::inference::delegate::{CompileError, RunError};

/// Longest wait for the exit status of a process whose socket is closed.
const OBITUARY: Duration = Duration::from_millis(20);

/// Why a worker is given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// It cannot be started, or its process ended.
    #[error("{0}")]
    Died(String),
    /// It took too long.
    #[error("no answer in time")]
    TimedOut,
    /// The plug-in says no.
    #[error("{}{}{}", Status::of(.0.status).map_or("failed", Status::as_str), if .0.reason.is_empty() { "" } else { ": " }, .0.reason)]
    Failed(Failed),
    /// Its answer makes no sense.
    #[error("an answer that makes no sense: {0}")]
    Nonsense(String),
    /// What it compiled is not what was asked for.
    #[error(transparent)]
    Refused(CompileError),
    /// An earlier process does not go.
    #[error(
        "process {0} was killed and does not end; the device is given up until the next start of the system"
    )]
    Stuck(u32),
}

impl Fault {
    pub(super) fn into_compile_error(self) -> CompileError {
        let refused = [
            Status::Unsupported,
            Status::Invalid,
            Status::NoDevice,
            Status::ModelRejected,
            Status::BlobStale,
        ];
        match self {
            Self::Refused(error) => error,
            Self::Failed(Failed { status, .. })
                if Status::of(status).is_some_and(|status| refused.contains(&status)) =>
            {
                CompileError::Refused(self.to_string())
            }
            Self::Stuck(_) => CompileError::Refused(self.to_string()),
            other => CompileError::Failed(other.to_string()),
        }
    }

    pub(super) fn into_run_error(self) -> RunError {
        match self {
            Self::TimedOut => RunError::DeadlineOverrun,
            other => RunError::Fault(other.to_string()),
        }
    }
}

/// A running worker.
pub(super) struct Worker {
    child: Child,
    link: Link,
    buffer: Vec<u8>,
    runs: u64,
}

/// A killed worker that was not gone at once.
pub(super) struct Dying {
    child: Child,
    killed_at: Instant,
}

impl Worker {
    pub(super) fn start(settings: &WorkerSettings) -> Result<Self, Fault> {
        let program = settings.program.as_os_str().to_owned();
        let cannot = |error: std::io::Error| {
            let program = settings.program.display();
            Fault::Died(format!("{program}: {error}; install the worker or set npu.worker"))
        };
        let (link, socket) = link::pair().map_err(cannot)?;
        let words: Vec<_> =
            settings.runner.iter().map(Into::into).chain([program]).collect::<Vec<_>>();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(socket).stdout(Stdio::null());
        // Vendors' libraries write what they like.
        let log = log::log_enabled!(log::Level::Debug);
        command.stderr(if log { Stdio::inherit() } else { Stdio::null() });
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        let child = command.spawn().map_err(cannot)?;
        Ok(Self { child, link, buffer: vec![0; wire::MAX_PACKET], runs: 0 })
    }

    /// Sends a request and waits for its reply.
    pub(super) fn ask(
        &mut self,
        request: &Request,
        file: Option<&File>,
        deadline: Instant,
        clock: &dyn Clock,
    ) -> Result<Reply, Fault> {
        let sent = self.link.send(&wire::json(request), file.map(AsFd::as_fd));
        sent.map_err(|error| Fault::Died(error.to_string()))?;
        match self.next(deadline, clock)? {
            Packet::Json(Reply::Failed(failed)) => Err(Fault::Failed(failed)),
            Packet::Json(reply) => Ok(reply),
            other => Err(Fault::Nonsense(format!("{other:?}"))),
        }
    }

    /// Runs once; the tensors lie in the memory file. Does not allocate while all goes well.
    pub(super) fn run(&mut self, deadline: Instant, clock: &dyn Clock) -> Result<(), Fault> {
        self.runs += 1;
        let left = deadline.saturating_duration_since(clock.now());
        let nanos = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
        let sent = self.link.send(&wire::run(self.runs, nanos), None);
        sent.map_err(|error| Fault::Died(error.to_string()))?;
        match self.next(deadline, clock)? {
            Packet::Done { seq, status: 0 } if seq == self.runs => Ok(()),
            Packet::Json(Reply::Failed(failed)) => Err(match Status::of(failed.status) {
                Some(Status::TimedOut) => Fault::TimedOut,
                _ => Fault::Failed(failed),
            }),
            other => Err(Fault::Nonsense(format!("{other:?}"))),
        }
    }

    fn next(&mut self, deadline: Instant, clock: &dyn Clock) -> Result<Packet<Reply>, Fault> {
        loop {
            let left = deadline.saturating_duration_since(clock.now());
            let received = self.link.receive(&mut self.buffer, Some(left));
            match received.map_err(|error| Fault::Died(error.to_string()))? {
                Received::Packet(length, _) => {
                    let packet = wire::parse(&self.buffer[..length]);
                    return packet.map_err(|error| Fault::Nonsense(error.to_string()));
                }
                Received::Closed => return Err(Fault::Died("the process ended".to_owned())),
                Received::TimedOut if clock.now() >= deadline => return Err(Fault::TimedOut),
                Received::TimedOut => {}
            }
        }
    }

    /// Ends the process. The fault comes back with the exit status where that says more.
    pub(super) fn kill(mut self, fault: Fault, now: Instant) -> (Fault, Option<Dying>) {
        let fault = match fault {
            Fault::Died(what) => Fault::Died(self.obituary().unwrap_or(what)),
            other => other,
        };
        // Fails only when it is gone already.
        drop(self.child.kill());
        let mut dying = Dying { child: self.child, killed_at: now };
        let gone = dying.is_gone();
        (fault, (!gone).then_some(dying))
    }

    fn obituary(&mut self) -> Option<String> {
        let step = Duration::from_millis(1);
        for _ in 0..OBITUARY.as_millis() {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(format!("the process ended with {status}"));
            }
            thread::sleep(step);
        }
        None
    }
}

/// Reaps killed processes on a thread of its own; those that do not go in time are left to the system.
pub(super) fn bury_later(mut dying: Vec<Dying>, patience: Duration) {
    const STEP: Duration = Duration::from_millis(10);
    dying.retain_mut(|one| !one.is_gone());
    if dying.is_empty() {
        return;
    }
    let reap = move || {
        for _ in 0..patience.as_millis() / STEP.as_millis() {
            dying.retain_mut(|one| !one.is_gone());
            if dying.is_empty() {
                return;
            }
            thread::sleep(STEP);
        }
    };
    if let Err(error) = thread::Builder::new().name("npu-reaper".to_owned()).spawn(reap) {
        log::warn!("ended workers stay as zombies: {error}");
    }
}

impl Dying {
    /// Whether the process is gone; it is reaped then.
    pub(super) fn is_gone(&mut self) -> bool {
        // An error means that there is no such child.
        !matches!(self.child.try_wait(), Ok(None))
    }

    pub(super) fn killed_at(&self) -> Instant {
        self.killed_at
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }
}
