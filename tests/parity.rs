//! The zoo against onnxruntime and Pillow: the same tensors, and from JPEG to answer. Opt-in: `make test-parity`.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]
#![expect(clippy::print_stdout, reason = "the figures are for docs/inference.md")]

use std::env;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ocelli::clock::{Clock, SystemClock};
use ocelli::inference::{self, Session, SessionOptions};
use ocelli::tensor::{TensorSpec, TensorView, Values};

/// Detection scores from which `models/recipes/evaluate.py` counts.
const SCORE_THRESHOLD: &str = "score_threshold = 0.05";
/// Pictures on which the outputs of each model are compared.
const PICTURES: usize = 8;

fn folder(variable: &str) -> PathBuf {
    let value = env::var_os(variable);
    PathBuf::from(value.unwrap_or_else(|| panic!("set {variable}; see tests/parity/run.sh")))
}

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

fn pictures(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> =
        files.filter(|file| file.extension().is_some_and(|e| e == "jpg")).collect();
    found.sort();
    assert!(!found.is_empty(), "no pictures in {}", folder.display());
    found
}

fn python() -> Command {
    let mut command = Command::new(env::var_os("OCELLI_PYTHON").unwrap_or("python3".into()));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/parity.py"));
    command
}

/// Raw float32 of one tensor; `None` at the end of the stream.
fn read(stream: &mut ChildStdout, spec: &TensorSpec) -> Option<Vec<f32>> {
    let mut bytes = vec![0; spec.len() * 4];
    match stream.read_exact(&mut bytes) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return None,
        Err(error) => panic!("{error}"),
    }
    let (values, _) = bytes.as_chunks::<4>();
    Some(values.iter().map(|value| f32::from_le_bytes(*value)).collect())
}

fn top(values: &[f32]) -> usize {
    let best = values.iter().enumerate().rev().max_by(|(_, a), (_, b)| a.total_cmp(b));
    best.unwrap().0
}

/// What two runtimes made of the same tensors.
#[derive(Debug, Default)]
struct Agreement {
    pictures: usize,
    /// Pictures on which the first output has its maximum at the same place.
    same_top: usize,
    /// Largest difference of each output.
    worst: Vec<f32>,
}

fn compare(name: &str, file: &Path, pictures: &[PathBuf]) -> Agreement {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let onnx = fs::read(file).unwrap();
    let delegates = inference::delegates(&["int8".to_owned()], &clock);
    let mut session =
        Session::load(&onnx, &delegates, SessionOptions::default(), clock.clone()).unwrap();
    let (inputs, outputs) = (session.inputs().to_vec(), session.outputs().to_vec());
    let mut command = python();
    command.arg("tensors").arg(model(name)).arg(file).args(pictures).stdout(Stdio::piped());
    let mut reference = command.spawn().unwrap();
    let mut stream = reference.stdout.take().unwrap();
    let mut found = Agreement { worst: vec![0.0; outputs.len()], ..Agreement::default() };
    while let Some(input) = read(&mut stream, &inputs[0]) {
        let view = TensorView { shape: &inputs[0].shape, values: Values::F32(&input) };
        session.run(&[view], clock.now() + Duration::from_secs(600)).unwrap();
        for (place, spec) in outputs.iter().enumerate() {
            let theirs = read(&mut stream, spec).expect("an output for each input");
            let ours = session.output(place).values.as_f32().expect("float outputs");
            let apart = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs());
            found.worst[place] = apart.fold(found.worst[place], f32::max);
            found.same_top += usize::from(place == 0 && top(ours) == top(&theirs));
        }
        found.pictures += 1;
    }
    assert!(reference.wait().unwrap().success());
    assert_eq!(found.pictures, pictures.len());
    println!(
        "{}: {found:?}, outputs {:?}",
        file.display(),
        outputs.iter().map(|spec| &spec.name).collect::<Vec<_>>()
    );
    found
}

/// Largest difference allowed for each output, in the order of the model.
const DETECTORS: [(&str, &[f32], &[f32]); 2] =
    [("nanodet-g-coco", &[0.0; 3], &[0.0; 3]), ("centerface", &[0.1; 4], &[0.5; 4])];

fn assert_near(name: &str, file: &Path, pictures: &[PathBuf], limits: &[f32]) {
    let found = compare(name, file, pictures);
    let near = found.worst.iter().zip(limits).all(|(worst, limit)| worst <= limit);
    assert!(near && found.worst.len() == limits.len(), "{found:?}, allowed {limits:?}");
}

#[test]
#[ignore = "needs OCELLI_DATA"]
fn classifier_answers_as_onnxruntime_on_the_same_tensors() {
    let pictures = pictures(&folder("OCELLI_DATA").join("imagenet-sample"));
    let name = "efficientnet-lite0";
    let found = compare(name, &model(name).join("model.onnx"), &pictures);
    assert!(found.same_top * 1000 >= found.pictures * 995, "{found:?}");
}

#[test]
#[ignore = "needs OCELLI_DATA"]
fn detectors_give_the_outputs_of_onnxruntime_on_the_same_tensors() {
    let pictures = pictures(&folder("OCELLI_DATA").join("coco-sample/images"));
    for (name, qdq, _) in DETECTORS {
        assert_near(name, &model(name).join("model.onnx"), &pictures[..PICTURES], qdq);
    }
}

#[test]
#[ignore = "needs OCELLI_DATA and OCELLI_QOP_MODELS"]
fn qoperator_files_give_the_outputs_of_onnxruntime_on_the_same_tensors() {
    let pictures = pictures(&folder("OCELLI_DATA").join("coco-sample/images"));
    let models = folder("OCELLI_QOP_MODELS");
    let classifier = [("efficientnet-lite0", [].as_slice(), [0.0].as_slice())];
    for (name, _, limits) in DETECTORS.into_iter().chain(classifier) {
        assert_near(name, &models.join(format!("{name}-qop.onnx")), &pictures[..PICTURES], limits);
    }
}

/// Runs `ocelli infer` on all pictures and has its findings judged.
fn judge(kind: &str, package: &Path, pictures: &[PathBuf], truth: &Path) {
    let scratch = tempfile::tempdir().unwrap();
    let findings = scratch.path().join("findings");
    let status = Command::new(env!("CARGO_BIN_EXE_ocelli"))
        .args(["infer", "--json", "--model"])
        .arg(package)
        .args(pictures)
        .stdout(fs::File::create(&findings).unwrap())
        .status();
    assert!(status.unwrap().success(), "ocelli infer");
    let judged = python().arg(kind).arg(package).arg(findings).arg(truth).status();
    assert!(judged.unwrap().success(), "below the limits, see above");
}

#[test]
#[ignore = "needs OCELLI_DATA"]
fn classifier_answers_as_the_reference_from_jpeg() {
    let truth = folder("OCELLI_DATA").join("imagenet-sample");
    judge("classes", &model("efficientnet-lite0"), &pictures(&truth), &truth);
}

#[test]
#[ignore = "needs OCELLI_DATA"]
fn detector_is_as_precise_as_the_reference_from_jpeg() {
    let truth = folder("OCELLI_DATA").join("coco-sample");
    let (package, scratch) = (model("nanodet-g-coco"), tempfile::tempdir().unwrap());
    let manifest = fs::read_to_string(package.join("manifest.toml")).unwrap();
    let changed = manifest.replace("score_threshold = 0.4\n", &format!("{SCORE_THRESHOLD}\n"));
    assert_ne!(manifest, changed, "the threshold of the shipped package");
    // The golden expectations belong to the shipped threshold.
    let (changed, _) = changed.split_once("[[golden]]").unwrap();
    fs::write(scratch.path().join("manifest.toml"), changed).unwrap();
    for file in ["model.onnx", "labels.txt"] {
        fs::copy(package.join(file), scratch.path().join(file)).unwrap();
    }
    judge("detections", scratch.path(), &pictures(&truth.join("images")), &truth);
}
