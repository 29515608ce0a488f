//! Payloads of the MQTT topics, as JSON. Field names and shapes are a contract: add, never change.
//!
//! Receivers ignore fields they do not know; times are RFC 3339 in UTC with milliseconds.

use serde::{Deserialize, Serialize};

/// `status`: retained presence, and the last will.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Payload version, [`crate::VERSION`].
    pub v: u32,
    /// Whether the device is connected.
    pub state: Presence,
    /// Version of the agent.
    pub agent: String,
    /// Changes with every start of the agent.
    pub boot_id: String,
    /// When this agent connected, RFC 3339.
    pub since: String,
}

/// Presence of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// Connected.
    Online,
    /// Not connected: said by the agent on shutdown, else by the broker.
    Offline,
}

/// `result/<stream>`: what the model found in one frame.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrameResult {
    /// Payload version, [`crate::VERSION`].
    pub v: u32,
    /// Device id.
    pub device: String,
    /// Stream name.
    pub stream: String,
    /// Strictly increasing per device, across restarts.
    pub seq: u64,
    /// The agent's run that captured the frame.
    pub boot_id: String,
    /// Frame number since the agent's start, per stream.
    pub frame: u64,
    /// When the frame was captured, RFC 3339.
    pub captured_at: String,
    /// The model that ran.
    pub model: ModelId,
    /// Delegates that ran, in order of execution, each named once.
    pub backend: Vec<String>,
    /// Time spent per stage, microseconds.
    pub latency_us: StageLatency,
    /// What was found.
    #[serde(flatten)]
    pub findings: Findings,
}

/// Name and version of a model package.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ModelId {
    /// Package name.
    pub name: String,
    /// Package version, semver.
    pub version: String,
}

/// Time of each stage of one frame, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageLatency {
    /// Dequeue and hand-over of the frame.
    pub capture: u64,
    /// Picture to tensor.
    pub preprocess: u64,
    /// The model.
    pub inference: u64,
    /// Tensors to findings.
    pub postprocess: u64,
    /// From capture to findings, waiting included.
    pub total: u64,
}

/// What a model found: one field, named after the task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Findings {
    /// Boxes, highest score first.
    Detections(Vec<Detection>),
    /// Labels, highest score first.
    Classes(Vec<Classification>),
}

/// One detected object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// Label of the class.
    pub label: String,
    /// Index of the class in the label file.
    pub class: usize,
    /// 0 to 1.
    pub score: f32,
    /// Where, in parts of the picture.
    #[serde(rename = "box")]
    pub bounding_box: BoundingBox,
    /// Points of a face (left eye, right eye, nose, left and right mouth corner), `[x, y]` in parts of the picture.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub landmarks: Vec<[f32; 2]>,
}

/// A box in parts of the source picture: `x`, `y` is the top left corner, all 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BoundingBox {
    /// Left edge.
    pub x: f32,
    /// Top edge.
    pub y: f32,
    /// Width.
    pub w: f32,
    /// Height.
    pub h: f32,
}

/// One class of a classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Classification {
    /// Label of the class.
    pub label: String,
    /// Index of the class in the label file.
    pub class: usize,
    /// 0 to 1.
    pub score: f32,
}

/// `gap`: sequence numbers `from..=to` that will not come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Payload version, [`crate::VERSION`].
    pub v: u32,
    /// First missing number.
    pub from: u64,
    /// Last missing number.
    pub to: u64,
    /// Why they are missing.
    pub reason: GapReason,
}

/// Why sequence numbers are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum GapReason {
    /// The outbox was full and its rule is `drop-oldest`.
    Overflow,
    /// Older than the outbox keeps results.
    Expired,
    /// Given, then lost by a power cut or a crash before they were stored.
    PowerLoss,
    /// The store lost or refused them (full or damaged disk).
    Storage,
}

/// `cmd/<verb>`: a request. Verb-specific arguments stand beside `id`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request<A> {
    /// Chosen by the sender; the answer goes to `reply/<id>`. See [`crate::Id`] for its alphabet.
    pub id: String,
    /// Arguments of the verb.
    #[serde(flatten)]
    pub arguments: A,
}

/// `reply/<id>`: the answer to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply<T> {
    /// Payload version, [`crate::VERSION`].
    pub v: u32,
    /// The request's id.
    pub id: String,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome<T>,
}

/// What came of a request: field `ok` or field `error`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome<T> {
    /// Done; the verb's answer.
    Ok(T),
    /// Not done.
    Error(CommandError),
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandError {
    /// For programs, kebab-case: `unknown-verb`, `bad-request`, `unknown-stream`, `not-now`, `busy`, `failed`.
    pub code: String,
    /// For people: what, where, what to do.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_has_the_documented_fields() {
        let json = r#"{"v":1,"device":"dock-3","stream":"front","seq":18234,"boot_id":"b","frame":1201,"captured_at":"2026-11-21T09:00:00.123Z","model":{"name":"nanodet-g-coco","version":"1.0.0"},"backend":["int8"],"latency_us":{"capture":310,"preprocess":820,"inference":11800,"postprocess":140,"total":13070},"detections":[{"label":"person","class":0,"score":0.83,"box":{"x":0.41,"y":0.22,"w":0.18,"h":0.6}}]}"#;
        let result: FrameResult = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&result).unwrap(), json);
    }

    #[test]
    fn a_reply_has_ok_or_error() {
        let ok = Reply { v: 1, id: "r1".into(), outcome: Outcome::Ok(7) };
        assert_eq!(serde_json::to_string(&ok).unwrap(), r#"{"v":1,"id":"r1","ok":7}"#);
        let error = CommandError { code: "busy".into(), message: "m".into() };
        let reply: Reply<u32> = Reply { v: 1, id: "r1".into(), outcome: Outcome::Error(error) };
        let json = r#"{"v":1,"id":"r1","error":{"code":"busy","message":"m"}}"#;
        assert_eq!(serde_json::to_string(&reply).unwrap(), json);
    }

    #[test]
    fn gap_reasons_are_kebab_case() {
        let gap = Gap { v: 1, from: 3, to: 9, reason: GapReason::PowerLoss };
        let json = r#"{"v":1,"from":3,"to":9,"reason":"power-loss"}"#;
        assert_eq!(serde_json::to_string(&gap).unwrap(), json);
    }
}
