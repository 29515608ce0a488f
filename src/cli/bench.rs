//! `ocelli bench`: how long a model takes here, on which delegate, and what it answers.

mod arguments;
mod compare;
mod input;
mod layers;
mod machine;
mod print;
mod stages;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

pub use self::arguments::HELP;
use self::arguments::Settings;
use self::input::{inputs, read_model, view};
use self::stages::{Frames, StageTable};
use crate::agent::{self, ModelError, ModelSettings};
use crate::clock::Clock;
use crate::inference::session::{LoadError, Reread, SegmentReport, SessionError};
use crate::inference::{self, Session, SessionOptions};
use crate::model::PackageError;
use crate::tensor::TensorView;

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
    /// Delegates cannot be compared.
    #[error("comparison: {0}")]
    Comparison(String),
    /// A run failed.
    #[error(transparent)]
    Run(#[from] SessionError),
    /// The result cannot be printed.
    #[error("output: {0}")]
    Output(#[from] io::Error),
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
    /// Energy of a run where the system tells that of the processor; all that ran meanwhile counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    joules: Option<f64>,
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
    let Some(settings) = arguments::parse(arguments)? else {
        return Ok(out.write_all(HELP.as_bytes())?);
    };
    if settings.compare {
        return compare::run(&settings, out, clock);
    }
    let names = settings.candidates();
    let plugins = settings.plugins_for_model()?;
    let delegates = inference::delegates_with(&names, &plugins, clock);
    let processor = settings.processor();
    delegates.iter().for_each(|delegate| delegate.use_processor(&processor));
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
    let (times, joules) = measure(&mut session, &views, &settings, &**clock)?;
    let workers_rss: u64 = session.worker_stats().iter().map(|stats| stats.rss_bytes).sum();
    let layers = settings.layers && !settings.json;
    let layers = layers.then(|| layers::measure(&mut session, &views, settings.runs, &**clock));
    let layers = layers.transpose()?;
    if let Some(path) = &settings.dump_output {
        input::dump(&session, path)?;
    }
    let report = session.report().segments;
    let mut figures = figures(&settings, names, load, times, &report);
    figures.joules = joules;
    figures.peak_rss_mib += (workers_rss as f64 / 1048576.0 * 10.0).round() / 10.0;
    drop(session);
    if settings.model.is_dir() && !settings.without_stages {
        figures.stages = frame_stages(&settings, &figures.delegates, clock)?;
    }
    if settings.json {
        serde_json::to_writer(&mut *out, &figures).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    print::print(&figures, out)?;
    if figures.threads != settings.threads {
        writeln!(
            out,
            "one thread: {} runs all of it on one; --threads is for others",
            runners(&report)
        )?;
    }
    if settings.layers {
        print::print_segments(&report, out)?;
    }
    if let Some(table) = layers {
        table.print(out)?;
    }
    figures.stages.iter().try_for_each(|(source, table)| print::print_stages(source, table, out))
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
        processor: settings.processor(),
        deadline: PATIENCE,
        profile: None,
        accelerators: agent::Accelerators {
            plugins: settings.plugins.clone(),
            ..agent::Accelerators::default()
        },
    };
    let loaded = agent::load(&model, clock)?;
    let frames = Frames { warmup: settings.warmup, counted: settings.runs };
    let tables = stages::measure(loaded, frames, clock).map_err(BenchError::Stages)?;
    Ok(tables.into_iter().map(|table| (table.source, table)).collect())
}

/// Times of the runs that count, and the energy of one where the system or the device tells.
fn measure(
    session: &mut Session,
    views: &[TensorView<'_>],
    settings: &Settings,
    clock: &dyn Clock,
) -> Result<(Vec<Duration>, Option<f64>), BenchError> {
    for _ in 0..settings.warmup {
        timed(session, views, clock)?;
    }
    let power = |session: &mut Session| {
        session.worker_stats().iter().find_map(|stats| stats.power_watt).map(f64::from)
    };
    let device_tells = power(session).is_some();
    let sensor = machine::PowerSensor::find();
    let mut watts = Vec::new();
    let mut times = Vec::with_capacity(settings.runs);
    let before = machine::energy_joules();
    for _ in 0..settings.runs {
        times.push(timed(session, views, clock)?);
        watts.extend(match device_tells {
            true => power(session),
            false => sensor.as_ref().and_then(machine::PowerSensor::watt),
        });
    }
    let spent = before.zip(machine::energy_joules()).map(|(before, after)| after - before);
    // The counter begins anew now and then.
    let counted = spent.filter(|spent| *spent > 0.0).map(|spent| spent / settings.runs as f64);
    let seconds: f64 = times.iter().map(Duration::as_secs_f64).sum();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let sensed = (!watts.is_empty()).then(|| mean(&watts) * seconds / settings.runs as f64);
    Ok((times, counted.or(sensed)))
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
    // The host uses no more threads than one.
    let one_thread = |segment: &SegmentReport| segment.delegate == "tract";
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
        peak_rss_mib: machine::peak_rss_mib().unwrap_or(0.0),
        joules: None,
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::input::read_file;
    use super::*;
    use crate::cli::npy;
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
        let engine = bench(&[&arguments[..], &["--json"]].concat()).expect("figures");
        assert!(engine.contains("\"threads\":2,"), "{engine}");
        let arguments = [&arguments[..], &["--delegates=tract"]].concat();
        assert!(bench(&arguments).expect("figures").contains("one thread: tract"));
        let json = bench(&[&arguments[..], &["--json"]].concat()).expect("figures");
        assert!(json.contains("\"threads\":1,"), "{json}");
    }

    #[test]
    fn tells_wrong_use_from_failure() {
        let cases = [
            (&[][..], "no MODEL"),
            (&["a.onnx", "--runs", "0"], "not between"),
            (&["a.onnx", "--delegates", "tpu"], "no delegate `tpu`"),
            (&["a.onnx", "--plugin", "npu"], "expected NAME=FILE"),
            (&["a.onnx", "--compare", "--recommend", "looks"], "expected latency"),
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
