//! The operator's command line: sign and push models, watch a fleet, send commands, see a demonstration.

mod absent;
mod audit;
mod cmd;
mod connection;
mod demo;
mod files;
mod fleet;
mod keys;
mod push;
mod repo;
mod sequence;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Why a command did not succeed: one line that says what, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failure(String);

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Signs and pushes models, watches and commands devices that run the Ocelli agent, over MQTT.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  \
    ocelctl watch --host broker.example\n  \
    ocelctl watch dock-3 --host broker.example --ca ca.pem --username ops --password-file pw --json\n  \
    ocelctl cmd dock-3 ping --host broker.example\n  \
    ocelctl cmd dock-3 set-rate --arg stream=front --arg fps=2\n  \
    ocelctl demo\n\n\
    Exit codes: 0 done, 1 failed, 2 wrong use."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show results, gaps, health and status as they arrive, and sequence numbers that are missing
    Watch(watch::Arguments),
    /// Send one command to a device and wait for its answer
    Cmd(cmd::Arguments),
    /// Make signing keys
    #[command(subcommand)]
    Keys(keys::Command),
    /// Keep a repository of signed models in a folder
    #[command(subcommand)]
    Repo(repo::Command),
    /// Bring a repository to the broker: chunks first, timestamp last
    Push(push::Arguments),
    /// Remove from the broker what no current or recent release needs
    Prune(push::PruneArguments),
    /// Fetch a device's audit log and verify it
    Audit(audit::Arguments),
    /// Run broker, agent and receiver on this machine, with the sample pictures
    Demo(demo::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Failure(format!("cannot start the event loop: {error}"))),
    };
    let outcome = runtime.block_on(async {
        let mut out = std::io::stdout();
        match arguments.command {
            Command::Watch(arguments) => watch::run(arguments, &mut out).await,
            Command::Cmd(arguments) => cmd::run(arguments, &mut out).await,
            Command::Keys(command) => keys::run(command, &mut out),
            Command::Repo(command) => repo::run(command, &mut out),
            Command::Push(arguments) => push::run(arguments, &mut out).await,
            Command::Prune(arguments) => push::prune(arguments, &mut out).await,
            Command::Audit(arguments) => audit::run(arguments, &mut out).await,
            Command::Demo(arguments) => demo::run(arguments, &mut out).await,
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "ocelctl: {}", one_line(&failure.0));
    ExitCode::FAILURE
}

/// Text that may quote a device, a broker or a damaged file, for a terminal: no control characters, no end without end.
fn one_line(text: &str) -> String {
    const MOST: usize = 2000;
    let mut line = String::new();
    for letter in text.chars() {
        if line.len() >= MOST {
            line.push('…');
            break;
        }
        if letter.is_control() {
            line.extend(letter.escape_default());
        } else {
            line.push(letter);
        }
    }
    line
}

/// Standard output that was closed (`| head`) ends a command, but is no failure worth a stack of words.
fn written(outcome: std::io::Result<()>) -> Result<(), Failure> {
    outcome.map_err(|error| Failure(format!("cannot write to standard output: {error}")))
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn an_error_that_quotes_others_stays_one_line_of_text() {
        assert_eq!(one_line("größer als\n\u{1b}[2J"), "größer als\\n\\u{1b}[2J");
        assert_eq!(one_line(&"x".repeat(5000)).chars().count(), 2001);
    }
}
