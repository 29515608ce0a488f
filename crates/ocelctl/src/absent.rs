//! Why a device gave no answer, as far as the broker knows: never seen, offline, or kept from answering.

use std::collections::BTreeMap;
use std::time::Duration;

use ocelli_protocol::Id;
use ocelli_protocol::message::{Presence, Status};
use ocelli_protocol::topic::{DeviceTopic, parse_device_topic};
use tokio::time::Instant;

use crate::Failure;
use crate::connection::Broker;

/// Longest look at who is there.
const LOOK: Duration = Duration::from_secs(3);
/// Quiet after which everybody's retained status has come.
const QUIET: Duration = Duration::from_millis(500);
/// Names told at most.
const MOST_NAMES: usize = 10;

/// Looks at the broker again, and says what to check.
pub(crate) async fn no_answer(broker: &Broker, device: &Id, waited: Duration) -> Failure {
    let known = known(broker).await.unwrap_or_default();
    let waited = humantime::format_duration(waited);
    let why = match known.get(device.as_str()) {
        None => format!(
            ": this broker has never seen a device of that name; check the name and --root; {}",
            names(&known)
        ),
        Some(status) if status.state == Presence::Offline => {
            format!(": it is offline since {}; check its power, network and log", status.since)
        }
        Some(_) => " although it is online; try a longer --timeout, and check that the broker lets it read cmd/ and \
                    write reply/"
            .to_owned(),
    };
    Failure(format!("no answer from {device} within {waited}{why}"))
}

/// The last status of every device that the broker tells of.
async fn known(broker: &Broker) -> Result<BTreeMap<String, Status>, Failure> {
    let mut link = broker.connect(&[format!("{}/device/+/status", broker.root)]).await?;
    let mut known = BTreeMap::new();
    let end = Instant::now() + LOOK;
    while let Ok(message) =
        tokio::time::timeout_at(end.min(Instant::now() + QUIET), link.next(|_| ())).await
    {
        let message = message?;
        if let Some((device, DeviceTopic::Status)) =
            parse_device_topic(&broker.root, &message.topic)
            && let Ok(status) = serde_json::from_slice(&message.payload)
        {
            known.insert(device.to_string(), status);
        }
    }
    Ok(known)
}

fn names(known: &BTreeMap<String, Status>) -> String {
    let names: Vec<&str> = known.keys().take(MOST_NAMES).map(String::as_str).collect();
    match known.len() {
        0 => "it knows no device at all".to_owned(),
        all if all > MOST_NAMES => {
            format!("it knows {} and {} more", names.join(", "), all - MOST_NAMES)
        }
        _ => format!("it knows {}", names.join(", ")),
    }
}
