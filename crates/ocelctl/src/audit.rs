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
    head that the device told in `health` is among them. Without a head nothing shows that the end is whole."
)]
pub(crate) struct Arguments {
    /// Device whose log is fetched
    #[arg(required_unless_present = "file")]
    device: Option<Id>,
    /// Verify this file, without a broker
    #[arg(long, value_name = "FILE", conflicts_with = "device")]
    file: Option<PathBuf>,
    /// Digest that a row must have, as `health` told it
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

/// What shows that the end of the log is whole.
enum Told {
    Nothing,
    /// A row must have this digest.
    Head(Digest),
    /// The row of this number must have this digest, if the log has the row: what came after it was told is covered by
    /// nothing yet, and it may have been removed by age.
    ByDevice(u64, Digest),
}

/// Runs `ocelctl audit`.
pub(crate) async fn run(arguments: Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    let (rows, told) = match (&arguments.file, &arguments.device) {
        (Some(file), _) => {
            let text = String::from_utf8_lossy(&files::read(file)?).into_owned();
            let row = |(line, text): (usize, &str)| {
                serde_json::from_str(text).map_err(|error| {
                    Failure(format!("{}, line {}: {error}", file.display(), line + 1))
                })
            };
            let rows: Result<Vec<Row>, Failure> = text.lines().enumerate().map(row).collect();
            (rows?, arguments.head.map_or(Told::Nothing, Told::Head))
        }
        (None, Some(device)) => {
            let (rows, head) = fetch(&arguments, device).await?;
            let told =
                head.and_then(|head| Some(Told::ByDevice(head.number, head.sha256.parse().ok()?)));
            (rows, told.unwrap_or(Told::Nothing))
        }
        (None, None) => return Err(Failure::new("which device? Or --file")),
    };
    let lines: Vec<String> = rows
        .iter()
        .map(|row| serde_json::to_string(row).expect("a row is plain JSON") + "\n")
        .collect();
    match &arguments.save {
        Some(path) => files::write(path, lines.concat().as_bytes(), Place::Public)?,
        None => lines.iter().try_for_each(|line| written(write!(out, "{line}")))?,
    }
    written(writeln!(out, "{}", verify(&rows, &told)?))
}

/// Whether each row follows on the one before and says what it said when it was written, and what covers the end; in words.
fn verify(rows: &[Row], told: &Told) -> Result<String, Failure> {
    chain(rows)?;
    let end = end(rows, told)?;
    let removed = match rows.first() {
        Some(first) if first.number > 1 => format!(
            "; rows 1 to {} were removed by age, their digest is {}",
            first.number - 1,
            first.previous
        ),
        _ => String::new(),
    };
    let told = match rows.len() {
        0 => "the log is empty".to_owned(),
        number => format!("{number} rows, each follows on the one before"),
    };
    let omitted: Vec<&Row> = rows.iter().filter(|row| row.omitted.is_some()).collect();
    match omitted.first() {
        None => Ok(format!("{told}; {end}{removed}")),
        Some(first) => Err(Failure(format!(
            "{told}; but the text of {} of them, the first of which is row {}, was too large to be sent and could not be \
             verified: their time, kind and subject may be others{removed}",
            omitted.len(),
            first.number
        ))),
    }
}

/// Each row follows on the one before, and its digest is that of its text, if it was told.
fn chain(rows: &[Row]) -> Result<(), Failure> {
    let Some(first) = rows.first() else { return Ok(()) };
    if first.number <= 1 && first.previous != Digest([0; 32]) {
        return Err(Failure::new("row 1 follows on something: it is not the first"));
    }
    let mut before = None;
    for row in rows {
        if let Some((number, previous)) = before
            && (Some(row.number) != u64::checked_add(number, 1) || row.previous != previous)
        {
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
        let digest = AuditRow::digest_of(&row.previous.0, row.number, &entry);
        if row.omitted.is_some() && !row.detail.is_empty() {
            return Err(Failure(format!(
                "row {} has text and is said to be without: it was changed",
                row.number
            )));
        }
        if row.omitted.is_none() && digest != row.sha256.0 {
            return Err(Failure(format!("row {} was changed: its digest is another", row.number)));
        }
        before = Some((row.number, row.sha256));
    }
    Ok(())
}

/// What shows that the end is whole; in words.
fn end(rows: &[Row], told: &Told) -> Result<String, Failure> {
    let unknown = "nothing shows that the end is whole";
    let (at, head) = match told {
        Told::Nothing => return Ok(format!("{unknown}: no head was told to compare with")),
        Told::Head(head) => (rows.iter().position(|row| row.sha256 == *head), head),
        Told::ByDevice(number, head) => {
            let Some(at) = rows.iter().position(|row| row.number == *number) else {
                return Ok(format!(
                    "{unknown}: the head that the device told, of row {number}, is not among them"
                ));
            };
            ((rows[at].sha256 == *head).then_some(at), head)
        }
    };
    let Some(at) = at else {
        return Err(Failure(format!(
            "no row has the told head {head}: the log was cut or replaced"
        )));
    };
    let later = match rows.len() - 1 - at {
        0 => String::new(),
        later => format!("; nothing covers the {later} rows after that head yet"),
    };
    Ok(format!("the chain is whole, its head as told, of row {}{later}", rows[at].number))
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

    fn refusal(rows: &[Row], told: &Told) -> String {
        verify(rows, told).unwrap_err().0
    }

    #[test]
    fn a_whole_chain_is_told_from_one_with_changes() {
        let whole = rows(1, 5);
        let head = Told::Head(whole[4].sha256);
        let told = verify(&whole, &head).unwrap();
        assert!(
            told.contains("5 rows")
                && told.ends_with("the chain is whole, its head as told, of row 5")
        );
        assert!(verify(&rows(9, 2), &Told::Nothing).unwrap().contains("rows 1 to 8 were removed"));
        let mut changed = whole.clone();
        changed[2].detail = "{\"decision\":\"confirmed\"}".into();
        assert!(refusal(&changed, &head).contains("row 3 was changed"));
        let mut missing = whole.clone();
        missing.remove(2);
        assert!(refusal(&missing, &head).contains("row 4 does not follow on row 2"));
        assert!(refusal(&whole[..4], &head).contains("cut or replaced"));
        assert!(verify(&whole[1..], &head).is_ok(), "a removed beginning is told, not refused");
    }

    #[test]
    fn a_log_with_omitted_text_is_not_called_whole() {
        let whole = rows(1, 5);
        let head = Told::Head(whole[4].sha256);
        let mut omitted = whole.clone();
        for row in &mut omitted[1..3] {
            (row.detail, row.omitted) = (String::new(), Some(999));
        }
        let told = refusal(&omitted, &head);
        assert!(
            told.contains("5 rows")
                && told.contains("the text of 2 of them, the first of which is row 2,"),
            "{told}"
        );
        assert!(!told.contains("whole"), "{told}");
        let mut invented = omitted.clone();
        invented[2].detail = "{\"decision\":\"rejected\"}".into();
        let told = refusal(&invented, &head);
        assert!(told.contains("row 3 has text and is said to be without"), "{told}");
        omitted[3].detail = "x".into();
        assert!(refusal(&omitted, &head).contains("row 4 was changed"));
    }

    #[test]
    fn a_log_whose_end_nothing_covers_is_not_called_whole() {
        let whole = rows(1, 5);
        let by_device = |number: u64| Told::ByDevice(number, whole[number as usize - 1].sha256);
        assert!(refusal(&[], &Told::Head(whole[4].sha256)).contains("cut or replaced"));
        let cases = [
            (&whole[..], Told::Nothing, "no head was told"),
            (&[], Told::Nothing, "no head was told"),
            (&whole[..3], by_device(5), "of row 5, is not among them"),
            (&whole[3..], by_device(2), "of row 2, is not among them"),
            (&[], by_device(5), "of row 5, is not among them"),
        ];
        for (rows, told, why) in cases {
            let told = verify(rows, &told).unwrap();
            assert!(told.contains("nothing shows that the end is whole"), "{told}");
            assert!(told.contains(why) && !told.contains("chain is whole"), "{told}");
        }
        let told = verify(&whole, &by_device(3)).unwrap();
        assert!(told.contains("of row 3; nothing covers the 2 rows after"), "{told}");
        let other = Told::ByDevice(3, whole[3].sha256);
        assert!(refusal(&whole, &other).contains("cut or replaced"));
    }
}
