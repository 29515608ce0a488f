//! `ocelli run`: from a configuration to a running agent.

use std::path::PathBuf;
use std::sync::Arc;

use lexopt::prelude::*;

use super::model::{DEFAULT_MODEL, PICTURES, zoo_path};
use super::{Failure, Streams, logger, misused, path, unknown};
use crate::agent;
use crate::clock::Clock;
use crate::config::Config;

/// Runs the command with the arguments after `run`, until a signal ends it.
pub(super) fn run(
    arguments: &mut lexopt::Parser,
    streams: &mut Streams<'_>,
    clock: &Arc<dyn Clock>,
) -> Result<(), Failure> {
    let mut file: Option<PathBuf> = None;
    while let Some(argument) = arguments.next().map_err(|error| misused(&error, "run"))? {
        match argument {
            Long("help") | Short('h') => {
                streams.out.write_all(include_str!("help/run.txt").as_bytes())?;
                return Ok(());
            }
            Long("config") | Short('c') => file = Some(path(arguments, "run")?),
            other => return Err(unknown(&other, "run")),
        }
    }
    let config = match &file {
        Some(file) => Config::load(file).map_err(Failure::failed)?,
        None => Config::defaults(),
    };
    logger::start(config.log_level, clock).map_err(Failure::Failed)?;
    // The zoo is only needed for what the configuration leaves open.
    let model = config.model.path.clone().map_or_else(|| zoo_path(DEFAULT_MODEL), Ok)?;
    let samples = config.streams.iter().any(|stream| stream.camera.is_none());
    let pictures = if samples { zoo_path(PICTURES)? } else { PathBuf::new() };
    let settings = config.agent_settings(&model, &pictures).map_err(Failure::Failed)?;
    agent::run(settings, Arc::clone(clock), streams.out).map_err(Failure::failed)
}
