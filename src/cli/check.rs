//! `ocelli check`: what a configuration or a model package does, in plain words, and what is wrong with it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lexopt::prelude::*;

use super::model::load;
use super::{Failure, Streams, delegates, explain, misused, name, unknown};
use crate::clock::Clock;
use crate::config::{Config, ConfigError, DEFAULTS};
use crate::model::Package;

/// Runs the command with the arguments after `check`.
pub(super) fn run(
    arguments: &mut lexopt::Parser,
    streams: &mut Streams<'_>,
    clock: &Arc<dyn Clock>,
) -> Result<(), Failure> {
    let mut subject: Option<PathBuf> = None;
    let mut with = crate::inference::delegate_names();
    while let Some(argument) = arguments.next().map_err(|error| misused(&error, "check"))? {
        match argument {
            Long("help") | Short('h') => {
                streams.out.write_all(include_str!("help/check.txt").as_bytes())?;
                return Ok(());
            }
            Long("defaults") => {
                streams.out.write_all(DEFAULTS.as_bytes())?;
                return Ok(());
            }
            Long("delegates") => with = delegates(arguments, "check")?,
            Value(path) if subject.is_none() => subject = Some(path.into()),
            other => return Err(unknown(&other, "check")),
        }
    }
    let Some(path) = subject else {
        return Err(Failure::Usage(
            "check what? A configuration or a model package; see ocelli check --help".to_owned(),
        ));
    };
    let package = path.is_dir() || path.extension().is_some_and(|kind| kind == "tar");
    if package {
        check_package(&path, with, streams.out, clock)
    } else {
        check_config(&path, streams)
    }
}

fn check_config(path: &Path, streams: &mut Streams<'_>) -> Result<(), Failure> {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(ConfigError::Invalid { path, problems }) => {
            for problem in problems {
                writeln!(streams.err, "ocelli: {}: {problem}", name(&path))?;
            }
            return Err(Failure::Told);
        }
        Err(error) => return Err(Failure::failed(error)),
    };
    let told = explain::config(&config);
    for line in &told.lines {
        writeln!(streams.out, "{line}")?;
    }
    for hint in &told.hints {
        writeln!(streams.out, "Hint: {hint}.")?;
    }
    for problem in &told.problems {
        writeln!(streams.err, "ocelli: {}: {problem}", name(path))?;
    }
    if !told.problems.is_empty() {
        return Err(Failure::Told);
    }
    writeln!(streams.out, "{}: no problem found.", name(path))?;
    Ok(())
}

fn check_package(
    path: &Path,
    delegates: Vec<String>,
    out: &mut dyn Write,
    clock: &Arc<dyn Clock>,
) -> Result<(), Failure> {
    let package = Package::open(path).map_err(Failure::failed)?;
    for line in explain::package(package.spec()) {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    let start = clock.now();
    let loaded = load(path.to_owned(), delegates, clock)?;
    let seconds = (clock.now() - start).as_secs_f32();
    for sample in loaded.spec.golden() {
        writeln!(out, "Golden picture {}: as expected.", sample.name)?;
    }
    if loaded.spec.golden().is_empty() {
        writeln!(out, "Hint: no golden picture, so nothing proves that it works on this device.")?;
    }
    writeln!(out, "Loaded and looked at in {seconds:.1} s. Who runs it:")?;
    for segment in &loaded.watch.report().segments {
        let nodes = segment.nodes.len();
        let ends = match segment.nodes.as_slice() {
            [] => String::new(),
            [only] => format!(" ({only})"),
            [first, .., last] => format!(" ({first} to {last})"),
        };
        let millions = segment.macs as f64 / 1e6;
        writeln!(
            out,
            "  {:<8} {nodes} nodes{ends}, {millions:.0} million multiply-adds",
            segment.delegate
        )?;
    }
    let id = loaded.spec.id();
    writeln!(out, "{} {}: no problem found.", id.name, id.version)?;
    Ok(())
}
