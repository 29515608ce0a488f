//! `delegates = "auto"`: which delegates run the model here, by measurement. What was measured is kept beside the store, and
//! measured anew when the model, the board, or a plug-in, its driver or its runtime is another.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::agent::settings::ModelSettings;
use crate::clock::Clock;
use crate::inference::delegate::Delegate;
use crate::inference::{Session, SessionOptions, WorkerSettings, delegates_with};
use crate::model::{ModelSpec, Sha256};
use crate::processor::Processor;
use crate::tensor::Tensor;

/// The delegate of every processor.
const PROCESSOR: &str = "int8";
/// Runs of each delegate, the first of which only warm up.
const RUNS: usize = 15;
const WARM_UP: usize = 3;
/// Longest run that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest profile read, bytes.
const MAX_BYTES: u64 = 1 << 20;

/// What was measured on this device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    /// Digest of all that the figures depend on.
    key: String,
    /// Fastest first.
    rows: Vec<Row>,
}

/// A delegate that runs the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    delegate: String,
    median_us: u64,
}

/// The plug-ins and int8 in the order in which they should be tried.
pub(super) fn order(
    settings: &ModelSettings,
    file: &Path,
    spec: &ModelSpec,
    plugins: &[WorkerSettings],
    clock: &Arc<dyn Clock>,
) -> Vec<String> {
    if plugins.is_empty() {
        return vec![PROCESSOR.to_owned()];
    }
    let names: Vec<_> = plugins.iter().map(|plugin| plugin.name.clone()).collect();
    let names: Vec<_> = names.into_iter().chain([PROCESSOR.to_owned()]).collect();
    let delegates = delegates_with(&names, plugins, clock);
    let key = key(spec, plugins, &delegates, &settings.processor, &board());
    let kept = read(file).filter(|profile| profile.key == key);
    let profile = kept.unwrap_or_else(|| {
        log::info!("model={} measuring delegates: no profile fits", spec.id().name);
        let measured = |delegate| measure(delegate, &names, plugins, settings, spec.onnx(), clock);
        // Where the model will run: a thread of its own, since the caller's goes on to other work.
        let rows = std::thread::scope(|scope| {
            let body = || {
                settings.processor.keep();
                names.iter().filter_map(|name| measured(name)).collect::<Vec<Row>>()
            };
            scope.spawn(body).join()
        });
        let mut rows = rows.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        rows.sort_by_key(|row| row.median_us);
        let profile = Profile { key, rows };
        keep(file, &profile);
        profile
    });
    for row in &profile.rows {
        log::info!("delegate={} median_us={}", row.delegate, row.median_us);
    }
    let mut order: Vec<_> = profile.rows.into_iter().map(|row| row.delegate).collect();
    // What is slower than the processor would only ever stand in for it.
    let last = order.iter().position(|name| name == PROCESSOR).map_or(order.len(), |at| at + 1);
    order.truncate(last);
    order
}

/// What the figures depend on, digested: model, build, board, threads and cores, plug-ins with their devices and versions.
fn key(
    spec: &ModelSpec,
    plugins: &[WorkerSettings],
    delegates: &[Arc<dyn Delegate>],
    processor: &Processor,
    board: &str,
) -> String {
    let mut text = format!("{}\n{}\n{board}\n", spec.sha256(), env!("CARGO_PKG_VERSION"));
    text += &format!("{} {:?}\n", processor.threads, processor.cores);
    for plugin in plugins {
        let library = plugin.plugin.display();
        text += &format!("{}\n{library}\n{:?}\n", plugin.name, plugin.options);
    }
    for delegate in delegates {
        let device = match delegate.probe() {
            Ok(device) => format!("{} {:?}", device.device, device.version),
            Err(unavailable) => unavailable.to_string(),
        };
        text += &format!("{} {device}\n", delegate.name());
    }
    Sha256::of(text.as_bytes()).to_string()
}

/// The board by the device tree, else the processor's name.
fn board() -> String {
    let read = |path: &str| crate::file::read_regular(Path::new(path), MAX_BYTES).ok();
    if let Some(model) = read("/proc/device-tree/model") {
        return String::from_utf8_lossy(&model).into_owned();
    }
    let cpu = read("/proc/cpuinfo").unwrap_or_default();
    let cpu = String::from_utf8_lossy(&cpu);
    cpu.lines().find(|line| line.starts_with("model name")).unwrap_or_default().to_owned()
}

/// Median of some runs; `None` when the delegate does not run the model, or its answer is not that of its stand-in.
fn measure(
    name: &str,
    names: &[String],
    plugins: &[WorkerSettings],
    settings: &ModelSettings,
    onnx: &[u8],
    clock: &Arc<dyn Clock>,
) -> Option<Row> {
    let with_stand_in: Vec<_> =
        names.iter().filter(|other| *other == name || *other == PROCESSOR).cloned().collect();
    let delegates = delegates_with(&with_stand_in, plugins, clock);
    delegates.iter().for_each(|delegate| delegate.use_processor(&settings.processor));
    let closeness = settings.accelerators.closeness;
    let options = SessionOptions { closeness, ..SessionOptions::default() };
    let told = |error: &dyn std::fmt::Display| log::warn!("delegate={name} {error}");
    let session = Session::load(onnx, &delegates, options, Arc::clone(clock));
    let mut session = session.inspect_err(|error| told(error)).ok()?;
    let input = Tensor::zeros(session.inputs().first()?.clone());
    session.cross_check(&[input.view()]).inspect_err(|error| told(error)).ok()?;
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let start = clock.now();
        session.run(&[input.view()], start + PATIENCE).inspect_err(|error| told(error)).ok()?;
        times.push(clock.now().saturating_duration_since(start));
    }
    let runs_it = session.running().any(|running| running == name);
    let mut times = times.split_off(WARM_UP);
    times.sort_unstable();
    let median = times[times.len() / 2].as_micros();
    let median_us = u64::try_from(median).unwrap_or(u64::MAX);
    runs_it.then(|| Row { delegate: name.to_owned(), median_us })
}

fn read(file: &Path) -> Option<Profile> {
    let text = crate::file::read_regular(file, MAX_BYTES).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Whole or not at all. What is lost is measured again.
fn keep(file: &Path, profile: &Profile) {
    let text = serde_json::to_vec_pretty(profile).expect("a profile is a tree of plain values");
    let fresh = file.with_extension("new");
    let folder = file.parent().map_or(Ok(()), std::fs::create_dir_all);
    let kept = folder
        .and_then(|()| std::fs::write(&fresh, text))
        .and_then(|()| std::fs::rename(&fresh, file));
    if let Err(error) = kept {
        log::warn!("{}: {error}; delegates are measured again at the next start", file.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::model::Package;

    fn spec() -> ModelSpec {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-classifier");
        Package::open(path.as_ref()).unwrap().into_spec()
    }

    #[test]
    fn another_board_plugin_or_number_of_threads_is_measured_anew() {
        let spec = spec();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let plugin = WorkerSettings::new("npu", "/nowhere/npu.so");
        let other = WorkerSettings::new("npu", "/nowhere/other.so");
        let with = |plugin: &WorkerSettings, processor: &Processor, board: &str| {
            let plugins = [plugin.clone()];
            let delegates = delegates_with(&["npu".to_owned()], &plugins, &clock);
            key(&spec, &plugins, &delegates, processor, board)
        };
        let one = Processor::default();
        let of = |plugin: &WorkerSettings, board: &str| with(plugin, &one, board);
        assert_eq!(of(&plugin, "Rock 5"), of(&plugin, "Rock 5"));
        assert_ne!(of(&plugin, "Rock 5"), of(&plugin, "Rock 3"));
        assert_ne!(of(&plugin, "Rock 5"), of(&other, "Rock 5"));
        for processor in [
            Processor { threads: 2, ..Processor::default() },
            Processor { cores: vec![4], ..Processor::default() },
        ] {
            assert_ne!(of(&plugin, "Rock 5"), with(&plugin, &processor, "Rock 5"));
        }
    }

    #[test]
    fn a_profile_is_kept_whole_or_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/delegates.json");
        let row = Row { delegate: PROCESSOR.to_owned(), median_us: 7 };
        let profile = Profile { key: "k".to_owned(), rows: vec![row] };
        keep(&file, &profile);
        assert_eq!(read(&file), Some(profile));
        std::fs::write(&file, "{\"key\":").unwrap();
        assert_eq!(read(&file), None);
    }
}
