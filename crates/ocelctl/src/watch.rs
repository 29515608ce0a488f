//! `ocelctl watch`: what devices publish, one readable line (or JSON object) a message, and what is missing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::time::Duration;

use ocelli_protocol::Id;
use ocelli_protocol::message::{Findings, FrameResult, Gap, Presence, Status};
use ocelli_protocol::model_state::ModelState;
use ocelli_protocol::topic::{DeviceTopic, DeviceTopics, parse_device_topic};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::connection::{Broker, Message};
use crate::demo::update::describe;
use crate::fleet;
use crate::sequence::{Arrival, Sequence};
use crate::{Failure, written};

/// Retained messages come at once: who has none by then is unknown to the broker.
const UNKNOWN_AFTER: Duration = Duration::from_secs(3);
/// Findings shown on a line.
const MAX_SHOWN: usize = 6;

/// Arguments of `ocelctl watch`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Ends with Ctrl-C, or by --for or --results, then says what was missing: exit code 1 when any \
    sequence number neither came nor lay in an announced gap."
)]
pub(crate) struct Arguments {
    /// Device to watch [default: all]
    device: Option<Id>,
    /// One table of all devices, printed anew when it changes: model, state, progress and last outcome
    #[arg(long, conflicts_with_all = ["json", "results"])]
    fleet: bool,
    /// One JSON object a line: {"topic", "payload"}, and {"missing": {"device", "from", "to"}}
    #[arg(long)]
    json: bool,
    /// Stop after this many results
    #[arg(long, value_name = "N")]
    results: Option<u64>,
    /// Stop after this time, as 30s or 5m
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
    #[command(flatten)]
    broker: Broker,
}

/// Runs until Ctrl-C or a limit.
pub(crate) async fn run(arguments: Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    let root = &arguments.broker.root;
    let filter = match &arguments.device {
        Some(device) => DeviceTopics::new(root, device).all(),
        None => format!("{root}/device/#"),
    };
    let mut link = arguments.broker.connect(&[filter]).await?;
    if arguments.fleet {
        return fleet::show(&mut link, root, arguments.time, out).await;
    }
    let mut watcher = Watcher {
        root: root.clone(),
        json: arguments.json,
        devices: BTreeMap::new(),
        heard: false,
    };
    let known_by = Instant::now() + UNKNOWN_AFTER;
    let mut told_unknown = false;
    let end = arguments.time.map(|time| Instant::now() + time);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    'watching: loop {
        // Kept across ticks: a half-made connection must not begin again every second.
        let mut next = std::pin::pin!(link.next(tell));
        let message = loop {
            tokio::select! {
                message = &mut next => break message?,
                _ = tick.tick() => {
                    if !watcher.heard && !told_unknown && Instant::now() >= known_by {
                        told_unknown = true;
                        tell_unknown(&unknown(arguments.device.as_ref()));
                    }
                    for line in watcher.overdue(Instant::now().into_std()) {
                        written(writeln!(out, "{line}"))?;
                    }
                    if end.is_some_and(|end| Instant::now() >= end) {
                        break 'watching;
                    }
                }
                _ = tokio::signal::ctrl_c() => break 'watching,
            }
        };
        if let Some(line) = watcher.receive(&message, Instant::now().into_std()) {
            written(writeln!(out, "{line}"))?;
        }
        if arguments.results.is_some_and(|results| watcher.results() >= results) {
            break;
        }
    }
    watcher.conclude(out)?;
    match watcher.heard {
        true => Ok(()),
        false => Err(Failure(unknown(arguments.device.as_ref()))),
    }
}

/// What it means that not even a retained message came.
fn unknown(device: Option<&Id>) -> String {
    match device {
        Some(device) => format!(
            "the broker has never seen a device {device}, or does not let this user read its topics; ocelctl watch \
             --fleet lists those it knows"
        ),
        None => "the broker knows no device, or does not let this user read their topics; check --root, and the \
                 devices' mqtt.host"
            .to_owned(),
    }
}

fn tell_unknown(why: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "ocelctl: {why}; still waiting");
}

/// Tells a disturbance without mixing it into the output.
pub(crate) fn tell(why: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "ocelctl: {why}; trying again");
}

/// Turns messages into lines, and keeps the books of each device. No I/O.
struct Watcher {
    root: String,
    json: bool,
    devices: BTreeMap<String, Sequence>,
    /// Whether anything came at all.
    heard: bool,
}

impl Watcher {
    fn receive(&mut self, message: &Message, now: std::time::Instant) -> Option<String> {
        let (device, kind) = parse_device_topic(&self.root, &message.topic)?;
        self.heard = true;
        let line = self.note(device, &kind, message, now);
        if !self.json {
            return line.map(|line| format!("{device:<12} {line}"));
        }
        let payload = serde_json::from_slice::<Value>(&message.payload)
            .unwrap_or_else(|_| json!({ "bytes": message.payload.len() }));
        Some(json!({ "topic": message.topic, "payload": payload }).to_string())
    }

    fn note(
        &mut self,
        device: &str,
        kind: &DeviceTopic<'_>,
        message: &Message,
        now: std::time::Instant,
    ) -> Option<String> {
        let old = if message.retained { " (retained)" } else { "" };
        let text = match kind {
            DeviceTopic::Result(stream) => {
                match serde_json::from_slice::<FrameResult>(&message.payload) {
                    Ok(result) => {
                        let arrival = self.books(device).result(result.seq, now);
                        let again = if arrival == Arrival::Repeated { " (again)" } else { "" };
                        format!("{stream:<10} #{}{again} {}", result.seq, result_line(&result))
                    }
                    Err(error) => format!("{stream:<10} unreadable result: {error}"),
                }
            }
            DeviceTopic::Gap => match serde_json::from_slice::<Gap>(&message.payload) {
                Ok(gap) => {
                    self.books(device).gap(gap.from, gap.to, now);
                    format!(
                        "gap        #{} to #{} will not come: {:?}",
                        gap.from, gap.to, gap.reason
                    )
                }
                Err(error) => format!("gap        unreadable: {error}"),
            },
            DeviceTopic::Status => match serde_json::from_slice::<Status>(&message.payload) {
                Ok(status) => {
                    let state = if status.state == Presence::Online { "online" } else { "offline" };
                    format!(
                        "status     {state} since {}, agent {}{old}",
                        status.since, status.agent
                    )
                }
                Err(error) => format!("status     unreadable: {error}"),
            },
            DeviceTopic::Health => format!("health     {}{old}", flat(&message.payload)),
            DeviceTopic::Model => match serde_json::from_slice::<ModelState>(&message.payload) {
                Ok(model) => format!("model      {}{old}", describe(&model)),
                Err(_) => format!("model      {}{old}", flat(&message.payload)),
            },
            DeviceTopic::Snapshot(stream) => {
                format!("{stream:<10} snapshot, {} bytes", message.payload.len())
            }
            DeviceTopic::Reply(id) => format!("reply      {id}: {}", flat(&message.payload)),
        };
        Some(text)
    }

    fn books(&mut self, device: &str) -> &mut Sequence {
        self.devices.entry(device.to_owned()).or_default()
    }

    fn results(&self) -> u64 {
        self.devices.values().map(|sequence| sequence.totals.results).sum()
    }

    fn overdue(&mut self, now: std::time::Instant) -> Vec<String> {
        let json = self.json;
        let devices = self.devices.iter_mut();
        devices
            .flat_map(|(device, sequence)| {
                sequence.overdue(now).into_iter().map(move |range| (device, range))
            })
            .map(|(device, range)| missing_line(device, *range.start(), *range.end(), json))
            .collect()
    }

    fn conclude(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let mut missing = 0;
        for (device, sequence) in &self.devices {
            let holes = sequence.missing();
            let count: u64 = holes.iter().map(|hole| hole.end() - hole.start() + 1).sum();
            missing += count;
            if !self.json {
                let totals = sequence.totals;
                written(writeln!(
                    out,
                    "{device:<12} {} results, {} repeated, {} announced as gaps, {count} missing",
                    totals.results, totals.repeated, totals.announced
                ))?;
            }
        }
        match missing {
            0 => Ok(()),
            _ => Err(Failure(format!(
                "{missing} sequence numbers neither came nor were announced; was this client offline, or is the broker losing messages?"
            ))),
        }
    }
}

fn missing_line(device: &str, from: u64, to: u64, json: bool) -> String {
    if json {
        json!({ "missing": { "device": device, "from": from, "to": to } }).to_string()
    } else {
        format!("{device:<12} MISSING    #{from} to #{to}: neither received nor announced")
    }
}

/// Findings and time of one result, readable.
fn result_line(result: &FrameResult) -> String {
    let found = match &result.findings {
        Findings::Detections(list) => listing(list.iter().map(|found| {
            let area = found.bounding_box;
            let place = format!("[{:.2} {:.2} {:.2} {:.2}]", area.x, area.y, area.w, area.h);
            format!("{} {:.2} {place}", found.label, found.score)
        })),
        Findings::Classes(list) => {
            listing(list.iter().map(|found| format!("{} {:.2}", found.label, found.score)))
        }
    };
    let millis = result.latency_us.total as f64 / 1000.0;
    format!("{found} ({millis:.1} ms on {})", result.backend.join("+"))
}

fn listing(items: impl ExactSizeIterator<Item = String>) -> String {
    let count = items.len();
    let mut text = items.take(MAX_SHOWN).collect::<Vec<_>>().join(", ");
    if count == 0 {
        text.push_str("nothing");
    } else if count > MAX_SHOWN {
        // Writing to a String cannot fail.
        let _ = write!(text, " and {} more", count - MAX_SHOWN);
    }
    text
}

/// A JSON object as `key=value` words, nested keys joined by dots.
fn flat(payload: &[u8]) -> String {
    fn walk(prefix: &str, value: &Value, words: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let path =
                        if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                    walk(&path, value, words);
                }
            }
            Value::String(text) => words.push(format!("{prefix}={text}")),
            other => words.push(format!("{prefix}={other}")),
        }
    }
    match serde_json::from_slice(payload) {
        Ok(value) => {
            let mut words = Vec::new();
            walk("", &value, &mut words);
            words.retain(|word| word != "v=1");
            words.join(" ")
        }
        Err(error) => format!("unreadable: {error}"),
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a start for invented times")]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::sequence::PATIENCE;

    fn watcher(json: bool) -> Watcher {
        Watcher { root: "ocelli".to_owned(), json, devices: BTreeMap::new(), heard: false }
    }

    fn message(topic: &str, payload: &str) -> Message {
        Message { topic: topic.to_owned(), payload: payload.as_bytes().to_vec(), retained: false }
    }

    fn result(seq: u64) -> Message {
        let payload = format!(
            r#"{{"v":1,"device":"a","stream":"front","seq":{seq},"boot_id":"b","frame":1,"captured_at":"2026-11-21T09:00:00.123Z","model":{{"name":"m","version":"1.0.0"}},"backend":["tract"],"latency_us":{{"capture":1,"preprocess":2,"inference":3,"postprocess":4,"total":13070}},"detections":[{{"label":"cat","class":15,"score":0.83,"box":{{"x":0.4,"y":0.2,"w":0.1,"h":0.6}}}}]}}"#
        );
        message("ocelli/device/a/result/front", &payload)
    }

    #[test]
    fn a_result_is_one_readable_line() {
        let line = watcher(false).receive(&result(7), Instant::now()).unwrap();
        assert_eq!(
            line,
            "a            front      #7 cat 0.83 [0.40 0.20 0.10 0.60] (13.1 ms on tract)"
        );
    }

    #[test]
    fn a_hole_is_told_and_fails_the_watch() {
        let now = Instant::now();
        let mut watcher = watcher(false);
        for seq in [1, 4] {
            watcher.receive(&result(seq), now);
        }
        let told = watcher.overdue(now + PATIENCE);
        assert_eq!(told, ["a            MISSING    #2 to #3: neither received nor announced"]);
        let mut out = Vec::new();
        let failure = watcher.conclude(&mut out).unwrap_err().to_string();
        assert!(failure.starts_with("2 sequence numbers"), "{failure}");
        let gap = r#"{"v":1,"from":2,"to":3,"reason":"overflow"}"#;
        watcher.receive(&message("ocelli/device/a/gap", gap), now);
        assert!(watcher.conclude(&mut out).is_ok());
    }

    #[test]
    fn json_lines_keep_topic_and_payload_and_garbage_is_no_panic() {
        let mut watcher = watcher(true);
        let line = watcher.receive(&message("ocelli/device/a/health", "{\"v\":1}"), Instant::now());
        assert_eq!(line.unwrap(), r#"{"payload":{"v":1},"topic":"ocelli/device/a/health"}"#);
        let line = watcher.receive(&message("ocelli/device/a/result/s", "{"), Instant::now());
        assert_eq!(line.unwrap(), r#"{"payload":{"bytes":1},"topic":"ocelli/device/a/result/s"}"#);
        assert_eq!(watcher.receive(&message("other/topic", "{}"), Instant::now()), None);
    }
}
