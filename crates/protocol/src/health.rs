//! Payload of the `health` topic: how a device is, for dashboards and for people. Field names are a contract: add, never
//! change.

use serde::{Deserialize, Serialize};

use crate::message::ModelId;

/// `health`: retained, published at a fixed interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Payload version, [`crate::VERSION`].
    pub v: u32,
    /// When it was written, RFC 3339.
    pub at: String,
    /// Version of the agent.
    pub agent: String,
    /// The agent's run.
    pub boot_id: String,
    /// Seconds since the agent's start.
    pub uptime_s: u64,
    /// The model that runs.
    pub model: ModelId,
    /// Cameras, in the order of the configuration.
    pub streams: Vec<StreamHealth>,
    /// Time of each stage over the last minute, all streams together.
    pub latency_us: Latencies,
    /// What became of frames since the agent's start.
    pub frames: Frames,
    /// Results on their way to the broker.
    pub outbox: Outbox,
    /// The connection to the broker.
    pub broker: Broker,
    /// Who runs which part of the model.
    pub delegates: Vec<Delegate>,
    /// Commands since the agent's start.
    pub commands: Commands,
    /// Memory of the process, bytes, where the system tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    /// Sensors of the board.
    pub temperatures: Vec<Temperature>,
    /// Power meter, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<Power>,
    /// Whether the wall clock can be trusted.
    pub clock: ClockState,
    /// Last row of the audit log, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditHead>,
    /// Why the database cannot be read, while it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
}

/// One camera and its stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StreamHealth {
    /// Name of the stream.
    pub name: String,
    /// Where its camera is.
    pub camera: CameraHealth,
    /// Why, where the camera is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Results a second over the last minute.
    pub fps: f32,
    /// Frames a second at most, where there is a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_fps: Option<f32>,
    /// Frames the camera delivered.
    pub captured: u64,
    /// Frames replaced by a newer one before inference.
    pub dropped: u64,
    /// Frames not looked at because of the limit.
    pub rate_limited: u64,
    /// Frames that arrived damaged from the camera and were skipped.
    #[serde(default)]
    pub damaged: u64,
    /// Times the camera was found away or unusable.
    pub camera_errors: u64,
    /// Panics of the capture thread.
    pub panics: u64,
}

/// Where a camera is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CameraHealth {
    /// Being opened.
    Opening,
    /// Delivers frames.
    Streaming,
    /// Away; tried again.
    Unavailable,
    /// Cannot deliver what is asked of it; tried again now and then.
    Unusable,
    /// Has no more frames.
    Ended,
}

/// Time of each stage, as [`crate::message::StageLatency`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latencies {
    /// Dequeue and hand-over of the frame.
    pub capture: Percentiles,
    /// Picture to tensor.
    pub preprocess: Percentiles,
    /// The model.
    pub inference: Percentiles,
    /// Tensors to findings.
    pub postprocess: Percentiles,
    /// From capture to findings, waiting included.
    pub total: Percentiles,
}

/// Percentiles of a time over the last minute, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Median.
    pub p50: u64,
    /// 90th.
    pub p90: u64,
    /// 99th.
    pub p99: u64,
    /// Largest.
    pub max: u64,
}

/// What became of frames after capture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frames {
    /// Became a result.
    pub finished: u64,
    /// Not looked at because a model was not ready.
    pub skipped: u64,
    /// Bytes that make no picture.
    pub undecodable: u64,
    /// The model failed on them.
    pub failed: u64,
    /// The inference thread panicked on them.
    pub panicked: u64,
    /// Results that wait for the reporter.
    pub waiting: u64,
}

/// Results on their way to the broker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbox {
    /// Results waiting.
    pub waiting: u64,
    /// Bytes of them.
    pub waiting_bytes: u64,
    /// Results acknowledged by the broker since the agent's start.
    pub delivered: u64,
    /// Results dropped since the agent's start; each lies in an announced gap.
    pub dropped: u64,
    /// Whether the disk takes no writes.
    pub degraded: bool,
}

/// The connection to the broker, as it was when the message was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broker {
    /// Whether a session was open.
    pub connected: bool,
    /// Sessions begun since the agent's start.
    pub sessions: u64,
    /// Received messages dropped because the agent was busy.
    pub messages_dropped: u64,
    /// Answers dropped for lack of a connection.
    pub replies_dropped: u64,
}

/// One segment of the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegate {
    /// Who runs it.
    pub name: String,
    /// Number of its nodes.
    pub nodes: usize,
    /// Multiply-accumulates of a run.
    pub macs: u64,
    /// Frames that another than the first choice ran.
    pub fallbacks: u64,
    /// What went wrong last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Accelerators of this part that run in processes of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workers: Vec<Worker>,
}

/// An accelerator's process, since the model was loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// The delegate.
    pub name: String,
    /// `ready`, `starting`, `paused` after a fault, `idle`, or `gone` for good.
    pub state: String,
    /// Processes started.
    pub starts: u64,
    /// Ended by a crash, an error of the device, or an answer that made no sense.
    pub faults: u64,
    /// Ended because a run took too long.
    pub overruns: u64,
    /// Killed, but still there: stuck in the kernel.
    pub stuck: u64,
}

/// Commands since the agent's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commands {
    /// Done.
    pub done: u64,
    /// Answered with an error.
    pub refused: u64,
    /// Answered again because their id was known.
    pub repeated: u64,
    /// Without a usable id: nothing could be answered.
    pub ignored: u64,
}

/// One sensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Temperature {
    /// The kernel's name.
    pub name: String,
    /// Degrees Celsius.
    pub celsius: f32,
}

/// Power meter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Power {
    /// Power now.
    pub watts: f64,
    /// Supply voltage now.
    pub volts: f64,
    /// Energy since the agent's start.
    pub joules: f64,
    /// Energy of the whole board per result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joules_per_inference: Option<f64>,
}

/// Whether the wall clock can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClockState {
    /// The system says that it is synchronised.
    Synchronised,
    /// Nobody says so.
    Unverified,
}

/// Last row of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditHead {
    /// Its number.
    pub number: u64,
    /// Its digest, hex; it covers all rows before.
    pub sha256: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Health {
        let percentiles = Percentiles { p50: 1, p90: 2, p99: 3, max: 4 };
        Health {
            v: crate::VERSION,
            at: "2026-11-21T09:00:00.123Z".into(),
            agent: "0.1.0".into(),
            boot_id: "b".into(),
            uptime_s: 61,
            model: ModelId { name: "nanodet-g-coco".into(), version: "1.0.0".into() },
            streams: vec![StreamHealth {
                name: "front".into(),
                camera: CameraHealth::Unavailable,
                reason: Some("camera /dev/video0: gone; plug it in".into()),
                fps: 9.5,
                limit_fps: Some(10.0),
                captured: 9,
                dropped: 1,
                rate_limited: 2,
                damaged: 4,
                camera_errors: 3,
                panics: 0,
            }],
            latency_us: Latencies { total: percentiles, ..Latencies::default() },
            frames: Frames { finished: 6, ..Frames::default() },
            outbox: Outbox::default(),
            broker: Broker { connected: true, sessions: 1, ..Broker::default() },
            delegates: vec![Delegate {
                name: "tract".into(),
                nodes: 120,
                macs: 5,
                fallbacks: 0,
                last_error: None,
                workers: Vec::new(),
            }],
            commands: Commands::default(),
            rss_bytes: Some(1024),
            temperatures: vec![Temperature { name: "cpu-thermal".into(), celsius: 51.5 }],
            power: None,
            clock: ClockState::Unverified,
            audit: Some(AuditHead { number: 7, sha256: "00".into() }),
            store: None,
        }
    }

    #[test]
    fn has_the_documented_fields() {
        let json = serde_json::to_value(example()).unwrap();
        let expected = serde_json::json!({
            "v": 1, "at": "2026-11-21T09:00:00.123Z", "agent": "0.1.0", "boot_id": "b", "uptime_s": 61,
            "model": {"name": "nanodet-g-coco", "version": "1.0.0"},
            "streams": [{"name": "front", "camera": "unavailable",
                "reason": "camera /dev/video0: gone; plug it in", "fps": 9.5, "limit_fps": 10.0,
                "captured": 9, "dropped": 1, "rate_limited": 2, "damaged": 4, "camera_errors": 3, "panics": 0}],
            "latency_us": {
                "capture": {"p50": 0, "p90": 0, "p99": 0, "max": 0},
                "preprocess": {"p50": 0, "p90": 0, "p99": 0, "max": 0},
                "inference": {"p50": 0, "p90": 0, "p99": 0, "max": 0},
                "postprocess": {"p50": 0, "p90": 0, "p99": 0, "max": 0},
                "total": {"p50": 1, "p90": 2, "p99": 3, "max": 4}},
            "frames": {"finished": 6, "skipped": 0, "undecodable": 0, "failed": 0, "panicked": 0, "waiting": 0},
            "outbox": {"waiting": 0, "waiting_bytes": 0, "delivered": 0, "dropped": 0, "degraded": false},
            "broker": {"connected": true, "sessions": 1, "messages_dropped": 0, "replies_dropped": 0},
            "delegates": [{"name": "tract", "nodes": 120, "macs": 5, "fallbacks": 0}],
            "commands": {"done": 0, "refused": 0, "repeated": 0, "ignored": 0},
            "rss_bytes": 1024, "temperatures": [{"name": "cpu-thermal", "celsius": 51.5}],
            "clock": "unverified", "audit": {"number": 7, "sha256": "00"}
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn is_read_back_and_may_grow() {
        let mut json = serde_json::to_value(example()).unwrap();
        json["later"] = 1.into();
        assert_eq!(serde_json::from_value::<Health>(json).unwrap(), example());
    }
}
