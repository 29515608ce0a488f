//! The command line of `ocelli bench`.

use std::path::PathBuf;

use lexopt::prelude::*;

use super::BenchError;
use super::compare::Goal;
use crate::agent;
use crate::inference::{self, WorkerSettings};
use crate::model::Package;
use crate::processor::Processor;

/// How to use it.
pub const HELP: &str = "\
Usage: ocelli bench MODEL [OPTIONS]

Runs a model again and again and says how long it took. MODEL is an ONNX file with static
shapes, or the folder of a model package. A package also gets a table of what else a frame
costs, from the camera to the MQTT connection's channel, one frame at a time through the
agent's own threads: a 1280x720 YUYV frame, then the golden pictures as files.

  --delegates A,B    who may run it, in order of preference (default: all of this build; tract is always last)
  --plugin NAME=FILE[,KEY=VALUE…]
                     an accelerator's plug-in with its options, run by ocelli-npu-worker; it comes before the others
  --threads N        threads for delegates that use several (default 1); tract uses one
  --runs N           runs that count (default 50)
  --warmup N         runs before, that do not count (default 5)
  --input FILE.npy   the input, float32 in the model's shape (default: random, the same each time)
  --dump-output FILE.npz
                     writes the outputs of the last run, by name
  --layers           also prints a line for each segment and for each layer of the int8 engine: its time, and its
                     share of the measured peak of this processor
  --compare          measures each delegate alone, in a process of its own, and compares its answers with tract's
  --recommend GOAL   with --compare: which to choose for latency, energy or accuracy, and why
  --floor SHARE      only those whose answers agree with tract's to this share, 0 to 1 (default 0.9)
  --pictures FOLDER  with --compare, for a package: also what each finds in these pictures; with labels.csv (file,class) or
                     labels/*.txt (YOLO boxes) in the folder, how often that is right
  --fp32 FILE.onnx   with --compare: the same model before it was quantised, run by tract, as one more row
  --json             prints one JSON object instead of text

Times include the quantisation of a float input. Examples:
  ocelli bench model.onnx --runs 100 --json
  ocelli bench models/nanodet-g-coco
";

pub(super) struct Settings {
    pub(super) model: PathBuf,
    pub(super) delegates: Option<Vec<String>>,
    pub(super) plugins: Vec<WorkerSettings>,
    /// The same as given, for other processes.
    pub(super) plugin_texts: Vec<String>,
    pub(super) compare: bool,
    pub(super) recommend: Option<Goal>,
    pub(super) floor: f64,
    pub(super) pictures: Option<PathBuf>,
    pub(super) fp32: Option<PathBuf>,
    /// Not in the help: for the processes of `--compare`.
    pub(super) without_stages: bool,
    pub(super) threads: usize,
    pub(super) runs: usize,
    pub(super) warmup: usize,
    pub(super) input: Option<PathBuf>,
    pub(super) dump_output: Option<PathBuf>,
    pub(super) layers: bool,
    pub(super) json: bool,
}

impl Settings {
    /// Delegates as given, else the plug-ins and all of this build.
    pub(super) fn candidates(&self) -> Vec<String> {
        let all = || {
            let plugins = self.plugins.iter().map(|plugin| plugin.name.clone());
            plugins.chain(inference::delegate_names()).collect()
        };
        self.delegates.clone().unwrap_or_else(all)
    }

    /// As many threads as asked for; `taskset` chooses their cores.
    pub(super) fn processor(&self) -> Processor {
        Processor { threads: self.threads, ..Processor::default() }
    }

    /// Plug-ins with what the package has for them.
    pub(super) fn plugins_for_model(&self) -> Result<Vec<WorkerSettings>, BenchError> {
        if !self.model.is_dir() || self.plugins.is_empty() {
            return Ok(self.plugins.clone());
        }
        let spec = Package::open(&self.model)?.into_spec();
        Ok(agent::plugins_for(&spec, &self.plugins))
    }
}

pub(super) fn parse(arguments: &mut lexopt::Parser) -> Result<Option<Settings>, BenchError> {
    let usage = |error: lexopt::Error| BenchError::Usage(error.to_string());
    let mut settings = Settings {
        model: PathBuf::new(),
        delegates: None,
        plugins: Vec::new(),
        plugin_texts: Vec::new(),
        compare: false,
        recommend: None,
        floor: 0.9,
        pictures: None,
        fp32: None,
        without_stages: false,
        threads: 1,
        runs: 50,
        warmup: 5,
        input: None,
        dump_output: None,
        layers: false,
        json: false,
    };
    let (mut model, mut delegates) = (None, None);
    while let Some(argument) = arguments.next().map_err(usage)? {
        match argument {
            Long("help") | Short('h') => return Ok(None),
            Long("delegates") => {
                let list = arguments.value().and_then(|value| value.string()).map_err(usage)?;
                delegates = Some(list);
            }
            Long("plugin") => {
                let text = arguments.value().and_then(|value| value.string()).map_err(usage)?;
                settings.plugins.push(plugin(&text)?);
                settings.plugin_texts.push(text);
            }
            Long("threads") => settings.threads = count(arguments, 1)?,
            Long("runs") => settings.runs = count(arguments, 1)?,
            Long("warmup") => settings.warmup = count(arguments, 0)?,
            Long("input") => settings.input = Some(arguments.value().map_err(usage)?.into()),
            Long("dump-output") => {
                settings.dump_output = Some(arguments.value().map_err(usage)?.into());
            }
            Long("compare") => settings.compare = true,
            Long("recommend") => {
                let goal = arguments.value().and_then(|value| value.string()).map_err(usage)?;
                settings.recommend = Some(Goal::parse(&goal)?);
            }
            Long("floor") => {
                let floor: f64 = arguments.value().and_then(|v| v.parse()).map_err(usage)?;
                if !(0.0..=1.0).contains(&floor) {
                    return Err(BenchError::Usage(format!(
                        "--floor {floor} is not between 0 and 1"
                    )));
                }
                settings.floor = floor;
            }
            Long("pictures") => settings.pictures = Some(arguments.value().map_err(usage)?.into()),
            Long("fp32") => settings.fp32 = Some(arguments.value().map_err(usage)?.into()),
            Long("without-stages") => settings.without_stages = true,
            Long("layers") => settings.layers = true,
            Long("json") => settings.json = true,
            Value(path) if model.is_none() => model = Some(PathBuf::from(path)),
            other => return Err(usage(other.unexpected())),
        }
    }
    // Only now all plug-ins are known.
    let list = delegates.map(|list| known_delegates(&list, &settings.plugins));
    settings.delegates = list.transpose()?;
    if !settings.compare
        && (settings.recommend.is_some() || settings.pictures.is_some() || settings.fp32.is_some())
    {
        let what = "--recommend, --pictures and --fp32 go with --compare";
        return Err(BenchError::Usage(what.to_owned()));
    }
    settings.model = model.ok_or_else(|| BenchError::Usage("no MODEL given".to_owned()))?;
    Ok(Some(settings))
}

/// `NAME=FILE[,KEY=VALUE…]`
fn plugin(text: &str) -> Result<WorkerSettings, BenchError> {
    let mut parts = text.split(',').map(|part| part.split_once('='));
    let wrong = || BenchError::Usage(format!("--plugin {text}: expected NAME=FILE[,KEY=VALUE…]"));
    let (name, file) = parts.next().flatten().ok_or_else(wrong)?;
    let mut settings = WorkerSettings::new(name, file);
    for part in parts {
        let (key, value) = part.ok_or_else(wrong)?;
        settings.options.insert(key.to_owned(), value.to_owned());
    }
    Ok(settings)
}

fn known_delegates(list: &str, plugins: &[WorkerSettings]) -> Result<Vec<String>, BenchError> {
    let mut known = inference::delegate_names();
    known.extend(plugins.iter().map(|plugin| plugin.name.clone()));
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
