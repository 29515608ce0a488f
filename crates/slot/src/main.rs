//! `ocelli-slot`: the board's side of a firmware. Its help text says what it can do.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(cli::main(lexopt::Parser::from_env()))
}
