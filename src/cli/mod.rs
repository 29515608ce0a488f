//! The device binary's commands: arguments in, words and an exit code out. Decisions live in the modules.

pub mod bench;
mod check;
mod explain;
mod infer;
mod logger;
mod model;
mod npy;
mod run;
mod try_model;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lexopt::prelude::*;

use crate::clock::Clock;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// Wrong use: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Everything else: exit code 1. One line: what, where, what to do.
    #[error("{0}")]
    Failed(String),
    /// It was told already, line by line: exit code 1.
    #[error("failed")]
    Told,
}

impl Failure {
    fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Failed(_) | Self::Told => 1,
        }
    }
}

/// Output that cannot be written ends a command.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Failed(format!("cannot write the output: {error}"))
    }
}

/// Where words go.
pub struct Streams<'a> {
    /// Results.
    pub out: &'a mut dyn Write,
    /// Errors, one line each.
    pub err: &'a mut dyn Write,
}

/// Runs the command that the arguments name, and returns the exit code.
///
/// `arguments` begin after the program's name.
pub fn main(arguments: lexopt::Parser, streams: &mut Streams<'_>, clock: &Arc<dyn Clock>) -> u8 {
    match dispatch(arguments, streams, clock) {
        Ok(()) => 0,
        // A reader that has seen enough (`| head`) is no failure of ours.
        Err(Failure::Failed(message)) if message.contains("Broken pipe") => 1,
        Err(failure) => {
            if !matches!(failure, Failure::Told) {
                // Nobody is left to tell when standard error is closed.
                let _ = writeln!(streams.err, "ocelli: {failure}");
            }
            failure.exit_code()
        }
    }
}

fn dispatch(
    mut arguments: lexopt::Parser,
    streams: &mut Streams<'_>,
    clock: &Arc<dyn Clock>,
) -> Result<(), Failure> {
    let usage = |message: String| Err(Failure::Usage(format!("{message}; see ocelli --help")));
    let command = match arguments.next().map_err(|error| misused(&error, ""))? {
        Some(Value(command)) => command,
        Some(Long("help") | Short('h')) => {
            streams.out.write_all(include_str!("help/main.txt").as_bytes())?;
            return Ok(());
        }
        Some(Long("version") | Short('V')) => {
            writeln!(streams.out, "ocelli {}", env!("CARGO_PKG_VERSION"))?;
            return Ok(());
        }
        Some(other) => return usage(format!("unknown option {}", shown(&other))),
        None => return usage("which command? run, infer, check or bench".to_owned()),
    };
    match command.to_str() {
        Some("run") => run::run(&mut arguments, streams, clock),
        // Started by the agent itself, see src/update/trial.rs.
        Some(crate::update::trial::COMMAND) => try_model::run(&mut arguments, streams, clock),
        Some("infer") => infer::run(&mut arguments, streams, clock),
        Some("check") => check::run(&mut arguments, streams, clock),
        Some("bench") => bench::run(&mut arguments, streams.out, clock).map_err(|error| {
            let usage = matches!(error, bench::BenchError::Usage(_));
            if usage { Failure::Usage(error.to_string()) } else { Failure::failed(error) }
        }),
        Some("help") => {
            streams.out.write_all(include_str!("help/main.txt").as_bytes())?;
            Ok(())
        }
        _ => {
            let command = command.to_string_lossy();
            usage(format!("unknown command \"{command}\"; known are run, infer, check and bench"))
        }
    }
}

/// A mistake on the command line, with the place to read on.
fn misused(error: &lexopt::Error, command: &str) -> Failure {
    let space = if command.is_empty() { "" } else { " " };
    Failure::Usage(format!("{error}; see ocelli{space}{command} --help"))
}

/// An argument that a command does not know.
fn unknown(argument: &lexopt::Arg<'_>, command: &str) -> Failure {
    Failure::Usage(format!("unexpected {}; see ocelli {command} --help", shown(argument)))
}

fn shown(argument: &lexopt::Arg<'_>) -> String {
    match argument {
        Long(name) => format!("--{name}"),
        Short(name) => format!("-{name}"),
        Value(value) => format!("\"{}\"", value.to_string_lossy()),
    }
}

/// The value of an option as a path.
fn path(arguments: &mut lexopt::Parser, command: &str) -> Result<PathBuf, Failure> {
    Ok(arguments.value().map_err(|error| misused(&error, command))?.into())
}

/// The value of `--delegates`: names this build or a later one may know.
fn delegates(arguments: &mut lexopt::Parser, command: &str) -> Result<Vec<String>, Failure> {
    let list = arguments.value().and_then(|value| value.string());
    let list = list.map_err(|error| misused(&error, command))?;
    let names: Vec<_> = list.split(',').map(str::trim).map(str::to_owned).collect();
    let known = crate::inference::delegate_names();
    match names.iter().find(|name| !known.contains(name)) {
        None => Ok(names),
        Some(name) => {
            let known = known.join(", ");
            Err(Failure::Usage(format!(
                "this build has no delegate \"{name}\"; it has {known}; see ocelli {command} --help"
            )))
        }
    }
}

/// A path for people.
fn name(path: &Path) -> std::path::Display<'_> {
    path.display()
}
