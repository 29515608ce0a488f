//! `ocelctl audit`: fetches a device's audit log and verifies its chain; or verifies a file that was fetched before, without
//! a broker.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use ocelli::clock::UnixTime;
use ocelli::store::{AuditEntry, AuditRow};
use ocelli_protocol::Id;
use ocelli_protocol::health::{AuditHead, Health};
use ocelli_protocol::message::{Outcome, Reply, Request};
use ocelli_protocol::repository::Digest;
use ocelli_protocol::topic::{DeviceTopic, DeviceTopics, parse_device_topic};
use rumqttc::QoS;
use serde::{Deserialize, Serialize};

use crate::connection::{Broker, Link, nonce};
use crate::files::Place;
use crate::{Failure, absent, files, written};

/// Arguments of `ocelctl audit`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A row is one line of JSON. The log is whole when every row's digest covers the one before, and the \
    last digest is the head that the device told in `health`."
)]
pub(crate) struct Arguments {
    /// Device whose log is fetched
    #[arg(required_unless_present = "file")]
    device: Option<Id>,
    /// Verify this file, without a broker
    #[arg(long, value_name = "FILE", conflicts_with = "device")]
    file: Option<PathBuf>,
    /// Digest that the last row must have, as `health` told it
    #[arg(long, value_name = "SHA256", requires = "file")]
    head: Option<Digest>,
    /// Keep the rows in this file
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Longest wait for each answer
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    broker: Broker,
}

/// A row as the device tells it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    number: u64,
    at_us: u64,
    kind: String,
    subject: String,
    detail: String,
    /// Bytes of a detail that no message could hold; it is empty then, and the row's own digest cannot be verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    omitted: Option<u64>,
    previous: Digest,
    sha256: Digest,
}

#[derive(Deserialize)]
struct Page {
    rows: Vec<Row>,
    /// Whether there are rows behind these. Older agents do not say.
    more: Option<bool>,
}

/// Runs `ocelctl audit`.
pub(crate) async fn run(arguments: Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    let (rows, head) = match (&arguments.file, &arguments.device) {
        (Some(file), _) => {
            let text = String::from_utf8_lossy(&files::read(file)?).into_owned();
            let row = |(line, text): (usize, &str)| {
                serde_json::from_str(text).map_err(|error| {
                    Failure(format!("{}, line {}: {error}", file.display(), line + 1))
                })
            };
            let rows: Result<Vec<Row>, Failure> = text.lines().enumerate().map(row).collect();
            (rows?, arguments.head)
        }
        (None, Some(device)) => {
            let (rows, head) = fetch(&arguments, device).await?;
            // What came after the head was told is covered by nothing yet, and need not be.
            let head = head.and_then(|head| {
                let known = rows.iter().any(|row| row.number == head.number);
                known.then(|| head.sha256.parse().ok()).flatten()
            });
            (rows, head)
        }
        (None, None) => return Err(Failure::new("which device? Or --file")),
    };
    let lines: Vec<String> =
        rows.iter().map(|row| serde_json::to_string(row).expect("a row is plain JSON")).collect();
    match &arguments.save {
        Some(path) => files::write(path, (lines.join("\n") + "\n").as_bytes(), Place::Public)?,
        None => lines.iter().try_for_each(|line| written(writeln!(out, "{line}")))?,
    }
    written(writeln!(out, "{}", verify(&rows, head)?))
}

/// Whether the chain is whole; in words.
fn verify(rows: &[Row], head: Option<Digest>) -> Result<String, Failure> {
    let Some(first) = rows.first() else { return Ok("the log is empty".to_owned()) };
    if first.number == 1 && first.previous != Digest([0; 32]) {
        return Err(Failure::new("row 1 follows on something: it is not the first"));
    }
    let mut before = (first.number - 1, first.previous);
    for row in rows {
        let (number, previous) = before;
        if row.number != number + 1 || row.previous != previous {
            return Err(Failure(format!(
                "row {} does not follow on row {number}: rows are missing or changed",
                row.number
            )));
        }
        let entry = AuditEntry {
            at: UnixTime::from_micros(row.at_us),
            kind: row.kind.clone(),
            subject: row.subject.clone(),
            detail: row.detail.clone(),
        };
        let digest = AuditRow::digest_of(&previous.0, row.number, &entry);
        if row.omitted.is_none() && digest != row.sha256.0 {
            return Err(Failure(format!("row {} was changed: its digest is another", row.number)));
        }
        before = (row.number, row.sha256);
    }
    let against = match head {
        Some(head) if rows.iter().any(|row| row.sha256 == head) => ", its head as told",
        Some(head) => {
            return Err(Failure(format!(
                "no row has the told head {head}: the log was cut or replaced"
            )));
        }
        None => "; no head to compare with",
    };
    let removed = match first.number {
        1 => String::new(),
        number => format!(
            "; rows 1 to {} were removed by age, their digest is {}",
            number - 1,
            first.previous
        ),
    };
    let omitted: Vec<String> =
        rows.iter().filter(|row| row.omitted.is_some()).map(|row| row.number.to_string()).collect();
    let unverified = match omitted.join(", ") {
        numbers if numbers.is_empty() => numbers,
        numbers => {
            format!("; the text of row {numbers} was too large to be sent, and is not verified")
        }
    };
    Ok(format!("{} rows, the chain is whole{against}{removed}{unverified}", rows.len()))
}

/// All rows that the device has, and the head that it told.
async fn fetch(
    arguments: &Arguments,
    device: &Id,
) -> Result<(Vec<Row>, Option<AuditHead>), Failure> {
    let topics = DeviceTopics::new(&arguments.broker.root, device);
    let filters = [format!("{}/device/{device}/reply/+", arguments.broker.root), topics.health()];
    let mut link = arguments.broker.connect(&filters).await?;
    let (mut rows, mut head): (Vec<Row>, _) = (Vec::new(), None);
    loop {
        let after = rows.last().map_or(0, |row| row.number);
        let asked = page(&mut link, arguments, &topics, after, &mut head);
        let page = tokio::time::timeout(arguments.timeout, asked).await;
        let Ok(page) = page else {
            return Err(absent::no_answer(&arguments.broker, device, arguments.timeout).await);
        };
        let page = page?;
        // Reading the log adds a row to it: the end is a page with that row only.
        let more = page.more.unwrap_or(page.rows.len() > 1) && !page.rows.is_empty();
        if page.rows.first().is_some_and(|row| row.number <= after) {
            return Err(Failure(format!("{device} tells rows again that it told before")));
        }
        rows.extend(page.rows);
        if !more {
            return Ok((rows, head));
        }
    }
}

async fn page(
    link: &mut Link,
    arguments: &Arguments,
    topics: &DeviceTopics,
    after: u64,
    head: &mut Option<AuditHead>,
) -> Result<Page, Failure> {
    let id = format!("ocelctl-{:016x}", nonce());
    let fields = serde_json::json!({ "after": after });
    let request = serde_json::to_vec(&Request { id: id.clone(), arguments: fields });
    let request = request.map_err(|error| Failure(error.to_string()))?;
    let topic = topics.command("audit");
    let asked = link.client.try_publish(&topic, QoS::AtLeastOnce, false, request);
    asked.map_err(|error| Failure(format!("cannot publish to {topic}: {error}")))?;
    loop {
        let message = link.next(|_| ()).await?;
        match parse_device_topic(&arguments.broker.root, &message.topic) {
            Some((_, DeviceTopic::Health)) => {
                let health = serde_json::from_slice::<Health>(&message.payload).ok();
                *head = health.and_then(|health| health.audit).or(head.take());
            }
            Some((_, DeviceTopic::Reply(to))) if to == id => {
                let unreadable = |error| Failure(format!("unreadable answer: {error}"));
                let reply: Reply<serde_json::Value> =
                    serde_json::from_slice(&message.payload).map_err(unreadable)?;
                return match reply.outcome {
                    Outcome::Ok(page) => serde_json::from_value(page).map_err(unreadable),
                    Outcome::Error(error) => {
                        Err(Failure(format!("{}: {}", error.code, error.message)))
                    }
                };
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(from: u64, count: u64) -> Vec<Row> {
        let mut previous = if from == 1 { [0; 32] } else { [7; 32] };
        let row = |number| {
            let entry = AuditEntry {
                at: UnixTime::from_micros(number),
                kind: "update".into(),
                subject: "m-1.0.0".into(),
                detail: "{}".into(),
            };
            let digest = AuditRow::digest_of(&previous, number, &entry);
            let before = std::mem::replace(&mut previous, digest);
            Row {
                number,
                at_us: number,
                kind: entry.kind,
                subject: entry.subject,
                detail: entry.detail,
                omitted: None,
                previous: Digest(before),
                sha256: Digest(digest),
            }
        };
        (from..from + count).map(row).collect()
    }

    #[test]
    fn a_whole_chain_is_told_from_one_with_changes() {
        let whole = rows(1, 5);
        let head = Some(whole[4].sha256);
        assert!(
            verify(&whole, head).unwrap().contains("5 rows, the chain is whole, its head as told")
        );
        assert!(verify(&rows(9, 2), None).unwrap().contains("rows 1 to 8 were removed"));
        let mut changed = whole.clone();
        changed[2].detail = "{\"decision\":\"confirmed\"}".into();
        assert!(verify(&changed, head).unwrap_err().0.contains("row 3 was changed"));
        let mut omitted = whole.clone();
        (omitted[2].detail, omitted[2].omitted) = (String::new(), Some(999));
        let told = verify(&omitted, head).unwrap();
        assert!(told.contains("the text of row 3 was too large to be sent"), "{told}");
        omitted[3].detail = "x".into();
        assert!(verify(&omitted, head).unwrap_err().0.contains("row 4 was changed"));
        let mut missing = whole.clone();
        missing.remove(2);
        assert!(verify(&missing, head).unwrap_err().0.contains("row 4 does not follow on row 2"));
        assert!(verify(&whole[..4], head).unwrap_err().0.contains("cut or replaced"));
        assert!(verify(&whole[1..], head).is_ok(), "a removed beginning is told, not refused");
    }
}
