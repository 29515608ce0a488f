//! `ocelli try-model`: the child process of a model's trial. Hidden: only the agent starts it. Prints one JSON report.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lexopt::prelude::*;

use super::{Failure, Streams, delegates, misused, path, unknown};
use crate::agent::{self, ModelSettings};
use crate::clock::Clock;
use crate::processor::Processor;
use crate::update::trial::{COMMAND, Report};

/// Runs the command with the arguments after `try-model`.
pub(super) fn run(
    arguments: &mut lexopt::Parser,
    streams: &mut Streams<'_>,
    clock: &Arc<dyn Clock>,
) -> Result<(), Failure> {
    let (mut package, mut names, mut labels) = (PathBuf::new(), Vec::new(), Vec::new());
    while let Some(argument) = arguments.next().map_err(|error| misused(&error, COMMAND))? {
        match argument {
            Long("package") => package = path(arguments, COMMAND)?,
            Long("delegates") => names = delegates(arguments, COMMAND)?,
            Long("labels") => {
                let list = arguments.value().and_then(|value| value.string());
                let list = list.map_err(|error| misused(&error, COMMAND))?;
                labels = list.split(',').map(str::to_owned).collect();
            }
            other => return Err(unknown(&other, COMMAND)),
        }
    }
    // The parent ends a trial that takes too long; here a busy machine must not look like a delegate that hangs.
    let deadline = Duration::from_secs(24 * 3600);
    let settings = ModelSettings {
        path: package,
        delegates: names,
        processor: Processor::default(),
        profile: None,
        deadline,
        accelerators: agent::Accelerators::default(),
    };
    let report = agent::try_model(&settings, &labels, clock);
    let text = serde_json::to_string(&report).map_err(Failure::failed)?;
    writeln!(streams.out, "{text}")?;
    match report {
        Report::Passed { .. } => Ok(()),
        Report::Failed { .. } | Report::Unable { .. } => Err(Failure::Told),
    }
}
