//! The health report: what the parts tell of themselves, put into one document. Reads a few files of the system.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ocelli_protocol::VERSION;
use ocelli_protocol::health::{
    AuditHead, Broker, CameraHealth, ClockState, Commands, Delegate, Frames, Health, Latencies,
    Outbox, Percentiles, Power, StreamHealth, Temperature, Worker,
};
use ocelli_protocol::message::ModelId;

use crate::agent::commands::Counts;
use crate::clock::UnixTime;
use crate::inference::delegate::WorkerCounts;
use crate::inference::session::{SessionReport, WorkerReport};
use crate::pipeline::{CameraState, Control, StreamStatus};
use crate::report::{Counters, LinkState};
use crate::telemetry::Histogram;
use crate::{board, pipeline};

/// What a report is made of besides the pipeline.
pub(super) struct Sources<'a> {
    /// Time of day.
    pub(super) at: UnixTime,
    /// The same moment, for windows.
    pub(super) now: Instant,
    /// Since the agent's start.
    pub(super) uptime: Duration,
    /// This run of the agent.
    pub(super) boot_id: &'a str,
    /// The model that runs.
    pub(super) model: &'a ModelId,
    /// The pipeline.
    pub(super) control: &'a Control,
    /// Who runs which part of the model.
    pub(super) session: &'a SessionReport,
    /// The reporter.
    pub(super) counters: &'a Counters,
    /// Commands since the start.
    pub(super) commands: Counts,
    /// Sensors.
    pub(super) temperatures: Vec<board::Temperature>,
    /// Power meter.
    pub(super) power: Option<Power>,
    /// Last row of the audit log.
    pub(super) audit: Option<AuditHead>,
    /// Why the database cannot be read.
    pub(super) store: Option<String>,
    /// Whether the wall clock can be trusted.
    pub(super) clock: ClockState,
}

/// The document.
#[must_use]
pub(super) fn report(sources: Sources<'_>) -> Health {
    let Sources { control, counters, now, .. } = sources;
    Health {
        v: VERSION,
        at: sources.at.to_string(),
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: sources.boot_id.to_owned(),
        uptime_s: sources.uptime.as_secs(),
        model: sources.model.clone(),
        streams: control.streams(now).into_iter().map(stream).collect(),
        latency_us: latencies(control.stages(), now),
        frames: frames(control),
        outbox: Outbox {
            waiting: counters.outbox.depth,
            waiting_bytes: counters.outbox.bytes,
            delivered: counters.outbox.acked,
            dropped: counters.outbox.dropped,
            degraded: counters.outbox.degraded,
        },
        broker: Broker {
            connected: counters.link == LinkState::Up,
            sessions: counters.sessions,
            messages_dropped: counters.messages_dropped,
            replies_dropped: counters.replies_dropped,
        },
        delegates: delegates(sources.session),
        commands: Commands {
            done: sources.commands.done,
            refused: sources.commands.refused,
            repeated: sources.commands.repeated,
            ignored: sources.commands.ignored,
        },
        rss_bytes: resident_bytes(Path::new("/proc/self/status")),
        temperatures: sources
            .temperatures
            .into_iter()
            .map(|one| Temperature { name: one.name, celsius: one.celsius })
            .collect(),
        power: sources.power,
        clock: sources.clock,
        audit: sources.audit,
        store: sources.store,
    }
}

fn stream(status: StreamStatus) -> StreamHealth {
    let (camera, reason) = match status.camera {
        CameraState::Opening => (CameraHealth::Opening, None),
        CameraState::Streaming => (CameraHealth::Streaming, None),
        CameraState::Unavailable(reason) => (CameraHealth::Unavailable, Some(reason)),
        CameraState::Unusable(reason) => (CameraHealth::Unusable, Some(reason)),
        CameraState::Ended => (CameraHealth::Ended, None),
    };
    StreamHealth {
        name: status.name.into(),
        camera,
        reason,
        fps: status.fps,
        limit_fps: status.limit_fps,
        captured: status.captured,
        dropped: status.dropped,
        rate_limited: status.rate_limited,
        damaged: status.damaged,
        camera_errors: status.camera_errors,
        panics: status.panics,
    }
}

fn latencies(stages: &pipeline::Stages, now: Instant) -> Latencies {
    let one = |histogram: &Histogram| {
        let seen = histogram.percentiles(now);
        Percentiles { p50: seen.p50_us, p90: seen.p90_us, p99: seen.p99_us, max: seen.max_us }
    };
    Latencies {
        capture: one(&stages.capture),
        preprocess: one(&stages.preprocess),
        inference: one(&stages.inference),
        postprocess: one(&stages.postprocess),
        total: one(&stages.total),
    }
}

fn frames(control: &Control) -> Frames {
    let counters = control.frames();
    Frames {
        finished: counters.finished.total(),
        skipped: counters.skipped.total(),
        undecodable: counters.undecodable.total(),
        failed: counters.failed.total(),
        panicked: counters.panicked.total(),
        waiting: control.reports_waiting() as u64,
    }
}

fn delegates(report: &SessionReport) -> Vec<Delegate> {
    let one = |segment: &crate::inference::session::SegmentReport| Delegate {
        name: segment.delegate.clone(),
        nodes: segment.nodes.len(),
        macs: segment.macs,
        fallbacks: segment.fallbacks,
        last_error: segment.last_error.clone(),
        workers: segment.workers.iter().map(worker).collect(),
    };
    report.segments.iter().map(one).collect()
}

fn worker(worker: &WorkerReport) -> Worker {
    let WorkerCounts { starts, faults, overruns, stuck } = worker.counts;
    let (name, state) = (worker.delegate.clone(), worker.state.to_owned());
    Worker { name, state, starts, faults, overruns, stuck }
}

/// `VmRSS` of a process's status file (proc(5)), bytes.
fn resident_bytes(status: &Path) -> Option<u64> {
    status_bytes(status, "VmRSS:")
}

fn status_bytes(status: &Path, field: &str) -> Option<u64> {
    let text = fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// `VmHWM`, the most memory a process has had, bytes.
pub(super) fn peak_bytes(status: &Path) -> Option<u64> {
    status_bytes(status, "VmHWM:")
}

/// Whether systemd-timesyncd says that the clock is synchronised: `<run>/systemd/timesync/synchronized` exists.
#[must_use]
pub(super) fn clock_state(run: &Path) -> ClockState {
    if run.join("systemd/timesync/synchronized").exists() {
        ClockState::Synchronised
    } else {
        ClockState::Unverified
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_where_the_system_tells_it() {
        let folder = tempfile::tempdir().unwrap();
        let status = folder.path().join("status");
        fs::write(&status, "Name:\tocelli\nVmPeak:\t  99 kB\nVmRSS:\t    8040 kB\nThreads:\t5\n")
            .unwrap();
        assert_eq!(resident_bytes(&status), Some(8040 * 1024));
        fs::write(&status, "Name:\tocelli\n").unwrap();
        assert_eq!(resident_bytes(&status), None);
        assert_eq!(resident_bytes(&folder.path().join("absent")), None);
    }

    #[test]
    fn the_clock_is_unverified_until_somebody_says_otherwise() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(clock_state(run.path()), ClockState::Unverified);
        fs::create_dir_all(run.path().join("systemd/timesync")).unwrap();
        fs::write(run.path().join("systemd/timesync/synchronized"), "").unwrap();
        assert_eq!(clock_state(run.path()), ClockState::Synchronised);
    }
}
