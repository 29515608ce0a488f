//! `ocelli-npu-worker`: started by the agent with a socket as standard input; no use by hand.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().len() > 1 {
        // The only thing that a person may want of it.
        return tell(concat!("ocelli-npu-worker ", env!("CARGO_PKG_VERSION")));
    }
    match ocelli_npu_worker::serve::serve_standard_input() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("ocelli-npu-worker: {error}; it is started by ocelli, see docs/npu.md"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "standard error is the worker's log")]
fn tell(what: &str) -> ExitCode {
    eprintln!("{what}");
    ExitCode::SUCCESS
}
