//! `ocelctl demo`: broker, agent and receiver on one machine, with real pictures and the zoo's detector.
//!
//! The agent is the shipped binary as a child process; results come over MQTT to a client of its own, as an operator
//! would receive them. It fails unless every picture shows what it should.

mod agent;
mod annotate;
mod broker;
mod expected;
pub(crate) mod update;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};
use ocelli_protocol::Id;
use ocelli_protocol::message::{Detection, Findings, FrameResult, Gap, Presence, Status};
use ocelli_protocol::topic::{DEFAULT_ROOT, DeviceTopic, DeviceTopics, parse_device_topic};
use tokio::time::Instant;

use crate::connection::{Broker, Link, Message};
use crate::sequence::Sequence;
use crate::{Failure, written};
use agent::Agent;
use expected::{Expected, MIN_IOU};

/// Name of the demonstration's device.
const DEVICE: &str = "demo";

/// The zoo's detector.
const MODEL: &str = "nanodet-g-coco";

/// Arguments of `ocelctl demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The agent [default: `ocelli` beside this program]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Folder with the model package `nanodet-g-coco` and the folder `pictures`
    #[arg(long, value_name = "DIR", default_value = "models")]
    models: PathBuf,
    /// Where the pictures with boxes go
    #[arg(long, value_name = "DIR", default_value = "demo-out")]
    out: PathBuf,
    /// Longest wait for all pictures
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// A sample picture and the stream that shows it.
struct Picture {
    stream: Id,
    path: PathBuf,
}

/// What the receiver got.
#[derive(Default)]
struct Received {
    /// Newest result of each stream.
    results: BTreeMap<String, FrameResult>,
    sequence: Sequence,
    offline: bool,
}

/// Runs the demonstration.
pub(crate) async fn run(arguments: Arguments, out: &mut dyn Write) -> Result<(), Failure> {
    let model = absolute(&arguments.models.join(MODEL))?;
    let folder = absolute(&arguments.models.join("pictures"))?;
    let expected = Expected::read(&folder, MODEL)?;
    let pictures = pictures(&folder)?;
    let program = match &arguments.agent {
        Some(path) => path.clone(),
        None => beside_this_program()?,
    };
    let folder = tempfile::tempdir()
        .map_err(|error| Failure(format!("no temporary folder: {error}; see TMPDIR")))?;

    let port = broker::start()?;
    say(out, &format!("1. broker        rumqttd on 127.0.0.1:{port}"))?;
    let device: Id = DEVICE.parse().map_err(|error| Failure(format!("{error}")))?;
    let mut link = connect(port, &DeviceTopics::new(DEFAULT_ROOT, &device)).await?;

    let publisher = update::Publisher::new(folder.path().join("publisher")).await?;
    let config = folder.path().join("ocelli.toml");
    let mut text = agent::config(port, &model, &folder.path().join("store"), &pictures);
    text.push_str(&publisher.section());
    std::fs::write(&config, text)
        .map_err(|error| Failure(format!("{}: {error}", config.display())))?;
    let mut agent = Agent::start(&program, &config)?;
    say(out, &format!("2. agent         {} run --config {}", program.display(), config.display()))?;
    say(
        out,
        &format!(
            "                 {} pictures, one stream each; loading the model",
            pictures.len()
        ),
    )?;

    let mut received = Received::default();
    tokio::select! {
        outcome = receive_all(&mut link, &mut received, &pictures, arguments.timeout) => outcome,
        failure = agent.unexpected_end() => Err(failure),
        _ = tokio::signal::ctrl_c() => Err(Failure::new("stopped by Ctrl-C")),
    }
    .map_err(|failure| with_log(failure, &agent))?;
    say(out, "3. received over MQTT by a client of its own:")?;
    written(writeln!(out, "{}", table(&pictures, &received, &expected)))?;

    let written_files = annotate::write_all(&arguments.out, &pictures, &received.results)?;
    say(
        out,
        &format!(
            "4. pictures      {written_files} with boxes and labels in {}",
            arguments.out.display()
        ),
    )?;

    let missing = expected
        .missing(|picture| received.results.get(picture).map_or(&[], |result| detections(result)));
    if !missing.is_empty() {
        return Err(Failure(format!(
            "the detector did not find what the pictures show: {}",
            missing.join("; ")
        )));
    }

    tokio::select! {
        outcome = update::show(
            &publisher,
            &model,
            port,
            (&mut link, &mut received),
            arguments.timeout,
            out,
        ) => outcome,
        failure = agent.unexpected_end() => Err(failure),
        _ = tokio::signal::ctrl_c() => Err(Failure::new("stopped by Ctrl-C")),
    }
    .map_err(|failure| with_log(failure, &agent))?;

    stop(&mut agent, &mut link, &mut received, out).await?;
    let found = expected.summary();
    say(
        out,
        &format!(
            "Found as expected, right class and IoU >= {MIN_IOU} with the reference: {found}."
        ),
    )
}

fn say(out: &mut dyn Write, line: &str) -> Result<(), Failure> {
    written(writeln!(out, "{line}").and_then(|()| out.flush()))
}

fn with_log(failure: Failure, agent: &Agent) -> Failure {
    if failure.0.contains("last words") {
        return failure;
    }
    Failure(format!("{failure}; the agent's last words:\n{}", agent.last_words()))
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    path.canonicalize().map_err(|error| {
        Failure(format!(
            "{}: {error}; run this in the project's folder, or see --models",
            path.display()
        ))
    })
}

fn beside_this_program() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| Failure(format!("where is this program? {error}")))?;
    let path = own.with_file_name("ocelli");
    if path.is_file() {
        return Ok(path);
    }
    Err(Failure(format!(
        "{}: no such file; build it with cargo build, or see --agent",
        path.display()
    )))
}

/// The pictures of a folder whose names can be stream names, by name.
fn pictures(folder: &Path) -> Result<Vec<Picture>, Failure> {
    let unreadable =
        |error: std::io::Error| Failure(format!("{}: {error}; see --models", folder.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let picture = path.extension().is_some_and(|kind| kind == "jpg" || kind == "png");
        let stream = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if let (true, Some(stream)) = (picture, stream) {
            found.push(Picture { stream, path });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    if found.is_empty() {
        return Err(Failure(format!("{}: holds no pictures; see --models", folder.display())));
    }
    Ok(found)
}

/// The broker needs a moment until it listens.
async fn connect(port: u16, topics: &DeviceTopics) -> Result<Link, Failure> {
    const ATTEMPTS: u32 = 50;
    let broker = Broker::plain("127.0.0.1", port);
    let mut attempt = 0;
    loop {
        match broker.connect(&[topics.all()]).await {
            Ok(link) => return Ok(link),
            Err(failure) if attempt == ATTEMPTS => return Err(failure),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
        attempt += 1;
    }
}

/// Receives until each stream has brought a result.
async fn receive_all(
    link: &mut Link,
    received: &mut Received,
    pictures: &[Picture],
    patience: Duration,
) -> Result<(), Failure> {
    let deadline = Instant::now() + patience;
    loop {
        let missing: Vec<_> = pictures
            .iter()
            .map(|picture| picture.stream.as_str())
            .filter(|stream| !received.results.contains_key(*stream))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let message = tokio::time::timeout_at(deadline, link.next(|_| ())).await;
        let message = message.map_err(|_| {
            let waited = humantime::format_duration(patience);
            Failure(format!("no result for {} within {waited}; see --timeout", missing.join(", ")))
        })??;
        received.note(&message);
    }
}

impl Received {
    fn note(&mut self, message: &Message) {
        let Some((_, kind)) = parse_device_topic(DEFAULT_ROOT, &message.topic) else { return };
        let now = Instant::now().into_std();
        match kind {
            DeviceTopic::Result(stream) => {
                if let Ok(result) = serde_json::from_slice::<FrameResult>(&message.payload) {
                    self.sequence.result(result.seq, now);
                    self.results.insert(stream.to_owned(), result);
                }
            }
            DeviceTopic::Gap => {
                if let Ok(gap) = serde_json::from_slice::<Gap>(&message.payload) {
                    self.sequence.gap(gap.from, gap.to, now);
                }
            }
            DeviceTopic::Status => {
                let status = serde_json::from_slice::<Status>(&message.payload);
                self.offline = status.is_ok_and(|status| status.state == Presence::Offline);
            }
            _ => {}
        }
    }
}

/// Ends the agent in order and shows that nothing was left behind.
async fn stop(
    agent: &mut Agent,
    link: &mut Link,
    received: &mut Received,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    const PATIENCE: Duration = Duration::from_secs(30);
    received.offline = false;
    let deadline = Instant::now() + PATIENCE;
    let (stopped, ()) = tokio::join!(agent.stop(PATIENCE), async {
        while !received.offline {
            match tokio::time::timeout_at(deadline, link.next(|_| ())).await {
                Ok(Ok(message)) => received.note(&message),
                Ok(Err(_)) | Err(_) => break,
            }
        }
    });
    stopped?;
    let missing = received.sequence.missing();
    if !missing.is_empty() {
        return Err(Failure(format!("results with these numbers were lost: {missing:?}")));
    }
    if !received.offline {
        return Err(Failure::new("the agent ended without saying that it goes offline"));
    }
    let totals = received.sequence.totals;
    say(
        out,
        &format!(
            "7. orderly end   SIGTERM: outbox flushed, offline said, exit code 0; {} results, {} announced as gaps, none missing",
            totals.results, totals.announced
        ),
    )
}

fn table(pictures: &[Picture], received: &Received, expected: &Expected) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "picture",
        "label",
        "score",
        "x",
        "y",
        "width",
        "height",
        "IoU",
        "inference",
    ]);
    for picture in pictures {
        let Some(result) = received.results.get(picture.stream.as_str()) else { continue };
        let millis = format!("{:.1} ms", result.latency_us.inference as f64 / 1000.0);
        let detections = detections(result);
        if detections.is_empty() {
            table.add_row([picture.stream.as_str(), "nothing", "", "", "", "", "", "", &millis]);
        }
        for (index, found) in detections.iter().enumerate() {
            let area = found.bounding_box;
            let part = |value: f32| format!("{value:.2}");
            table.add_row([
                if index == 0 { picture.stream.to_string() } else { String::new() },
                found.label.clone(),
                part(found.score),
                part(area.x),
                part(area.y),
                part(area.w),
                part(area.h),
                expected.overlap(picture.stream.as_str(), found).map_or_else(String::new, part),
                if index == 0 { millis.clone() } else { String::new() },
            ]);
        }
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn detections(result: &FrameResult) -> &[Detection] {
    match &result.findings {
        Findings::Detections(list) => list,
        Findings::Classes(_) => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_become_streams_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.jpg", "a.png", "Big.jpg", "notes.txt"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let found = pictures(folder.path()).unwrap();
        let names: Vec<_> = found.iter().map(|picture| picture.stream.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(pictures(&folder.path().join("absent")).is_err());
    }
}
