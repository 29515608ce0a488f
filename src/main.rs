//! The device binary.

use std::process::ExitCode;
use std::sync::Arc;

use ocelli::cli::bench::{self, BenchError};
use ocelli::clock::{Clock, SystemClock};

fn main() -> ExitCode {
    let mut arguments = lexopt::Parser::from_env();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    match arguments.next() {
        Ok(Some(lexopt::Arg::Value(command))) if command == "bench" => {
            match bench::run(&mut arguments, &mut std::io::stdout().lock(), &clock) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    use std::io::Write as _;
                    // Nothing is left to tell when stderr is gone.
                    drop(writeln!(std::io::stderr(), "ocelli: {error}"));
                    ExitCode::from(if matches!(error, BenchError::Usage(_)) { 2 } else { 1 })
                }
            }
        }
        _ => ExitCode::from(2),
    }
}
