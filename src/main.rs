//! The device binary.

#[cfg(any(target_env = "musl", all(test, target_os = "linux")))]
mod heap;

use std::process::ExitCode;
use std::sync::Arc;

use ocelli::cli::{self, Streams};
use ocelli::clock::{Clock, SystemClock};

#[cfg(target_env = "musl")]
#[global_allocator]
static HEAP: heap::Heap = heap::Heap;

fn main() -> ExitCode {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    let mut streams = Streams { out: &mut out, err: &mut err };
    ExitCode::from(cli::main(lexopt::Parser::from_env(), &mut streams, &clock))
}
