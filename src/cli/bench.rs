//! `ocelli bench`: how long a model takes here, on which delegate, and what it answers.

mod layers;
mod stages;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lexopt::prelude::*;
use serde::Serialize;

use self::stages::{Frames, Spread, StageTable};
use super::npy;
use crate::agent::{self, ModelError, ModelSettings};
use crate::clock::Clock;
use crate::file::read_regular;
use crate::inference::session::{LoadError, Reread, SegmentReport, SessionError};
use crate::inference::{self, Session, SessionOptions};
use crate::model::{Package, PackageError};
use crate::tensor::{ElementType, TensorBuffer, TensorSpec, TensorView};

/// How to use it.
pub const HELP: &str = "\
Usage: ocelli bench MODEL [OPTIONS]

Runs a model again and again and says how long it took. MODEL is an ONNX file with static
shapes, or the folder of a model package. A package also gets a table of what else a frame
costs, from the camera to the MQTT connection's channel, one frame at a time through the
agent's own threads: a 1280x720 YUYV frame, then the golden pictures as files.

  --delegates A,B    who may run it, in order of preference (default: all of this build; tract is always last)
  --threads N        threads for delegates that use several (default 1); int8 and tract use one
  --runs N           runs that count (default 50)
  --warmup N         runs before, that do not count (default 5)
  --input FILE.npy   the input, float32 in the model's shape (default: random, the same each time)
  --dump-output FILE.npz
                     writes the outputs of the last run, by name
  --layers           also prints a line for each segment and for each layer of the int8 engine: its time, and its
                     share of the measured peak of this processor
  --json             prints one JSON object instead of text

Times include the quantisation of a float input. Examples:
  ocelli bench model.onnx --runs 100 --json
  ocelli bench models/nanodet-g-coco
";

/// Largest model or input read, bytes.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Longest run that we wait for.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The command line is wrong (exit code 2).
    #[error("{0}; see ocelli bench --help")]
    Usage(String),
    /// A file cannot be read or written.
    #[error("{}: {source}; check the path", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The input is not one for this model.
    #[error("{}: {reason}", path.display())]
    Input {
        /// The `.npy` file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The folder is no model package.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The model cannot be run.
    #[error("{}: {source}", path.display())]
    Load {
        /// The model.
        path: PathBuf,
        /// Why not.
        source: LoadError,
    },
    /// The package is not served by the agent.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The way of a frame cannot be measured.
    #[error("stages: {0}")]
    Stages(String),
    /// A run failed.
    #[error(transparent)]
    Run(#[from] SessionError),
    /// The result cannot be printed.
    #[error("output: {0}")]
    Output(#[from] io::Error),
}

struct Settings {
    model: PathBuf,
    delegates: Option<Vec<String>>,
    threads: usize,
    runs: usize,
    warmup: usize,
    input: Option<PathBuf>,
    dump_output: Option<PathBuf>,
    layers: bool,
    json: bool,
}

/// Result of `--json`; its fields are a contract.
#[derive(Debug, Serialize)]
struct Figures {
    model: String,
    delegates: Vec<String>,
    threads: usize,
    runs: usize,
    load_ms: f64,
    min_ms: f64,
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    peak_rss_mib: f64,
    segments: Vec<SegmentFigures>,
    /// By kind of frame; only for packages.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    stages: BTreeMap<&'static str, StageTable>,
}

#[derive(Debug, Serialize)]
struct SegmentFigures {
    delegate: String,
    nodes: usize,
    macs: u64,
}

/// Runs the command with the arguments after `bench`.
///
/// # Errors
/// [`BenchError`]; [`BenchError::Usage`] is wrong use, all others are failures.
pub fn run(
    arguments: &mut lexopt::Parser,
    out: &mut dyn Write,
    clock: &Arc<dyn Clock>,
) -> Result<(), BenchError> {
    let Some(settings) = parse(arguments)? else {
        return Ok(out.write_all(HELP.as_bytes())?);
    };
    let names = settings.delegates.clone().unwrap_or_else(inference::delegate_names);
    let delegates = inference::delegates(&names, clock);
    let start = clock.now();
    let onnx = read_model(&settings.model)?;
    let model = settings.model.clone();
    let reread: Reread = Arc::new(move || read_model(&model).map_err(|error| error.to_string()));
    let session =
        Session::open(onnx, reread, &delegates, SessionOptions::default(), Arc::clone(clock));
    let load = clock.now().saturating_duration_since(start);
    let path = || settings.model.clone();
    let mut session = session.map_err(|source| BenchError::Load { path: path(), source })?;

    let inputs = inputs(&session, settings.input.as_deref())?;
    let views: Vec<_> = inputs.iter().map(|(spec, values)| view(spec, values)).collect();
    let mut times = Vec::with_capacity(settings.runs);
    for number in 0..settings.warmup + settings.runs {
        let time = timed(&mut session, &views, &**clock)?;
        if number >= settings.warmup {
            times.push(time);
        }
    }
    let layers = settings.layers && !settings.json;
    let layers = layers.then(|| layers::measure(&mut session, &views, settings.runs, &**clock));
    let layers = layers.transpose()?;
    if let Some(path) = &settings.dump_output {
        dump(&session, path)?;
    }
    let report = session.report().segments;
    let mut figures = figures(&settings, names, load, times, &report);
    drop(session);
    if settings.model.is_dir() {
        figures.stages = frame_stages(&settings, &figures.delegates, clock)?;
    }
    if settings.json {
        serde_json::to_writer(&mut *out, &figures).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    print(&figures, out)?;
    if figures.threads != settings.threads {
        writeln!(
            out,
            "one thread: {} runs all of it on one; --threads is for others",
            runners(&report)
        )?;
    }
    if settings.layers {
        print_segments(&report, out)?;
    }
    if let Some(table) = layers {
        table.print(out)?;
    }
    figures.stages.iter().try_for_each(|(source, table)| print_stages(source, table, out))
}

/// The way of frames through the agent with this model.
fn frame_stages(
    settings: &Settings,
    delegates: &[String],
    clock: &Arc<dyn Clock>,
) -> Result<BTreeMap<&'static str, StageTable>, BenchError> {
    let model = ModelSettings {
        path: settings.model.clone(),
        delegates: delegates.to_vec(),
        deadline: PATIENCE,
    };
    let loaded = agent::load(&model, clock)?;
    let frames = Frames { warmup: settings.warmup, counted: settings.runs };
    let tables = stages::measure(loaded, frames, clock).map_err(BenchError::Stages)?;
    Ok(tables.into_iter().map(|table| (table.source, table)).collect())
}

fn timed(
    session: &mut Session,
    inputs: &[TensorView<'_>],
    clock: &dyn Clock,
) -> Result<Duration, SessionError> {
    let start: Instant = clock.now();
    session.run(inputs, start + PATIENCE)?;
    Ok(clock.now().saturating_duration_since(start))
}

fn parse(arguments: &mut lexopt::Parser) -> Result<Option<Settings>, BenchError> {
    let usage = |error: lexopt::Error| BenchError::Usage(error.to_string());
    let mut settings = Settings {
        model: PathBuf::new(),
        delegates: None,
        threads: 1,
        runs: 50,
        warmup: 5,
        input: None,
        dump_output: None,
        layers: false,
        json: false,
    };
    let mut model = None;
    while let Some(argument) = arguments.next().map_err(usage)? {
        match argument {
            Long("help") | Short('h') => return Ok(None),
            Long("delegates") => {
                let list = arguments.value().and_then(|value| value.string()).map_err(usage)?;
                settings.delegates = Some(known_delegates(&list)?);
            }
            Long("threads") => settings.threads = count(arguments, 1)?,
            Long("runs") => settings.runs = count(arguments, 1)?,
            Long("warmup") => settings.warmup = count(arguments, 0)?,
            Long("input") => settings.input = Some(arguments.value().map_err(usage)?.into()),
            Long("dump-output") => {
                settings.dump_output = Some(arguments.value().map_err(usage)?.into());
            }
            Long("layers") => settings.layers = true,
            Long("json") => settings.json = true,
            Value(path) if model.is_none() => model = Some(PathBuf::from(path)),
            other => return Err(usage(other.unexpected())),
        }
    }
    settings.model = model.ok_or_else(|| BenchError::Usage("no MODEL given".to_owned()))?;
    Ok(Some(settings))
}

fn known_delegates(list: &str) -> Result<Vec<String>, BenchError> {
    let known = inference::delegate_names();
    let names: Vec<String> = list.split(',').map(|name| name.trim().to_owned()).collect();
    match names.iter().find(|name| !known.contains(name)) {
        None => Ok(names),
        Some(name) => {
            let known = known.join(", ");
            let what = format!("this build has no delegate `{name}`; it has: {known}");
            Err(BenchError::Usage(what))
        }
    }
}

fn count(arguments: &mut lexopt::Parser, least: usize) -> Result<usize, BenchError> {
    let usage = |error: lexopt::Error| BenchError::Usage(error.to_string());
    let count: usize = arguments.value().and_then(|value| value.parse()).map_err(usage)?;
    if (least..=1_000_000).contains(&count) {
        return Ok(count);
    }
    Err(BenchError::Usage(format!("{count} is not between {least} and 1000000")))
}

/// The ONNX file, or the one inside a model package (a folder).
fn read_model(path: &Path) -> Result<Vec<u8>, BenchError> {
    if path.is_dir() {
        return Ok(Package::open(path)?.into_spec().take_onnx().to_vec());
    }
    read_file(path)
}

fn read_file(path: &Path) -> Result<Vec<u8>, BenchError> {
    read_regular(path, MAX_FILE_BYTES)
        .map_err(|source| BenchError::File { path: path.to_owned(), source })
}

type Input = (TensorSpec, TensorBuffer);

fn inputs(session: &Session, file: Option<&Path>) -> Result<Vec<Input>, BenchError> {
    let Some(path) = file else {
        let random = |spec: &TensorSpec| (spec.clone(), random(spec));
        return Ok(session.inputs().iter().map(random).collect());
    };
    let wrong = |reason| BenchError::Input { path: path.to_owned(), reason };
    let [spec] = session.inputs() else {
        return Err(wrong("the model has several inputs; --input takes one".to_owned()));
    };
    let bytes = read_file(path)?;
    let (shape, values) = npy::read_f32(&bytes).map_err(wrong)?;
    if shape != spec.shape || spec.element != ElementType::F32 {
        let (element, expected) = (spec.element, &spec.shape);
        return Err(wrong(format!("f32 {shape:?}, the model reads {element} {expected:?}")));
    }
    Ok(vec![(spec.clone(), values)])
}

/// The same values each time, spread like pixels around 0.
fn random(spec: &TensorSpec) -> TensorBuffer {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut byte = move || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[4]
    };
    let len = spec.len();
    match spec.element {
        ElementType::F32 => {
            TensorBuffer::F32((0..len).map(|_| (f32::from(byte()) - 127.5) / 64.0).collect())
        }
        ElementType::U8 => TensorBuffer::U8((0..len).map(|_| byte()).collect()),
        ElementType::I8 => {
            TensorBuffer::I8((0..len).map(|_| i8::from_le_bytes([byte()])).collect())
        }
        ElementType::I32 | ElementType::I64 => TensorBuffer::zeros(spec.element, len),
    }
}

fn view<'a>(spec: &'a TensorSpec, values: &'a TensorBuffer) -> TensorView<'a> {
    TensorView { shape: &spec.shape, values: values.as_values() }
}

fn dump(session: &Session, path: &Path) -> Result<(), BenchError> {
    let outputs = session.outputs().iter().enumerate();
    let arrays: Vec<_> =
        outputs.map(|(place, spec)| (spec.name.as_str(), session.output(place))).collect();
    let mut file = Vec::new();
    let written = npy::write_npz(&arrays, &mut file).and_then(|()| fs::write(path, file));
    written.map_err(|source| BenchError::File { path: path.to_owned(), source })
}

fn figures(
    settings: &Settings,
    delegates: Vec<String>,
    load: Duration,
    mut times: Vec<Duration>,
    report: &[SegmentReport],
) -> Figures {
    times.sort_unstable();
    let at = |percent: usize| {
        let place = (times.len() * percent).div_ceil(100).max(1) - 1;
        milliseconds(times[place])
    };
    let segment = |segment: &SegmentReport| SegmentFigures {
        delegate: segment.delegate.clone(),
        nodes: segment.nodes.len(),
        macs: segment.macs,
    };
    // Neither the host nor the engine uses more threads than one.
    let one_thread =
        |segment: &SegmentReport| matches!(segment.delegate.as_str(), "tract" | "int8");
    let one_thread = report.iter().all(one_thread);
    Figures {
        model: settings.model.display().to_string(),
        delegates,
        threads: if one_thread { 1 } else { settings.threads },
        runs: settings.runs,
        load_ms: milliseconds(load),
        min_ms: at(0),
        p50_ms: at(50),
        p90_ms: at(90),
        p99_ms: at(99),
        peak_rss_mib: peak_rss_mib().unwrap_or(0.0),
        segments: report.iter().map(segment).collect(),
        stages: BTreeMap::new(),
    }
}

/// Who runs the segments, each named once.
fn runners(report: &[SegmentReport]) -> String {
    let names: BTreeSet<_> = report.iter().map(|segment| segment.delegate.as_str()).collect();
    names.into_iter().collect::<Vec<_>>().join(" and ")
}

/// To the microsecond.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// The most memory that this process had resident, where the system tells.
fn peak_rss_mib() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kib / 102.4).round() / 10.0)
}

fn print(figures: &Figures, out: &mut dyn Write) -> Result<(), BenchError> {
    writeln!(out, "{}: {} runs after load in {} ms", figures.model, figures.runs, figures.load_ms)?;
    writeln!(
        out,
        "min {} ms, p50 {} ms, p90 {} ms, p99 {} ms; peak RSS {} MiB",
        figures.min_ms, figures.p50_ms, figures.p90_ms, figures.p99_ms, figures.peak_rss_mib
    )?;
    for segment in &figures.segments {
        let (delegate, nodes, macs) = (&segment.delegate, segment.nodes, segment.macs);
        writeln!(out, "{delegate}: {nodes} nodes, {:.1} MMAC", macs as f64 / 1e6)?;
    }
    Ok(())
}

fn print_stages(source: &str, table: &StageTable, out: &mut dyn Write) -> Result<(), BenchError> {
    writeln!(
        out,
        "\n{source}, {} frames {:>19} {:>9} {:>9}",
        table.frames, "min µs", "p50 µs", "p99 µs"
    )?;
    let rows: [(&str, Spread); 7] = [
        ("capture hand-over", table.capture),
        ("preprocess", table.preprocess),
        ("inference", table.inference),
        ("postprocess", table.postprocess),
        ("JSON", table.json),
        ("hand-over to MQTT", table.mqtt),
        ("all but inference", table.not_inference),
    ];
    for (stage, spread) in rows {
        let Spread { min_us, p50_us, p99_us } = spread;
        writeln!(out, "  {stage:<31} {min_us:>9} {p50_us:>9} {p99_us:>9}")?;
    }
    Ok(())
}

fn print_segments(report: &[SegmentReport], out: &mut dyn Write) -> Result<(), BenchError> {
    writeln!(
        out,
        "{:>4}  {:<10} {:>6} {:>10} {:>10}",
        "#", "delegate", "nodes", "MMAC", "last ms"
    )?;
    for (place, segment) in report.iter().enumerate() {
        let (macs, time) = (segment.macs as f64 / 1e6, milliseconds(segment.last_run));
        let nodes = segment.nodes.len();
        writeln!(out, "{place:>4}  {:<10} {nodes:>6} {macs:>10.2} {time:>10.3}", segment.delegate)?;
        let ends = segment.nodes.first().zip(segment.nodes.last());
        if let Some((first, last)) = ends {
            writeln!(out, "      {first} … {last}")?;
        }
        if let Some(error) = &segment.last_error {
            writeln!(out, "      {} fallbacks, last: {error}", segment.fallbacks)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    fn bench(arguments: &[&str]) -> Result<String, BenchError> {
        let mut parser = lexopt::Parser::from_args(arguments);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let mut out = Vec::new();
        run(&mut parser, &mut out, &clock)?;
        Ok(String::from_utf8(out).expect("text"))
    }

    /// onnxruntime's answers, recorded by models/recipes/fixtures.py.
    #[test]
    fn qoperator_files_give_the_recorded_answers() {
        for (model, outputs) in
            [("tiny-qop", &["map", "logits"][..]), ("tiny-qop-softmax", &["map"])]
        {
            let onnx = read_model(&fixture(&format!("{model}.onnx"))).expect("a fixture");
            let clock: Arc<dyn Clock> = Arc::new(SystemClock);
            for names in [&[][..], &["int8".to_owned()]] {
                let delegates = inference::delegates(names, &clock);
                let session =
                    Session::load(&onnx, &delegates, SessionOptions::default(), Arc::clone(&clock));
                let mut session = session.expect("it loads");
                let input = inputs(&session, Some(&fixture(&format!("{model}-input.npy"))));
                let input = input.expect("its input");
                let views: Vec<_> = input.iter().map(|(spec, values)| view(spec, values)).collect();
                session.run(&views, clock.now() + PATIENCE).expect("it runs");
                for name in outputs {
                    let file =
                        read_file(&fixture(&format!("{model}-{name}.npy"))).expect("recorded");
                    let (shape, expected) = npy::read_f32(&file).expect("an array");
                    let place = session.outputs().iter().position(|spec| spec.name == *name);
                    let found = session.output(place.expect("an output of that name"));
                    assert_eq!(found.shape, shape);
                    let pairs = found.values.as_f32().into_iter().flatten();
                    let expected = expected.as_values().as_f32().expect("f32");
                    let worst = pairs.zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    let span = expected.iter().fold(0.0_f32, |span, value| span.max(value.abs()));
                    // Half a step of 256 over the range: not one value may be a step off.
                    assert!(worst <= span / 512.0, "{names:?} {model} {name}: {worst} of {span}");
                }
            }
        }
    }

    #[test]
    fn prints_exactly_the_documented_fields() {
        let folder = tempfile::tempdir().expect("a folder");
        let npz = folder.path().join("out.npz");
        let model = fixture("tiny-qop.onnx");
        let json = bench(&[
            model.to_str().expect("UTF-8"),
            "--runs=3",
            "--json",
            "--dump-output",
            npz.to_str().expect("UTF-8"),
        ]);
        let json: serde_json::Value = serde_json::from_str(&json.expect("figures")).expect("JSON");
        let fields: Vec<_> = json.as_object().expect("an object").keys().cloned().collect();
        let mut expected = [
            "model",
            "delegates",
            "threads",
            "runs",
            "load_ms",
            "min_ms",
            "p50_ms",
            "p90_ms",
            "p99_ms",
            "peak_rss_mib",
            "segments",
        ];
        expected.sort_unstable();
        let mut fields = fields;
        fields.sort_unstable();
        assert_eq!(fields, expected);
        assert!(json["min_ms"].as_f64() <= json["p99_ms"].as_f64());
        assert!(json["segments"][0]["macs"].as_u64() > Some(0));
        let written = fs::read(&npz).expect("written");
        let content = String::from_utf8_lossy(&written);
        assert!(content.contains("map.npy") && content.contains("logits.npy"));
    }

    #[test]
    fn takes_a_model_package() {
        let text = bench(&[fixture("tiny-classifier").to_str().expect("UTF-8"), "--runs", "1"]);
        assert!(text.expect("figures").contains("int8:"));
    }

    #[test]
    fn a_package_also_gets_the_stages_of_its_frames() {
        let package = fixture("tiny-classifier");
        let json = bench(&[package.to_str().expect("UTF-8"), "--runs=5", "--warmup=1", "--json"]);
        let json: serde_json::Value = serde_json::from_str(&json.expect("figures")).expect("JSON");
        for source in ["yuyv-1280x720", "golden"] {
            let table = &json["stages"][source];
            assert_eq!(table["frames"], 5, "{source}");
            let at = |stage: &str, figure: &str| {
                let found = table[stage][figure].as_u64();
                found.unwrap_or_else(|| panic!("{source}: {stage}.{figure} is missing"))
            };
            let parts = ["capture", "preprocess", "postprocess", "json", "mqtt"];
            let least: u64 = parts.iter().map(|stage| at(stage, "min_us")).sum();
            let most: u64 = parts.iter().map(|stage| at(stage, "p99_us")).sum();
            assert!(at("preprocess", "min_us") > 0 && at("inference", "p50_us") > 0, "{table}");
            assert!((least..=most).contains(&at("not_inference", "p50_us")), "{table}");
        }
    }

    #[test]
    fn does_not_claim_threads_that_tract_does_not_use() {
        let model = fixture("tiny-qop.onnx");
        let arguments = [model.to_str().expect("UTF-8"), "--runs=1", "--threads=2"];
        assert!(bench(&arguments).expect("figures").contains("one thread: int8"));
        let json = bench(&[&arguments[..], &["--json"]].concat()).expect("figures");
        assert!(json.contains("\"threads\":1,"), "{json}");
    }

    #[test]
    fn tells_wrong_use_from_failure() {
        let cases = [
            (&[][..], "no MODEL"),
            (&["a.onnx", "--runs", "0"], "not between"),
            (&["a.onnx", "--delegates", "tpu"], "no delegate `tpu`"),
            (&["a.onnx", "--fast"], "--fast"),
        ];
        for (arguments, expected) in cases {
            let error = bench(arguments).expect_err(expected);
            assert!(matches!(error, BenchError::Usage(_)), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
        let error = bench(&["nowhere.onnx"]).expect_err("no such file");
        assert!(matches!(error, BenchError::File { .. }), "{error}");
    }
}
