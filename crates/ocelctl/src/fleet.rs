//! `ocelctl watch --fleet`: what each device runs and how its update stands, as one table.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use ocelli_protocol::message::{Presence, Status};
use ocelli_protocol::model_state::{ModelState, Trust, UpdatePhase};
use ocelli_protocol::topic::{DeviceTopic, parse_device_topic};
use tokio::time::Instant;

use crate::connection::{Link, Message};
use crate::watch::tell;
use crate::{Failure, written};

/// What came last of one device.
#[derive(Default)]
struct Device {
    status: Option<Status>,
    model: Option<ModelState>,
}

/// The books of all devices. No I/O.
#[derive(Default)]
struct Fleet(BTreeMap<String, Device>);

impl Fleet {
    fn note(&mut self, root: &str, message: &Message) {
        let Some((device, kind)) = parse_device_topic(root, &message.topic) else { return };
        match kind {
            DeviceTopic::Status => {
                let status = serde_json::from_slice(&message.payload).ok();
                self.0.entry(device.to_owned()).or_default().status = status;
            }
            DeviceTopic::Model => {
                let model = serde_json::from_slice(&message.payload).ok();
                self.0.entry(device.to_owned()).or_default().model = model;
            }
            _ => {}
        }
        // Both topics emptied: the device was removed.
        self.0.retain(|_, device| device.status.is_some() || device.model.is_some());
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(UTF8_HORIZONTAL_ONLY);
        table.set_header(["device", "", "model", "trust", "update", "last outcome"]);
        for (name, device) in &self.0 {
            let [model, trust, update, last] =
                device.model.as_ref().map_or_else(|| ["?", "", "", ""].map(str::to_owned), row);
            let presence = match device.status.as_ref().map(|status| status.state) {
                Some(Presence::Online) => "online",
                Some(Presence::Offline) => "offline",
                None => "?",
            };
            table.add_row([name.clone(), presence.to_owned(), model, trust, update, last]);
        }
        format!("{table}\n{} devices", self.0.len())
    }
}

/// Model, trust, update and last outcome, each in a few words.
fn row(model: &ModelState) -> [String; 4] {
    let (running, update) = (&model.running, &model.update);
    let trust = match running.state {
        Trust::Trial => "trial",
        Trust::Confirmed => "confirmed",
    };
    let mut step = match update.state {
        UpdatePhase::Off => "off",
        UpdatePhase::Idle => "idle",
        UpdatePhase::Checking => "checking",
        UpdatePhase::Fetching => "fetching",
        UpdatePhase::Trial => "trial",
        UpdatePhase::Probation => "probation",
        _ => "other",
    }
    .to_owned();
    if let Some(target) = &update.target {
        step.push_str(&format!(" {target}"));
    }
    if let Some(progress) = update.progress {
        let percent = (progress.bytes * 100).checked_div(progress.of).unwrap_or(100);
        step.push_str(&format!(" {percent} %"));
    }
    if let Some(reason) = &update.reason {
        step.push_str(&format!(": {reason}"));
    }
    let last = update.last.as_ref().map_or_else(String::new, |last| {
        let outcome = serde_json::to_value(last.outcome).unwrap_or_default();
        format!("{} {}: {}", last.target, outcome.as_str().unwrap_or_default(), last.reason)
    });
    [format!("{} {}", running.name, running.version), trust.to_owned(), step, last]
}

/// Prints the table, and again when it changed, at most once a second, until Ctrl-C or for a time.
pub(crate) async fn show(
    link: &mut Link,
    root: &str,
    time: Option<Duration>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut fleet = Fleet::default();
    let mut told = String::new();
    let end = time.map(|time| Instant::now() + time);
    // What is retained comes at once, and belongs into the first table.
    let mut tick =
        tokio::time::interval_at(Instant::now() + Duration::from_secs(1), Duration::from_secs(1));
    loop {
        let mut next = std::pin::pin!(link.next(tell));
        let message = loop {
            tokio::select! {
                message = &mut next => break message?,
                _ = tick.tick() => {
                    let table = fleet.table();
                    if table != told {
                        written(writeln!(out, "{table}"))?;
                        told = table;
                    }
                    if end.is_some_and(|end| Instant::now() >= end) {
                        return Ok(());
                    }
                }
                _ = tokio::signal::ctrl_c() => return Ok(()),
            }
        };
        fleet.note(root, &message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(topic: &str, payload: &str) -> Message {
        Message { topic: topic.to_owned(), payload: payload.as_bytes().to_vec(), retained: true }
    }

    #[test]
    fn each_device_is_a_row_with_model_update_and_outcome() {
        let mut fleet = Fleet::default();
        let model = |version: &str, update: &str| {
            format!(
                r#"{{"v":1,"running":{{"name":"m","version":"{version}","sha256":"00","slot":"a","state":"trial","backend":[],"golden":1}},"update":{update}}}"#
            )
        };
        let fetching =
            r#"{"state":"fetching","target":"m-2.0.0","progress":{"bytes":50,"of":200}}"#;
        let rejected = r#"{"state":"idle","last":{"target":"m-2.0.0","outcome":"rejected","reason":"wrong","at":"now"}}"#;
        for (topic, payload) in [
            ("ocelli/device/dock-1/model", model("1.0.0", fetching)),
            ("ocelli/device/dock-2/model", model("1.1.0", rejected)),
            ("ocelli/device/dock-1/result/front", "{}".to_owned()),
            ("ocelli/device/dock-3/model", "garbage".to_owned()),
            ("elsewhere", String::new()),
        ] {
            fleet.note("ocelli", &message(topic, &payload));
        }
        let table = fleet.table();
        let line = |device: &str| table.lines().find(|line| line.contains(device)).unwrap_or("");
        for words in ["m 1.0.0", "trial", "fetching m-2.0.0 25 %"] {
            assert!(line("dock-1").contains(words), "{words}: {table}");
        }
        assert!(line("dock-2").contains("m-2.0.0 rejected: wrong"), "{table}");
        assert!(table.ends_with("2 devices"), "{table}");
        fleet.note("ocelli", &message("ocelli/device/dock-2/model", ""));
        assert!(fleet.table().ends_with("1 devices"));
    }
}
