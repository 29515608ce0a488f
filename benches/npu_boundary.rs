//! What the process boundary costs: the reference plug-in on one small segment, called in this process and through the worker.
//!
//! `cargo bench --bench npu_boundary`, after `cargo build --release -p ocelli-npu-worker`. Prints microseconds: least,
//! median, 99th percentile.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ocelli::clock::{Clock, SystemClock};
use ocelli::inference::{Session, SessionOptions, WorkerSettings, delegates_with};
use ocelli::tensor::Tensor;
use ocelli_delegate::link::memory;
use ocelli_delegate::wire;
use ocelli_npu_worker::host::{Io, Mapping, Plugin};

const RUNS: usize = 20_000;

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let library = folder.path().join("relu.so");
    let built = Command::new("cc")
        .args(["-std=c11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-I"])
        .arg(project("crates/delegate/include"))
        .arg(project("crates/delegate/plugins/relu.c"))
        .arg("-o")
        .arg(&library)
        .status();
    assert!(built.expect("cc is there").success());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let inside = in_process(&library, &*clock);
    let apart = in_worker(&library, &clock);
    print(&inside, &apart);
}

/// Six floats, as in the model of the test.
fn in_process(library: &Path, clock: &dyn Clock) -> Vec<f64> {
    let plugin = Plugin::open(&library.to_string_lossy(), &Default::default()).expect("it loads");
    let tensor = |name: &str| wire::Tensor {
        name: name.to_owned(),
        dtype: 1,
        dims: vec![1, 6],
        n_bytes: 24,
        ..wire::Tensor::default()
    };
    let graph = wire::Graph {
        opset: 13,
        tensors: vec![tensor("x"), tensor("y")],
        nodes: Vec::new(),
        inputs: vec![0],
        outputs: vec![1],
    };
    let what = wire::Compile {
        device: 0,
        blob: false,
        model: wire::Part::default(),
        graph: None,
        toolchain: None,
    };
    let file = || Mapping::new(memory(4096).expect("memory")).expect("a mapping");
    let executable = plugin.compile(&what, Some(&graph), None, file()).expect("it compiles");
    let [inputs, outputs] = executable.io().expect("its tensors");
    let (io, n_bytes) = Io::of(&inputs, &outputs);
    let buffers = Mapping::new(memory(n_bytes).expect("memory")).expect("a mapping");
    times(clock, || executable.run(&buffers, &io, u64::MAX).expect("it runs"))
}

fn in_worker(library: &Path, clock: &Arc<dyn Clock>) -> Vec<f64> {
    let own = std::env::current_exe().expect("this program");
    let mut settings = WorkerSettings::new("relu", library);
    // Benches lie in `deps`, beside which the workspace's binaries are.
    settings.program = own.ancestors().nth(2).expect("a folder").join("ocelli-npu-worker");
    let delegates = delegates_with(&["relu".to_owned()], &[settings], clock);
    let onnx = std::fs::read(project("tests/fixtures/relu.onnx")).expect("the model");
    let options = SessionOptions::default();
    let session = Session::load(&onnx, &delegates, options, Arc::clone(clock));
    let mut session = session.expect("it loads");
    let input = Tensor::zeros(session.inputs()[0].clone());
    let times = times(&**clock, || {
        let deadline = clock.now() + Duration::from_secs(1);
        session.run(&[input.view()], deadline).expect("it runs");
    });
    assert_eq!(session.running().collect::<Vec<_>>(), ["relu"], "{:?}", session.report());
    times
}

/// Sorted, microseconds.
fn times(clock: &dyn Clock, mut run: impl FnMut()) -> Vec<f64> {
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let start = clock.now();
        run();
        times.push(clock.now().saturating_duration_since(start).as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    times
}

fn median(times: &[f64]) -> f64 {
    times[times.len() / 2]
}

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
fn print(inside: &[f64], apart: &[f64]) {
    for (what, times) in [("in this process", inside), ("in the worker", apart)] {
        let late = times[times.len() * 99 / 100];
        println!("{what}: least {:.1}, median {:.1}, p99 {late:.1} µs", times[0], median(times));
    }
    println!("the boundary: {:.1} µs (medians)", median(apart) - median(inside));
}
