//! Vendors' own libraries behind the plug-ins, fetched by `tests/npu/run.sh`, which runs these tests: Qualcomm's HTP simulator and
//! the CPU provider through ONNX Runtime, and Rockchip's x86 library and files of its toolkit. Never part of `make test`.
//!
//! `OCELLI_ORT` is libonnxruntime.so, `OCELLI_QNN` the folder of onnxruntime-qnn's libraries, `OCELLI_RKNN` librknn_api.so,
//! `OCELLI_RKNN_FILES` a folder with `small.onnx`, `rk3588.rknn` and `rk3566.rknn`.

#![allow(clippy::unwrap_used, reason = "tests may panic, and so may what only they use")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ocelli::clock::{Clock, SystemClock};
use ocelli::inference::session::SegmentReport;
use ocelli::inference::{Blob, Session, SessionOptions, WorkerSettings, delegates_with};
use ocelli::tensor::{Tensor, ValuesMut};
use support::agent::project;
use support::plugin;

/// A simulator on a busy machine takes its time.
const LONG: Duration = Duration::from_secs(300);

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run make test-npu"))
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

fn ort(options: &[(&str, &str)]) -> WorkerSettings {
    let mut settings = WorkerSettings::new("ort", plugin::library("ort"));
    settings.program = plugin::worker();
    settings.patience = LONG;
    // The simulator maps far more than it uses.
    settings.memory_bytes = 0;
    settings.options.insert("library".to_owned(), variable("OCELLI_ORT"));
    for (key, value) in options {
        settings.options.insert((*key).to_owned(), (*value).to_owned());
    }
    settings
}

fn qnn(cache: Option<&Path>, options: &[(&str, &str)]) -> WorkerSettings {
    let folder = PathBuf::from(variable("OCELLI_QNN"));
    let (provider, backend) =
        (folder.join("libonnxruntime_providers_qnn.so"), folder.join("libQnnHtp.so"));
    let own = [
        ("provider", "QNNExecutionProvider"),
        ("provider_library", provider.to_str().unwrap()),
        ("provider.backend_path", backend.to_str().unwrap()),
        // Else the first and the last operator stay on the CPU.
        ("provider.offload_graph_io_quantization", "0"),
        ("simulated", "yes"),
    ];
    let options: Vec<_> = own.iter().chain(options).copied().collect();
    WorkerSettings { cache_dir: cache.map(Path::to_owned), ..ort(&options) }
}

/// EfficientNet-Lite0, quantised: float input and output.
fn classifier() -> Vec<u8> {
    std::fs::read(project("models/efficientnet-lite0/model.onnx")).unwrap()
}

fn session(onnx: &[u8], settings: &WorkerSettings) -> Session {
    let names = [settings.name.clone(), "int8".to_owned()];
    let delegates = delegates_with(&names, std::slice::from_ref(settings), &clock());
    Session::load(onnx, &delegates, SessionOptions::default(), clock()).unwrap()
}

/// The same picture-like values each time.
fn input(session: &Session) -> Tensor {
    let mut input = Tensor::zeros(session.inputs()[0].clone());
    if let ValuesMut::F32(values) = input.view_mut().values {
        let wave = |at: usize| ((at % 224) as f32 / 30.0).sin() + ((at / 224) as f32 / 50.0).cos();
        values.iter_mut().enumerate().for_each(|(at, value)| *value = wave(at));
    }
    input
}

fn run(session: &mut Session) -> Vec<f32> {
    let input = input(session);
    session.run(&[input.view()], support::now() + LONG).unwrap();
    session.output(0).values.as_f32().unwrap().to_vec()
}

/// Largest difference.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn first(values: &[f32]) -> usize {
    (0..values.len()).max_by(|a, b| values[*a].total_cmp(&values[*b])).unwrap()
}

/// Runs, warms up and compares as the agent does before a model serves; what then serves must be right.
fn gate(session: &mut Session) -> SegmentReport {
    let input = input(session);
    session.warm_up(&[input.view()]).unwrap();
    session.cross_check(&[input.view()]).unwrap();
    session.report().segments.remove(0)
}

fn kept(folder: &Path) -> PathBuf {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files = files.filter(|path| path.extension().is_some_and(|e| e == "onnx"));
    files.next().expect("the compiled model is kept")
}

/// The agent's own engine.
fn int8(onnx: &[u8]) -> Session {
    let delegates = delegates_with(&["int8".to_owned()], &[], &clock());
    Session::load(onnx, &delegates, SessionOptions::default(), clock()).unwrap()
}

/// The classifier, whole, on a CPU provider: the answers of the agent's own engine, and the gate lets it pass.
fn classifies(settings: &WorkerSettings) {
    let onnx = classifier();
    let mut session = session(&onnx, settings);
    assert_eq!(session.running().collect::<Vec<_>>(), ["ort"], "{:?}", session.report());
    let found = run(&mut session);
    assert_eq!(first(&found), first(&run(&mut int8(&onnx))));
    assert_eq!(gate(&mut session).delegate, "ort");
}

#[test]
#[ignore = "make test-npu"]
fn the_cpu_provider_runs_the_zoo_classifier() {
    classifies(&ort(&[]));
}

/// Worker, plug-in and ONNX Runtime for aarch64, each of them emulated: `tests/npu/aarch64.sh`. `OCELLI_ORT` is then of that kind,
/// and `OCELLI_AARCH64_RUNNER` are the emulator's words.
#[test]
#[ignore = "make test-npu"]
fn the_cpu_provider_runs_the_zoo_classifier_on_aarch64() {
    let mut settings = ort(&[]);
    settings.program = variable("OCELLI_AARCH64_WORKER").into();
    settings.plugin = variable("OCELLI_AARCH64_PLUGIN").into();
    let runner = variable("OCELLI_AARCH64_RUNNER");
    settings.runner = runner.split(' ').map(str::to_owned).collect();
    classifies(&settings);
}

#[test]
#[ignore = "make test-npu"]
fn the_htp_simulator_runs_the_classifier_wholly_and_reloads_its_blob() {
    let onnx = classifier();
    let folder = tempfile::tempdir().unwrap();
    let settings = qnn(Some(folder.path()), &[]);
    let start = support::now();
    let mut session1 = session(&onnx, &settings);
    let compiled = support::now() - start;
    let report = session1.report().segments;
    assert_eq!((report.len(), report[0].delegate.as_str()), (1, "ort"), "{report:?}");
    let answer = run(&mut session1);
    assert_eq!(
        gate(&mut session1).delegate,
        "ort",
        "{:?}",
        session1.report().segments[0].last_error
    );
    let blob = std::fs::read(kept(folder.path())).unwrap();
    drop(session1);

    let start = support::now();
    let mut session2 = session(&onnx, &settings);
    let reloaded = support::now() - start;
    assert_eq!(run(&mut session2), answer);
    assert_eq!(std::fs::read(kept(folder.path())).unwrap(), blob, "not compiled anew");
    println!("compiled in {compiled:?}, reloaded in {reloaded:?}, blob of {} bytes", blob.len());

    // The same file as a package's [[delegate]]: no compiler at run time.
    let entry = Blob {
        bytes: blob.into(),
        target: "qnnexecutionprovider".to_owned(),
        toolchain: None,
        runtime: None,
        io: Vec::new(),
        closeness: None,
    };
    let packed = WorkerSettings { blobs: vec![entry], ..qnn(None, &[]) };
    let mut session3 = session(&onnx, &packed);
    assert_eq!(run(&mut session3), answer);
    assert_eq!(gate(&mut session3).delegate, "ort");
}

#[test]
#[ignore = "make test-npu"]
fn part_of_a_graph_goes_to_the_simulator_and_the_rest_stays() {
    let onnx = classifier();
    let mut session =
        session(&onnx, &qnn(None, &[("except", "GlobalAveragePool,ReduceMean,Gemm,Softmax")]));
    let running: Vec<_> = session.running().map(str::to_owned).collect();
    assert!(running.len() > 1 && running.contains(&"ort".to_owned()), "{running:?}");
    assert_eq!(first(&run(&mut session)), first(&run(&mut int8(&onnx))));
    println!("segments: {running:?}");
}

/// Whatever is wrong with the kept file: compiled anew. With a package's: the stand-in runs, or what is near it by the gate's measure;
/// never a wrong answer, never a crash here.
#[test]
#[ignore = "make test-npu"]
fn damaged_blobs_do_not_reach_service() {
    let onnx = classifier();
    let folder = tempfile::tempdir().unwrap();
    let settings = qnn(Some(folder.path()), &[]);
    let mut honest = session(&onnx, &settings);
    let right = run(&mut honest);
    drop(honest);
    let file = kept(folder.path());
    let blob = std::fs::read(&file).unwrap();
    let stand_in = run(&mut int8(&onnx));
    println!("the simulator's values are within {} of the stand-in's", apart(&right, &stand_in));
    let damage = |kind: usize| {
        let mut bad = blob.clone();
        match kind {
            0 => bad.truncate(blob.len() / 2),
            1 => bad[..64].fill(0),
            2 => bad.clear(),
            seed => {
                for step in 0..40 {
                    let at = (step * 7919 + seed * 104_729) % bad.len();
                    bad[at] ^= 0x5a;
                }
            }
        }
        bad
    };
    for kind in 0..6 {
        // The kept file: its checksum tells, and it is made anew.
        std::fs::write(&file, damage(kind)).unwrap();
        let mut again = session(&onnx, &settings);
        assert_eq!(run(&mut again), right, "kept file, damage {kind}");
        assert_eq!(std::fs::read(&file).unwrap(), blob, "made anew after damage {kind}");
        // The same in a package whose digest was made from the damaged file: the gate is all there is.
        let entry = Blob {
            bytes: damage(kind).into(),
            target: "qnnexecutionprovider".to_owned(),
            toolchain: None,
            runtime: None,
            io: Vec::new(),
            closeness: None,
        };
        let mut packed = session(&onnx, &WorkerSettings { blobs: vec![entry], ..qnn(None, &[]) });
        let report = gate(&mut packed);
        println!("damage {kind}: {} {:?}", report.delegate, report.last_error);
        let found = run(&mut packed);
        assert_eq!(first(&found), first(&right), "package, damage {kind}");
        // A byte may lie where it does not matter; then the answer is the honest one.
        let expected = if report.delegate == "ort" { &right } else { &stand_in };
        assert_eq!(&found, expected, "package, damage {kind}: {report:?}");
    }
}

fn rknn(target: &str, chip: &str) -> (Vec<u8>, WorkerSettings) {
    let files = PathBuf::from(variable("OCELLI_RKNN_FILES"));
    let mut settings = WorkerSettings::new("rknn", plugin::library("rknn"));
    settings.program = plugin::worker();
    settings.memory_bytes = 0;
    // The x86 library talks to a daemon on the board.
    settings.sandbox = ocelli::inference::Sandbox::Files;
    settings.options.insert("library".to_owned(), variable("OCELLI_RKNN"));
    settings.options.insert("target".to_owned(), chip.to_owned());
    settings.blobs = vec![Blob {
        bytes: std::fs::read(files.join(format!("{target}.rknn"))).unwrap().into(),
        // As if the manifest were wrong: the file itself must tell.
        target: chip.to_owned(),
        toolchain: Some("rknn-toolkit2 2.5.0".to_owned()),
        runtime: None,
        io: Vec::new(),
        closeness: None,
    }];
    (std::fs::read(files.join("small.onnx")).unwrap(), settings)
}

#[test]
#[ignore = "make test-npu"]
fn files_of_rockchips_toolkit_pass_the_chip_check_only_for_their_chip() {
    for (file, chip) in
        [("rk3588", "rk3588"), ("rk3566", "rk3566"), ("rk3566", "rk3588"), ("rk3588", "rk3566")]
    {
        let (onnx, settings) = rknn(file, chip);
        let session = session(&onnx, &settings);
        let segment = session.report().segments.remove(0);
        let error = segment.last_error.expect("there is no NPU here");
        println!("{file} on {chip}: {error}");
        let expected = match file == chip {
            // Past the check, the vendor's library is asked: it has no board to talk to.
            true => "finds no NPU".to_owned(),
            false => format!("compiled for {file} by rknn-toolkit2 2.5.0, this is {chip}"),
        };
        assert!(error.contains(&expected), "{file} on {chip}: {error}");
        assert_ne!(segment.delegate, "rknn");
    }
}
