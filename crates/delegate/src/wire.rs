//! What the agent and `ocelli-npu-worker` tell each other over a socket pair that keeps message borders.
//!
//! A message is one packet: its kind in one byte, then JSON, or nothing, or for runs fixed binary fields: the way of a
//! frame has no text. What is large (graph, model, the frame's tensors) lies in a sealed memory file whose descriptor
//! comes with the packet. The worker answers each request with exactly one reply.
//!
//! The agent trusts nothing it reads here: packets have a limit, numbers are checked against what was asked.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Changes with every change here; agent and worker of different versions refuse each other.
pub const VERSION: u32 = 2;
/// Largest packet, bytes.
pub const MAX_PACKET: usize = 128 * 1024;
/// Alignment of each tensor in a memory file: a page, as devices want it.
pub const ALIGNMENT: usize = 4096;

/// Packet could not be read.
#[derive(Debug, thiserror::Error)]
#[error("not a message: {0}")]
pub struct Malformed(String);

/// From the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// First of all: load the plug-in.
    Open(Open),
    /// Which nodes of the graph in the file that comes along are accepted.
    Supports {
        /// Number of the device.
        device: u32,
        /// Where the graph lies in the file, as JSON; constants lie at their own offsets.
        graph: Part,
    },
    /// Compile what is in the file that comes along.
    Compile(Box<Compile>),
    /// The file that comes along holds inputs and outputs of runs from now on, see [`places`].
    Buffers,
    /// How the device is.
    Stats {
        /// Number of the device.
        device: u32,
    },
    /// Send the compiled form, as [`Reply::Blob`].
    Export,
}

/// Start of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Open {
    /// [`VERSION`] of the agent.
    pub version: u32,
    /// Path of the plug-in.
    pub plugin: String,
    /// For the plug-in.
    pub options: BTreeMap<String, String>,
    /// How far it is fenced in.
    pub sandbox: Sandbox,
    /// Largest address space, bytes; 0: no limit.
    pub memory_bytes: u64,
    /// The only folder in which it may write; none: nowhere.
    pub cache_dir: Option<String>,
}

/// What the plug-in's process may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sandbox {
    /// No new processes, no network, no writing of files but in the cache folder and to devices.
    #[default]
    Strict,
    /// As strict, with network and new processes: for runtimes that talk to a daemon.
    Files,
    /// Only limits of memory and privileges.
    Off,
}

/// A segment or model to be compiled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compile {
    /// Number of the device.
    pub device: u32,
    /// The vendor's compiled form instead of ONNX.
    pub blob: bool,
    /// ONNX or blob, in the file.
    pub model: Part,
    /// The segment in the file, as JSON; none for a blob.
    pub graph: Option<Part>,
    /// What made the blob.
    pub toolchain: Option<String>,
}

/// A part of a memory file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Where it begins.
    pub at: u64,
    /// Its length.
    pub n_bytes: u64,
}

/// `ocelli_graph`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    /// ONNX operator set.
    pub opset: u32,
    /// All tensors.
    pub tensors: Vec<Tensor>,
    /// In an order in which they can run.
    pub nodes: Vec<Node>,
    /// Places in `tensors`.
    pub inputs: Vec<u32>,
    /// Places in `tensors`.
    pub outputs: Vec<u32>,
}

/// `ocelli_tensor`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    /// Name in the graph.
    pub name: String,
    /// Number of ONNX; 0 for one that cannot pass a border.
    pub dtype: u32,
    /// `OCELLI_LAYOUT_…`
    #[serde(default)]
    pub layout: u32,
    /// In the order of the graph.
    pub dims: Vec<i64>,
    /// One scale, or one per slice along `axis`; none: not quantised.
    #[serde(default)]
    pub scale: Vec<f32>,
    /// As many.
    #[serde(default)]
    pub zero_point: Vec<i32>,
    /// Of the slices.
    #[serde(default)]
    pub axis: Option<i32>,
    /// Bytes of its values.
    pub n_bytes: u64,
    /// Where a constant's values lie in the file.
    #[serde(default)]
    pub data: Option<u64>,
}

/// `ocelli_node`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// ONNX operator.
    pub op: String,
    /// Name in the graph.
    pub name: String,
    /// On dequantised values.
    pub quantised: bool,
    /// Places in the tensors; [`crate::abi::NO_TENSOR`] where one is left out.
    pub inputs: Vec<u32>,
    /// The same.
    pub outputs: Vec<u32>,
    /// Of the operator.
    pub attributes: Vec<Attribute>,
    /// Clamp of the result; none: unbounded.
    pub clip: (Option<f32>, Option<f32>),
    /// Multiply-accumulates.
    pub macs: u64,
}

/// `ocelli_attribute`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attribute {
    /// Name in ONNX.
    pub name: String,
    /// Value.
    pub value: AttributeValue,
}

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the kinds of ONNX")]
pub enum AttributeValue {
    Int(i64),
    Float(f32),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Text(String),
}

/// From the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// The plug-in is loaded.
    Opened(Opened),
    /// A byte for each node, 1 where it is accepted.
    Accepts(Vec<u8>),
    /// Compiled, with these tensors.
    Compiled {
        /// In the order of the segment.
        inputs: Vec<Tensor>,
        /// The same.
        outputs: Vec<Tensor>,
        /// The device once more: some runtimes tell their version only with a model.
        device: Option<Device>,
    },
    /// The buffers are mapped.
    Mapped,
    /// How the device is.
    Stats(Stats),
    /// The compiled form; its bytes are in the file that comes along.
    Blob {
        /// Length.
        n_bytes: u64,
    },
    /// It did not work.
    Failed(Failed),
}

/// What a plug-in is and sees.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Opened {
    /// [`VERSION`] of the worker.
    pub version: u32,
    /// Name of the plug-in.
    pub plugin: String,
    /// Its version.
    pub plugin_version: String,
    /// Devices, at least one.
    pub devices: Vec<Device>,
    /// What could not be fenced, for the log; empty: all that was asked for.
    pub unfenced: Vec<String>,
}

/// `ocelli_device`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "ocelli_delegate.h documents each field")]
pub struct Device {
    pub name: String,
    pub vendor: String,
    pub target: String,
    pub driver: String,
    pub runtime: String,
    pub cores: u32,
    pub simulated: bool,
    pub online_compile: bool,
    pub blob: bool,
    pub tops: Option<f32>,
}

/// `ocelli_stats`
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "ocelli_delegate.h documents each field")]
pub struct Stats {
    pub last_run_ns: u64,
    pub memory_bytes: u64,
    pub temperature_celsius: Option<f32>,
    pub power_watt: Option<f32>,
    pub frequency_mhz: Option<f32>,
    pub utilisation: Option<f32>,
    /// Resident memory of the worker.
    pub worker_rss_bytes: u64,
}

/// Why something did not work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// The plug-in's status; 11 where the worker itself failed.
    pub status: i32,
    /// What the plug-in says.
    pub reason: String,
}

const JSON: u8 = b'J';
const RUN: u8 = b'R';
const DONE: u8 = b'D';

/// A packet, read.
#[derive(Debug, PartialEq)]
pub enum Packet<T> {
    /// A request or reply.
    Json(T),
    /// Run once, within so many nanoseconds.
    Run {
        /// Number of the run.
        seq: u64,
        /// Time given.
        timeout_ns: u64,
    },
    /// A run has ended.
    Done {
        /// Number of the run.
        seq: u64,
        /// The plug-in's status.
        status: i32,
    },
}

/// A request or reply as a packet.
#[must_use]
pub fn json(message: &impl Serialize) -> Vec<u8> {
    let mut packet = vec![JSON];
    serde_json::to_writer(&mut packet, message).expect("messages are trees of plain values");
    packet
}

/// [`Packet::Run`] as bytes.
#[must_use]
pub fn run(seq: u64, timeout_ns: u64) -> [u8; 17] {
    let mut packet = [RUN; 17];
    packet[1..9].copy_from_slice(&seq.to_le_bytes());
    packet[9..].copy_from_slice(&timeout_ns.to_le_bytes());
    packet
}

/// [`Packet::Done`] as bytes.
#[must_use]
pub fn done(seq: u64, status: i32) -> [u8; 13] {
    let mut packet = [DONE; 13];
    packet[1..9].copy_from_slice(&seq.to_le_bytes());
    packet[9..].copy_from_slice(&status.to_le_bytes());
    packet
}

/// Reads a packet.
///
/// # Errors
/// [`Malformed`] when it is none.
pub fn parse<'a, T: Deserialize<'a>>(packet: &'a [u8]) -> Result<Packet<T>, Malformed> {
    let number = |at: usize| {
        let bytes = packet.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_le_bytes)
    };
    match packet.first() {
        Some(&JSON) => serde_json::from_slice(&packet[1..])
            .map(Packet::Json)
            .map_err(|error| Malformed(error.to_string())),
        Some(&RUN) if packet.len() == 17 => Ok(Packet::Run {
            seq: number(1).unwrap_or_default(),
            timeout_ns: number(9).unwrap_or_default(),
        }),
        Some(&DONE) if packet.len() == 13 => {
            let status = packet[9..].try_into().map(i32::from_le_bytes);
            let status = status.map_err(|error| Malformed(error.to_string()))?;
            Ok(Packet::Done { seq: number(1).unwrap_or_default(), status })
        }
        kind => Err(Malformed(format!("{} bytes of kind {kind:?}", packet.len()))),
    }
}

/// Where tensors of these sizes lie in one memory file, and its size.
#[must_use]
pub fn places(sizes: impl IntoIterator<Item = u64>) -> (Vec<u64>, u64) {
    let mut end = 0_u64;
    let mut places = Vec::new();
    for size in sizes {
        places.push(end);
        end = end.saturating_add(size).next_multiple_of(ALIGNMENT as u64);
    }
    (places, end.max(ALIGNMENT as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_back_as_they_were() {
        let reply = Reply::Failed(Failed { status: 5, reason: "for rk3566".to_owned() });
        assert_eq!(parse(&json(&reply)).unwrap(), Packet::Json(reply));
        let (seq, timeout_ns) = (7, 1 << 40);
        assert_eq!(parse::<Reply>(&run(7, 1 << 40)).unwrap(), Packet::Run { seq, timeout_ns });
        let done = parse::<Reply>(&done(7, -3)).unwrap();
        assert_eq!(done, Packet::Done { seq, status: -3 });
    }

    #[test]
    fn anything_else_is_refused() {
        for packet in [&b""[..], b"J", b"J{", b"R123", b"D", b"X12345678", b"J\"Nothing\""] {
            assert!(parse::<Reply>(packet).is_err(), "{packet:?}");
        }
    }

    #[test]
    fn tensors_begin_on_pages_and_do_not_overlap() {
        assert_eq!(places([5, 4096, 1]), (vec![0, 4096, 8192], 12288));
        assert_eq!(places([]), (vec![], 4096));
    }
}
