//! `ocelli infer`: pictures in, findings out, once.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lexopt::prelude::*;
use ocelli_protocol::VERSION;
use ocelli_protocol::message::{FrameResult, StageLatency};
use serde::Serialize;

use super::model::{DEFAULT_MODEL, PATIENCE, load, zoo_path};
use super::{Failure, Streams, delegates, misused, name, path, unknown};
use crate::agent::Loaded;
use crate::camera::replay::ReplayCamera;
use crate::camera::{Camera, CameraError, Capture, Settings};
use crate::clock::Clock;
use crate::detection::Findings;
use crate::frame::Frame;
use crate::vision::annotate::{Picture, annotate};

/// Quality of annotated pictures.
const JPEG_QUALITY: u8 = 90;

struct Arguments {
    pictures: Vec<PathBuf>,
    model: Option<PathBuf>,
    annotate: Option<PathBuf>,
    json: bool,
    delegates: Vec<String>,
}

/// A result as on MQTT, with the picture's path as given.
#[derive(Serialize)]
struct SourcedResult<'a> {
    #[serde(flatten)]
    result: &'a FrameResult,
    source: String,
}

/// Runs the command with the arguments after `infer`.
pub(super) fn run(
    arguments: &mut lexopt::Parser,
    streams: &mut Streams<'_>,
    clock: &Arc<dyn Clock>,
) -> Result<(), Failure> {
    let Some(arguments) = parse(arguments)? else {
        streams.out.write_all(include_str!("help/infer.txt").as_bytes())?;
        return Ok(());
    };
    let model = arguments.model.clone().map_or_else(|| zoo_path(DEFAULT_MODEL), Ok)?;
    let mut loaded = load(model, arguments.delegates.clone(), clock)?;
    if let Some(folder) = &arguments.annotate {
        std::fs::create_dir_all(folder).map_err(|error| {
            Failure::Failed(format!("{}: {error}; see --annotate", name(folder)))
        })?;
    }
    let mut failed = false;
    for (index, picture) in arguments.pictures.iter().enumerate() {
        let looked = look(&mut loaded, picture, index as u64 + 1, clock)
            .and_then(|(frame, result)| keep(&arguments, picture, &frame, result));
        match looked {
            Ok(result) if arguments.json => {
                let source = picture.to_string_lossy().into_owned();
                let line = serde_json::to_string(&SourcedResult { result: &result, source });
                writeln!(streams.out, "{}", line.map_err(Failure::failed)?)?;
            }
            Ok(result) => print(streams.out, picture, &result)?,
            Err(failure) => {
                failed = true;
                writeln!(streams.err, "ocelli: {failure}")?;
            }
        }
    }
    if failed { Err(Failure::Told) } else { Ok(()) }
}

/// `None`: help was asked for.
fn parse(arguments: &mut lexopt::Parser) -> Result<Option<Arguments>, Failure> {
    let mut given = Arguments {
        pictures: Vec::new(),
        model: None,
        annotate: None,
        json: false,
        delegates: crate::inference::delegate_names(),
    };
    while let Some(argument) = arguments.next().map_err(|error| misused(&error, "infer"))? {
        match argument {
            Long("help") | Short('h') => return Ok(None),
            Long("model") => given.model = Some(path(arguments, "infer")?),
            Long("annotate") => given.annotate = Some(path(arguments, "infer")?),
            Long("json") => given.json = true,
            Long("delegates") => given.delegates = delegates(arguments, "infer")?,
            Value(picture) => given.pictures.push(picture.into()),
            other => return Err(unknown(&other, "infer")),
        }
    }
    if given.pictures.is_empty() {
        return Err(Failure::Usage("which picture? See ocelli infer --help".to_owned()));
    }
    Ok(Some(given))
}

/// Reads one picture into a frame.
fn read(picture: &Path, clock: Arc<dyn Clock>) -> Result<Frame, Failure> {
    if picture.is_dir() {
        return Err(Failure::Failed(format!(
            "{}: is a folder; name the pictures in it, as {0}/*.jpg",
            name(picture)
        )));
    }
    let mut frame = Frame::empty(clock.now());
    let pictures = vec![picture.to_owned()];
    let looped = Settings::new("").looped;
    let camera = ReplayCamera::from_pictures(pictures, looped, None, clock);
    let captured = camera.and_then(|mut camera| camera.capture(&mut frame, Duration::ZERO));
    match captured.map_err(not_read)? {
        Capture::Frame | Capture::Restarted => Ok(frame),
        Capture::Unwanted | Capture::TimedOut | Capture::Ended => Err(Failure::Failed(format!(
            "{}: holds no picture; give a JPEG or PNG file",
            name(picture)
        ))),
    }
}

/// A picture is no camera: the path alone says what is meant.
fn not_read(error: CameraError) -> Failure {
    match error {
        CameraError::Unavailable { device, detail, cure }
        | CameraError::Unusable { device, detail, cure } => {
            Failure::Failed(format!("{device}: {detail}; {cure}"))
        }
    }
}

fn look(
    loaded: &mut Loaded,
    picture: &Path,
    place: u64,
    clock: &Arc<dyn Clock>,
) -> Result<(Frame, FrameResult), Failure> {
    let start = clock.now();
    let frame = read(picture, Arc::clone(clock))?;
    let capture = clock.now() - start;
    let mut findings = Findings::Classes(Vec::new());
    let spent = loaded
        .detector
        .detect(&frame, PATIENCE, &**clock, &mut findings)
        .map_err(|error| Failure::Failed(format!("{}: {error}", name(picture))))?;
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let result = FrameResult {
        v: VERSION,
        device: "local".to_owned(),
        stream: "infer".to_owned(),
        seq: place,
        boot_id: "infer".to_owned(),
        frame: place,
        captured_at: clock.wall().to_string(),
        model: (**loaded.detector.model()).clone(),
        backend: loaded.detector.backend().to_vec(),
        latency_us: StageLatency {
            capture: micros(capture),
            preprocess: micros(spent.preprocess),
            inference: micros(spent.inference),
            postprocess: micros(spent.postprocess),
            total: micros(clock.now() - start),
        },
        findings,
    };
    Ok((frame, result))
}

/// Writes the annotated picture where it was asked for.
fn keep(
    arguments: &Arguments,
    picture: &Path,
    frame: &Frame,
    result: FrameResult,
) -> Result<FrameResult, Failure> {
    if let Some(folder) = &arguments.annotate {
        let stem = picture.file_stem().unwrap_or(picture.as_os_str());
        let mut file = stem.to_os_string();
        file.push(".jpg");
        draw(picture, frame, &result.findings, &folder.join(file))?;
    }
    Ok(result)
}

fn draw(picture: &Path, frame: &Frame, findings: &Findings, to: &Path) -> Result<(), Failure> {
    let about =
        |error: &dyn std::fmt::Display| Failure::Failed(format!("{}: {error}", name(picture)));
    let mut drawing = Picture::from_frame(frame).map_err(|error| about(&error))?;
    annotate(&mut drawing, findings);
    let jpeg = drawing.encode_jpeg(JPEG_QUALITY).map_err(|error| about(&error))?;
    std::fs::write(to, jpeg).map_err(|error| Failure::Failed(format!("{}: {error}", name(to))))
}

/// A picture and its findings, aligned.
fn print(out: &mut dyn Write, picture: &Path, result: &FrameResult) -> std::io::Result<()> {
    let millis = result.latency_us.inference as f64 / 1000.0;
    writeln!(
        out,
        "{}  ({} {}, {millis:.1} ms)",
        name(picture),
        result.model.name,
        result.model.version
    )?;
    match &result.findings {
        Findings::Detections(list) => {
            for found in list {
                let area = found.bounding_box;
                writeln!(
                    out,
                    "  {:<16} {:.2}   x {:.3}  y {:.3}  width {:.3}  height {:.3}",
                    found.label, found.score, area.x, area.y, area.w, area.h
                )?;
            }
            if list.is_empty() {
                writeln!(out, "  nothing")?;
            }
        }
        Findings::Classes(list) => {
            for found in list {
                writeln!(out, "  {:<32} {:.2}", found.label, found.score)?;
            }
        }
    }
    Ok(())
}
