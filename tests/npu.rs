//! Accelerators behind plug-ins: the reference plug-in runs a real model in a worker process, and everything that vendors' code
//! can do to that process is done to it. The plug-in is compiled from C here; the worker is the workspace's binary.

#![allow(clippy::unwrap_used, reason = "tests may panic, and so may what only they use")]

mod support;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ocelli::clock::{Clock, SystemClock};
use ocelli::inference::session::{SegmentReport, WorkerReport};
use ocelli::inference::{Sandbox, Session, SessionOptions, WorkerSettings, delegates_with};
use ocelli::tensor::{Tensor, TensorBuffer, TensorView};

/// One frame at 30 a second.
const FRAME: Duration = Duration::from_millis(33);
/// What a frame may take when a worker is given up: its deadline, the stand-in, and a busy machine.
const BUSY: Duration = Duration::from_secs(10);

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn plugin(name: &str) -> PathBuf {
    support::plugin::library(name)
}

fn reference(options: &[(&str, &str)]) -> WorkerSettings {
    let mut settings = WorkerSettings::new("ref", plugin("ref"));
    settings.program = support::plugin::worker();
    for (key, value) in options {
        settings.options.insert((*key).to_owned(), (*value).to_owned());
    }
    settings
}

fn model() -> Vec<u8> {
    std::fs::read(project("tests/fixtures/tiny-classifier/model.onnx")).unwrap()
}

fn session(settings: &WorkerSettings, options: SessionOptions) -> Session {
    let clock = clock();
    let names = [settings.name.clone(), "int8".to_owned()];
    let delegates = delegates_with(&names, std::slice::from_ref(settings), &clock);
    Session::load(&model(), &delegates, options, clock).unwrap()
}

/// A picture of `number`, and what int8 says of it.
struct Expected {
    session: Session,
    input: Vec<f32>,
    shape: Vec<usize>,
}

impl Expected {
    fn new() -> Self {
        let clock = clock();
        let delegates = delegates_with(&["int8".to_owned()], &[], &clock);
        let session =
            Session::load(&model(), &delegates, SessionOptions::default(), clock).unwrap();
        let spec = session.inputs()[0].clone();
        let input = (0..spec.len()).map(|place| (place % 251) as f32 / 64.0 - 2.0).collect();
        Self { session, input, shape: spec.shape }
    }

    fn input(&self) -> (Vec<usize>, TensorBuffer) {
        (self.shape.clone(), TensorBuffer::F32(self.input.clone()))
    }

    fn output(&mut self) -> Vec<f32> {
        let (shape, values) = self.input();
        let view = TensorView { shape: &shape, values: values.as_values() };
        self.session.run(&[view], support::now() + BUSY).unwrap();
        self.session.output(0).values.as_f32().unwrap().to_vec()
    }
}

fn run(session: &mut Session, deadline: Duration) -> (Vec<f32>, Duration) {
    let expected = Expected::new();
    run_on(session, &expected, deadline)
}

fn run_on(session: &mut Session, expected: &Expected, deadline: Duration) -> (Vec<f32>, Duration) {
    let (shape, values) = expected.input();
    let view = TensorView { shape: &shape, values: values.as_values() };
    let start = support::now();
    session.run(&[view], start + deadline).unwrap();
    let took = support::now().saturating_duration_since(start);
    (session.output(0).values.as_f32().unwrap().to_vec(), took)
}

fn report(session: &Session) -> (SegmentReport, WorkerReport) {
    let segment = session.report().segments.remove(0);
    let worker = segment.workers.first().cloned().expect("a segment with a worker");
    (segment, worker)
}

fn close(a: &[f32], b: &[f32]) {
    let span = b.iter().fold(0.0_f32, |span, value| span.max(value.abs()));
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(a.len() == b.len() && worst <= 0.03 * span, "{worst} of {span}");
}

#[test]
fn the_reference_runs_the_whole_model_in_its_process() {
    let mut session = session(&reference(&[]), SessionOptions::default());
    let (output, _) = run(&mut session, BUSY);
    close(&output, &Expected::new().output());
    let (segment, worker) = report(&session);
    assert_eq!(segment.delegate, "ref");
    assert_eq!(session.report().segments.len(), 1);
    assert_eq!((worker.state, worker.counts.starts, worker.counts.faults), ("ready", 1, 0));
}

#[test]
fn what_it_does_not_take_runs_in_this_process() {
    let mut session =
        session(&reference(&[("ops", "Conv,Add,QuantizeLinear")]), SessionOptions::default());
    let (output, _) = run(&mut session, BUSY);
    close(&output, &Expected::new().output());
    let names: Vec<_> = session.running().map(str::to_owned).collect();
    assert!(names.len() > 1 && names.contains(&"ref".to_owned()), "{names:?}");
    assert_eq!(names.iter().filter(|name| *name == "ref").count(), 1, "one process: {names:?}");
}

/// Each way of dying, at 30 frames a second: every frame has an answer in its time, and the right one.
#[test]
fn no_frame_is_lost_to_a_fault() {
    let mut expected = Expected::new();
    let right = expected.output();
    let mut wrong = Vec::new();
    for fault in ["segv", "abort", "exit", "hang", "lost", "error", "hog"] {
        let mut settings = reference(&[("fault", fault), ("after", "5")]);
        settings.memory_bytes = 256 << 20;
        let mut session = session(&settings, SessionOptions::default());
        for frame in 0..12 {
            let (output, took) = run_on(&mut session, &expected, FRAME * 3);
            close(&output, &right);
            if took > FRAME * 3 + BUSY {
                wrong.push(format!("{fault}: frame {frame} took {took:?}"));
            }
        }
        let (segment, worker) = report(&session);
        let ended = worker.counts.faults + worker.counts.overruns;
        if ended == 0 || segment.fallbacks == 0 || segment.last_error.is_none() {
            wrong.push(format!("{fault}: {segment:?}"));
        }
        if fault == "hang" && worker.counts.overruns == 0 {
            wrong.push(format!("hang was not an overrun: {worker:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_worker_that_died_comes_back() {
    let settings = reference(&[("fault", "segv"), ("after", "3")]);
    let options = SessionOptions {
        back_off: Duration::from_millis(10),
        quarantine_after: 1000,
        ..SessionOptions::default()
    };
    let mut session = session(&settings, options);
    let expected = Expected::new();
    let restarted = support::wait_until(Duration::from_secs(60), || {
        run_on(&mut session, &expected, BUSY);
        let (_, worker) = report(&session);
        worker.counts.starts >= 4 && worker.counts.faults >= 3
    });
    assert!(restarted, "{:?}", report(&session));
}

/// The kernel's death signal of a parent is one of the thread that started the child: nothing may lean on it.
#[test]
fn a_worker_outlives_the_thread_that_started_it() {
    let load = || session(&reference(&[]), SessionOptions::default());
    let mut session = std::thread::spawn(load).join().unwrap();
    let expected = Expected::new();
    for _ in 0..3 {
        run_on(&mut session, &expected, BUSY);
    }
    let (_, worker) = report(&session);
    assert_eq!((worker.state, worker.counts.starts, worker.counts.faults), ("ready", 1, 0));
}

/// A process that is ended with the test.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.kill().expect("it is ours");
        self.0.wait().expect("it is ours");
    }
}

/// Holds a process as a driver does in whose code it is stuck: killed, it stays.
fn hold(process: &str, folder: &Path) -> Held {
    let program = folder.join("hold");
    let source = project("tests/npu/hold.c");
    let compiled = Command::new("cc").arg(source).arg("-o").arg(&program).status();
    assert!(compiled.expect("cc is there").success());
    let child = Command::new(program).arg(process.trim()).stdout(Stdio::piped()).spawn();
    let mut held = Held(child.unwrap());
    let mut line = String::new();
    BufReader::new(held.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n", "this system does not let a process trace another");
    held
}

#[test]
fn one_that_is_stuck_in_the_kernel_is_given_up_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let id = folder.path().join("id");
    let mut settings = reference(&[("fault", "hang"), ("after", "1")]);
    let note = format!("echo $$ > {}; exec \"$0\"", id.display());
    settings.runner = ["sh", "-c", &note].map(str::to_owned).into();
    let options = SessionOptions { back_off: Duration::ZERO, ..SessionOptions::default() };
    let mut session = session(&settings, options);
    let held = hold(&std::fs::read_to_string(&id).unwrap(), folder.path());
    let expected = Expected::new();
    let right = Expected::new().output();
    run_on(&mut session, &expected, BUSY);
    let mut longest = Duration::ZERO;
    let given_up = support::wait_until(Duration::from_secs(60), || {
        let (output, took) = run_on(&mut session, &expected, FRAME);
        close(&output, &right);
        longest = longest.max(took);
        report(&session).1.state == "gone"
    });
    let (segment, worker) = report(&session);
    assert!(given_up, "{segment:?}");
    assert_eq!((worker.counts.starts, worker.counts.overruns, worker.counts.stuck), (1, 1, 1));
    assert!(segment.last_error.unwrap().contains("does not end"));
    assert!(longest < Duration::from_secs(1), "a frame waited {longest:?}");
    drop(held);
}

#[test]
fn one_that_keeps_failing_is_given_up() {
    let settings = reference(&[("fault", "exit")]);
    let options = SessionOptions {
        back_off: Duration::from_millis(1),
        quarantine_after: 3,
        ..SessionOptions::default()
    };
    let mut session = session(&settings, options);
    let expected = Expected::new();
    let gone = support::wait_until(Duration::from_secs(60), || {
        run_on(&mut session, &expected, BUSY);
        report(&session).1.state == "gone"
    });
    assert!(gone, "{:?}", report(&session));
    let starts = report(&session).1.counts.starts;
    for _ in 0..20 {
        run_on(&mut session, &expected, BUSY);
    }
    assert_eq!(report(&session).1.counts.starts, starts);
    assert_eq!(starts, 3);
}

#[test]
fn garbage_is_found_by_the_cross_check_and_by_the_shadow_run() {
    let expected = Expected::new();
    let right = Expected::new().output();
    let (shape, values) = expected.input();
    let view = TensorView { shape: &shape, values: values.as_values() };

    let mut honest = session(&reference(&[]), SessionOptions::default());
    assert_eq!(honest.cross_check(&[view]).unwrap(), 0);
    assert_eq!(report(&honest).1.state, "ready");

    let mut liar = session(&reference(&[("fault", "garbage")]), SessionOptions::default());
    assert_eq!(liar.cross_check(&[view]).unwrap(), 1);
    assert_eq!(report(&liar).1.state, "gone");
    close(&run_on(&mut liar, &expected, BUSY).0, &right);

    let options = SessionOptions { shadow_every: 4, ..SessionOptions::default() };
    let mut turncoat = session(&reference(&[("fault", "garbage"), ("after", "5")]), options);
    let states: Vec<_> = (0..8)
        .map(|_| {
            run_on(&mut turncoat, &expected, BUSY);
            report(&turncoat).1.state
        })
        .collect();
    assert_eq!(states, ["ready", "ready", "ready", "ready", "ready", "ready", "ready", "gone"]);
    // The frame that showed it has the stand-in's answer.
    close(&run_on(&mut turncoat, &expected, BUSY).0, &right);
}

#[test]
fn other_tensors_than_agreed_are_refused_at_load() {
    let session = session(&reference(&[("fault", "wrong-io")]), SessionOptions::default());
    let (segment, _) = report(&session);
    assert_eq!(segment.delegate, "int8");
    let error = segment.last_error.expect("a reason");
    assert!(error.contains("its size is"), "{error}");
}

#[test]
fn what_is_no_plugin_says_so() {
    let text = project("Cargo.toml");
    let libc = PathBuf::from("libm.so.6");
    let nowhere = PathBuf::from("/nowhere/rknn.so");
    for (path, expected) in [
        (text, "invalid ELF header"),
        (libc, "does not export ocelli_delegate_get_api"),
        (nowhere, "No such file"),
    ] {
        let settings = WorkerSettings { plugin: path, ..reference(&[]) };
        let clock = clock();
        let delegate = delegates_with(&["ref".to_owned()], &[settings], &clock).remove(0);
        let error = delegate.probe().expect_err("not a plug-in").to_string();
        assert!(error.contains(expected), "{error}");
    }
    let delegate = {
        let settings = reference(&[("colour", "red")]);
        delegates_with(&["ref".to_owned()], &[settings], &clock()).remove(0)
    };
    let error = delegate.probe().expect_err("an unknown option").to_string();
    assert!(error.contains("unknown option colour"), "{error}");
    let settings = WorkerSettings { program: "/nowhere/worker".into(), ..reference(&[]) };
    let delegate = delegates_with(&["ref".to_owned()], &[settings], &clock()).remove(0);
    assert!(delegate.probe().unwrap_err().to_string().contains("install the worker"));
}

/// `OCELLI_NPU_RESTARTS` says how often; 1000 in a long run.
#[test]
fn many_restarts_leave_nothing_behind() {
    let count = std::env::var("OCELLI_NPU_RESTARTS").ok().and_then(|text| text.parse().ok());
    let count: usize = count.unwrap_or(50);
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let settings = reference(&[("fault", "exit")]);
    let options = SessionOptions {
        back_off: Duration::ZERO,
        quarantine_after: u32::MAX,
        ..SessionOptions::default()
    };
    let mut session = session(&settings, options);
    let expected = Expected::new();
    let before = descriptors();
    let done = support::wait_until(Duration::from_secs(600), || {
        run_on(&mut session, &expected, BUSY);
        report(&session).1.counts.faults >= count as u64
    });
    assert!(done, "{:?}", report(&session));
    drop(session);
    assert!(descriptors() <= before, "{} descriptors, {before} before", descriptors());
}

#[test]
fn the_example_plugin_runs_its_relu() {
    let mut settings = WorkerSettings::new("relu", plugin("relu"));
    settings.program = support::plugin::worker();
    let clock = clock();
    let delegates = delegates_with(&["relu".to_owned()], &[settings], &clock);
    let onnx = std::fs::read(project("tests/fixtures/relu.onnx")).unwrap();
    let mut session = Session::load(&onnx, &delegates, SessionOptions::default(), clock).unwrap();
    let mut input = Tensor::zeros(session.inputs()[0].clone());
    if let ocelli::tensor::ValuesMut::F32(values) = input.view_mut().values {
        values.copy_from_slice(&[-2.0, -0.5, 0.0, 0.5, 1.0, 3.0]);
    }
    session.run(&[input.view()], support::now() + BUSY).unwrap();
    assert_eq!(session.output(0).values.as_f32().unwrap(), [0.0, 0.0, 0.0, 0.5, 1.0, 3.0]);
    assert_eq!(session.running().collect::<Vec<_>>(), ["relu"]);
}

/// What `tests/npu/burglar.c` says of its attempts, each an errno.
fn attempts(sandbox: Sandbox, folder: &Path) -> String {
    let mut settings =
        WorkerSettings::new("burglar", support::plugin::compiled("tests/npu/burglar.c"));
    settings.program = support::plugin::worker();
    settings.sandbox = sandbox;
    // The worker makes the cache.
    let [outside, cache] = ["outside", "new/cache"].map(|name| folder.join(name));
    std::fs::create_dir_all(&outside).unwrap();
    std::fs::write(outside.join("file"), "of the agent's user").unwrap();
    for (name, folder) in [("outside", &outside), ("cache", &cache)] {
        settings.options.insert(name.to_owned(), folder.to_str().unwrap().to_owned());
    }
    settings.cache_dir = Some(cache);
    let delegate = delegates_with(&["burglar".to_owned()], &[settings], &clock()).remove(0);
    delegate.probe().expect_err("a burglar").to_string()
}

/// The system this runs on has Landlock (Linux 5.13) and seccomp.
#[test]
fn a_plugin_is_fenced_in() {
    let folder = tempfile::tempdir().unwrap();
    let (none, refused, absent) = (0, libc::EPERM, libc::ENOENT);
    let away = libc::EACCES;
    for (sandbox, outside, memory, program, internet, rest) in [
        (Sandbox::Strict, away, away, refused, refused, refused),
        (Sandbox::Files, away, none, absent, none, refused),
    ] {
        let said = attempts(sandbox, folder.path());
        let expected = format!(
            "outside {outside}, cache 0, shared memory {memory}, program {program}, internet {internet}, \
             unix 0, trace {rest}, mount {rest}, ring {rest}, empty {rest}, open up {rest}, signal {rest}, \
             group {rest}, limit {rest}, own 0, x32 {rest}, end"
        );
        assert!(said.contains(&expected), "{sandbox:?}: {said}, expected {expected}");
    }
    let open = attempts(Sandbox::Off, folder.path());
    assert!(
        open.contains(
            "outside 0, cache 0, shared memory 0, program 2, internet 0, unix 0, trace 0"
        ),
        "{open}"
    );
}
