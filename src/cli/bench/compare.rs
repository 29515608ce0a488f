//! `ocelli bench --compare`: one model on each delegate in turn, each measured in a process of its own, and what to choose.
//!
//! Times and memory come from `ocelli bench --json` started anew for each delegate, so that none sees the other's memory or
//! caches. Answers are compared here with those of tract, the reference, on the same input.

mod pictures;
mod table;

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde::Serialize;

use self::pictures::Pictures;
use super::BenchError;
use super::arguments::Settings;
use super::input::{inputs, read_file, read_model, view};
use crate::clock::Clock;
use crate::detection::Findings;
use crate::inference::delegate::Delegate;
use crate::inference::{self, Session, SessionOptions, WorkerSettings};
use crate::model::{ModelSpec, Package};
use crate::tensor::TensorView;

/// Name of the row of the model before it was quantised.
const FP32: &str = "fp32";

/// What counts when one delegate is to be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Goal {
    /// Least median time.
    Latency,
    /// Least energy of a run.
    Energy,
    /// Nearest to the reference.
    Accuracy,
}

impl Goal {
    pub(super) fn parse(word: &str) -> Result<Self, BenchError> {
        match word {
            "latency" => Ok(Self::Latency),
            "energy" => Ok(Self::Energy),
            "accuracy" => Ok(Self::Accuracy),
            _ => Err(BenchError::Usage(format!(
                "--recommend {word}: expected latency, energy or accuracy"
            ))),
        }
    }
}

/// The result of `--compare --json`; its fields are a contract.
#[derive(Debug, Serialize)]
pub(super) struct Comparison {
    model: String,
    rows: Vec<Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recommended: Option<Choice>,
}

/// One delegate's figures.
#[derive(Debug, Default, Serialize)]
struct Row {
    delegate: String,
    /// Why there are no figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// A simulator: its answers count, its times do not.
    simulated: bool,
    /// Share of the multiply-accumulates that it ran itself.
    share: f64,
    load_ms: f64,
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    /// Frames a second, at batch one: no delegate takes more at once.
    fps: f64,
    /// Largest batch that it takes.
    batch: usize,
    /// 10^12 operations a second, two for each multiply-accumulate.
    tops: f64,
    peak_rss_mib: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    joules: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tops_per_watt: Option<f64>,
    /// 1 less the largest difference from the reference as a share of the reference's span.
    agreement: f64,
    /// Of what it finds in the pictures, the share that tract finds too.
    #[serde(skip_serializing_if = "Option::is_none")]
    same_findings: Option<f64>,
    /// Share of right answers on labelled pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<f64>,
}

impl Row {
    /// What the floor is held against: findings where there are pictures, else values.
    fn nearness(&self) -> f64 {
        self.same_findings.unwrap_or(self.agreement)
    }
}

/// A recommendation with its reason.
#[derive(Debug, PartialEq, Serialize)]
struct Choice {
    delegate: String,
    reason: String,
}

/// What all rows are measured with.
struct Bench<'a> {
    settings: &'a Settings,
    plugins: Vec<WorkerSettings>,
    spec: Option<ModelSpec>,
    pictures: Option<Pictures>,
    clock: &'a Arc<dyn Clock>,
}

/// What the reference, tract, says.
struct Reference {
    answers: Vec<Vec<f32>>,
    findings: Option<Vec<Findings>>,
}

/// Measures, and prints a table or JSON.
pub(super) fn run(
    settings: &Settings,
    out: &mut dyn Write,
    clock: &Arc<dyn Clock>,
) -> Result<(), BenchError> {
    let bench = Bench::new(settings, clock)?;
    let onnx = read_model(&settings.model)?;
    let stopped = |reason| BenchError::Comparison(reason);
    let reference = bench.look("tract", &onnx).map_err(stopped)?;
    let mut rows = Vec::new();
    for delegate in settings.candidates() {
        rows.push(bench.row(&delegate, &settings.model, &delegate, &reference, &onnx));
    }
    if let Some(fp32) = &settings.fp32 {
        let before = read_file(fp32)?;
        rows.push(bench.row(FP32, fp32, "tract", &reference, &before));
    }
    let recommended = settings.recommend.map(|goal| choose(&rows, goal, settings.floor));
    let comparison = Comparison {
        model: settings.model.display().to_string(),
        rows,
        recommended: recommended.flatten(),
    };
    if settings.json {
        serde_json::to_writer(&mut *out, &comparison).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    table::print(&comparison, settings, out)
}

impl<'a> Bench<'a> {
    fn new(settings: &'a Settings, clock: &'a Arc<dyn Clock>) -> Result<Self, BenchError> {
        let is_package = settings.model.is_dir();
        let spec = is_package.then(|| Package::open(&settings.model)).transpose()?;
        let spec = spec.map(Package::into_spec);
        let pictures = match (&settings.pictures, is_package) {
            (None, _) => None,
            (Some(_), false) => {
                let what = "--pictures needs a model package, which says how a picture is prepared";
                return Err(BenchError::Usage(what.to_owned()));
            }
            (Some(folder), true) => {
                Some(Pictures::read(folder, &**clock).map_err(BenchError::Comparison)?)
            }
        };
        let plugins = settings.plugins_for_model()?;
        Ok(Self { settings, plugins, spec, pictures, clock })
    }

    fn row(
        &self,
        name: &str,
        path: &Path,
        delegate: &str,
        reference: &Reference,
        onnx: &[u8],
    ) -> Row {
        let measured = self.measure(path, delegate).and_then(|row| {
            let found = self.look(delegate, onnx)?;
            let pairs = found.findings.as_ref().zip(reference.findings.as_ref());
            let labelled = self.pictures.as_ref().zip(found.findings.as_ref());
            Ok(Row {
                agreement: agreement(&found.answers, &reference.answers),
                same_findings: pairs.map(|(found, wanted)| pictures::agreement(found, wanted)),
                accuracy: labelled.and_then(|(pictures, found)| pictures.accuracy(found)),
                simulated: self.is_simulated(delegate),
                ..row
            })
        });
        let failed = |error| Row { error: Some(error), ..Row::default() };
        Row { delegate: name.to_owned(), ..measured.unwrap_or_else(failed) }
    }

    fn delegates(&self, name: &str) -> Vec<Arc<dyn Delegate>> {
        inference::delegates_with(&[name.to_owned()], &self.plugins, self.clock)
    }

    fn is_simulated(&self, delegate: &str) -> bool {
        let told = self.delegates(delegate).first().and_then(|delegate| delegate.probe().ok());
        told.is_some_and(|device| device.simulated)
    }

    /// `ocelli bench` with one delegate, in a process of its own.
    fn measure(&self, path: &Path, delegate: &str) -> Result<Row, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.arg("bench").arg(path).args([
            "--json",
            "--without-stages",
            "--delegates",
            delegate,
        ]);
        command.arg(format!("--runs={}", self.settings.runs));
        command.arg(format!("--warmup={}", self.settings.warmup));
        command.arg(format!("--threads={}", self.settings.threads));
        for plugin in &self.settings.plugin_texts {
            command.arg("--plugin").arg(plugin);
        }
        let done = command.stdin(Stdio::null()).stderr(Stdio::piped()).output();
        let done = done.map_err(|error| error.to_string())?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            return Err(said.lines().last().unwrap_or("it ended without a word").to_owned());
        }
        let figures = serde_json::from_slice(&done.stdout);
        read(&figures.map_err(|error| error.to_string())?, delegate)
    }

    /// Outputs of one run as reals, one list for each, and what it finds in the pictures.
    fn look(&self, delegate: &str, onnx: &[u8]) -> Result<Reference, String> {
        let told = |error: &dyn std::fmt::Display| error.to_string();
        let (clock, options) = (Arc::clone(self.clock), SessionOptions::default());
        let session = Session::load(onnx, &self.delegates(delegate), options, clock);
        let mut session = session.map_err(|error| told(&error))?;
        let inputs = inputs(&session, self.settings.input.as_deref());
        let inputs = inputs.map_err(|error| told(&error))?;
        let views: Vec<TensorView<'_>> =
            inputs.iter().map(|(spec, values)| view(spec, values)).collect();
        let ran = session.run(&views, self.clock.now() + super::PATIENCE);
        ran.map_err(|error| told(&error))?;
        let output = |place| session.output(place).values.to_reals();
        let answers = (0..session.outputs().len()).map(output).collect();
        drop(session);
        let looked = self.pictures.as_ref().zip(self.spec.as_ref()).map(|(pictures, spec)| {
            pictures.look(spec, onnx, &self.delegates(delegate), self.clock)
        });
        Ok(Reference { answers, findings: looked.transpose()? })
    }
}

fn read(figures: &serde_json::Value, delegate: &str) -> Result<Row, String> {
    let number = |key: &str| figures[key].as_f64().ok_or(format!("no {key} in its figures"));
    let segments = figures["segments"].as_array().cloned().unwrap_or_default();
    let macs = |own: bool| -> f64 {
        let of = segments.iter().filter(|one| !own || one["delegate"] == delegate);
        of.filter_map(|one| one["macs"].as_f64()).sum()
    };
    let own_segments = segments.iter().any(|one| one["delegate"] == delegate);
    if !own_segments {
        return Err("it runs no part of this model".to_owned());
    }
    let (own, all, p50_ms) = (macs(true), macs(false), number("p50_ms")?);
    let joules = figures["joules"].as_f64();
    Ok(Row {
        share: if all > 0.0 { own / all } else { 1.0 },
        load_ms: number("load_ms")?,
        p50_ms,
        p90_ms: number("p90_ms")?,
        p99_ms: number("p99_ms")?,
        fps: 1e3 / p50_ms.max(1e-6),
        tops: 2.0 * all / (p50_ms.max(1e-6) * 1e9),
        peak_rss_mib: number("peak_rss_mib")?,
        batch: 1,
        joules,
        tops_per_watt: joules.map(|joules| 2.0 * all / 1e12 / joules),
        ..Row::default()
    })
}

fn agreement(found: &[Vec<f32>], reference: &[Vec<f32>]) -> f64 {
    let worst = found.iter().zip(reference).map(|(found, reference)| {
        let low = reference.iter().copied().fold(f32::INFINITY, f32::min);
        let high = reference.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let apart = found.iter().zip(reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        f64::from(apart) / f64::from((high - low).max(f32::MIN_POSITIVE))
    });
    1.0 - worst.fold(0.0, f64::max).min(1.0)
}

/// The best row for a goal among those that agree with the reference to `floor`.
fn choose(rows: &[Row], goal: Goal, floor: f64) -> Option<Choice> {
    let real = |row: &&Row| row.error.is_none() && !row.simulated && row.delegate != FP32;
    let fit = rows.iter().filter(real).filter(|row| row.nearness() >= floor);
    let figure = |row: &Row| match goal {
        Goal::Latency => Some(row.p50_ms),
        Goal::Energy => row.joules,
        Goal::Accuracy => Some(-row.accuracy.unwrap_or(row.nearness())),
    };
    let ranked = fit.filter_map(|row| Some((figure(row)?, row)));
    // The faster of two that are equal.
    let best = ranked
        .min_by(|(a, one), (b, other)| a.total_cmp(b).then(one.p50_ms.total_cmp(&other.p50_ms)));
    best.map(|(_, row)| {
        let mut agrees = format!("agrees with the reference to {:.1} %", row.nearness() * 100.0);
        if let Some(accuracy) = row.accuracy {
            agrees += &format!(", right in {:.1} %", accuracy * 100.0);
        }
        let reason = match goal {
            Goal::Latency => format!("least median, {:.3} ms; {agrees}", row.p50_ms),
            Goal::Energy => {
                format!("least energy, {:.4} J a run; {agrees}", row.joules.unwrap_or(0.0))
            }
            Goal::Accuracy => format!("{agrees}, {:.3} ms", row.p50_ms),
        };
        Choice { delegate: row.delegate.clone(), reason }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(delegate: &str, p50_ms: f64, agreement: f64, joules: Option<f64>) -> Row {
        Row { delegate: delegate.to_owned(), p50_ms, agreement, joules, ..Row::default() }
    }

    #[test]
    fn the_choice_follows_the_goal_and_the_floor() {
        let mut absent = row("gone", 0.1, 1.0, Some(0.001));
        absent.error = Some("no device".to_owned());
        let rows = [
            absent,
            row("npu", 2.0, 0.95, Some(0.01)),
            row("int8", 5.0, 0.999, Some(0.05)),
            row("tract", 40.0, 1.0, None),
        ];
        let chosen = |goal, floor| choose(&rows, goal, floor).map(|choice| choice.delegate);
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(chosen(Goal::Latency, 0.0), name("npu"));
        assert_eq!(chosen(Goal::Latency, 0.99), name("int8"));
        assert_eq!(chosen(Goal::Energy, 0.0), name("npu"));
        assert_eq!(chosen(Goal::Energy, 1.0), None);
        assert_eq!(chosen(Goal::Accuracy, 0.0), name("tract"));
    }

    #[test]
    fn agreement_is_a_share_of_the_span() {
        let reference = [vec![0.0, 10.0], vec![5.0, 5.0]];
        assert_eq!(agreement(&reference, &reference), 1.0);
        let found = [vec![0.0, 9.0], vec![5.0, 5.0]];
        assert!((agreement(&found, &reference) - 0.9).abs() < 1e-6);
        assert_eq!(agreement(&[vec![0.0, 10.0], vec![9.0, 5.0]], &reference), 0.0);
    }

    #[test]
    fn a_delegate_that_ran_nothing_has_no_figures() {
        let figures = serde_json::json!({"segments": [{"delegate": "tract", "macs": 5}]});
        assert_eq!(read(&figures, "npu").unwrap_err(), "it runs no part of this model");
    }
}
