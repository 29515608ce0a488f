//! `ocelli run` without a broker, and the starts that are refused.

#![allow(clippy::unwrap_used, reason = "tests may panic, and so may what only they use")]

mod support;

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{ChildStdout, Stdio};

use ocelli_protocol::message::FrameResult;
use support::agent::{Agent, Setup, project};
use support::program;

/// `ocelli run` with its lines.
struct Run {
    agent: Agent,
    lines: Lines<BufReader<ChildStdout>>,
    folder: tempfile::TempDir,
}

impl Run {
    fn start(arguments: &[&str], folder: tempfile::TempDir) -> Self {
        let log = folder.path().join("agent.log");
        let file = std::fs::File::create(&log).unwrap();
        let mut command = program::ocelli();
        command.arg("run").args(arguments).current_dir(project(""));
        let mut agent = Agent::start(command.stdout(Stdio::piped()).stderr(file), log);
        let lines = BufReader::new(agent.child.stdout.take().unwrap()).lines();
        Self { agent, lines, folder }
    }

    /// With the tiny classifier and these cameras.
    fn with_cameras(names: &[&'static str], folder: tempfile::TempDir) -> Self {
        let mut setup = Setup::new(folder.path(), 0);
        setup.broker = None;
        setup.cameras =
            names.iter().map(|name| (*name, folder.path().join(format!("{name}.jpg")))).collect();
        let config = setup.write();
        Self::start(&["--config", config.to_str().unwrap()], folder)
    }

    fn next(&mut self) -> FrameResult {
        let Some(line) = self.lines.next() else { panic!("no more lines:\n{}", self.agent.log()) };
        serde_json::from_str(&line.unwrap()).unwrap()
    }

    fn picture(&self, name: &str) {
        let golden = project("tests/fixtures/tiny-classifier/golden/shapes.jpg");
        // As a whole, so that nobody meets half a picture.
        let part = self.folder.path().join("part");
        std::fs::copy(golden, &part).unwrap();
        std::fs::rename(part, self.folder.path().join(format!("{name}.jpg"))).unwrap();
    }
}

#[test]
fn without_a_configuration_the_sample_pictures_go_round_until_a_signal() {
    let mut run = Run::start(&[], tempfile::tempdir().unwrap());
    let pictures = std::fs::read_dir(project("models/pictures")).unwrap();
    let jpeg = |path: &std::path::PathBuf| path.extension().is_some_and(|kind| kind == "jpg");
    let count = pictures.map(|entry| entry.unwrap().path()).filter(jpeg).count() as u64;
    let mut last = 0;
    let mut seq = 0;
    // The second time round has begun.
    while last <= count {
        let result = run.next();
        seq += 1;
        assert_eq!((result.device.as_str(), result.seq), ("local", seq));
        assert!(result.frame >= last, "frame {} after {last}", result.frame);
        assert_eq!(result.model.name, "nanodet-g-coco");
        last = result.frame;
    }
    assert!(run.agent.is_running());
    run.agent.terminate();
}

#[test]
fn a_single_camera_that_is_away_is_waited_for() {
    let mut run = Run::with_cameras(&["front"], tempfile::tempdir().unwrap());
    run.agent.wait_logged("camera away stream=front");
    assert!(run.agent.is_running());
    run.picture("front");
    assert_eq!(run.next().stream, "front");
    run.agent.terminate();
}

#[test]
fn one_camera_that_is_away_does_not_hold_up_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let golden = project("tests/fixtures/tiny-classifier/golden/shapes.jpg");
    std::fs::copy(golden, folder.path().join("front.jpg")).unwrap();
    let mut run = Run::with_cameras(&["front", "back"], folder);
    run.agent.wait_logged("camera away stream=back");
    assert_eq!(run.next().stream, "front");
    run.picture("back");
    while run.next().stream != "back" {}
    run.agent.terminate();
}

#[test]
fn a_reader_that_has_enough_ends_the_run() {
    let mut run = Run::start(&[], tempfile::tempdir().unwrap());
    run.next();
    drop(run.lines);
    assert_eq!(run.agent.end().code(), Some(0), "{}", run.agent.log());
}

/// A copy of the tiny classifier, changed.
fn changed_model(change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (project("tests/fixtures/tiny-classifier"), folder.path().join("model"));
    std::fs::create_dir_all(to.join("golden")).unwrap();
    for name in
        ["manifest.toml", "labels.txt", "model.onnx", "golden/shapes.jpg", "golden/shapes.json"]
    {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
    change(&to);
    folder
}

fn reverse_scores(model: &Path) {
    let path = model.join("golden/shapes.json");
    let mut classes: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    classes.reverse();
    for (place, class) in classes.iter_mut().enumerate() {
        class["score"] = (0.9 - 0.2 * place as f64).into();
    }
    std::fs::write(path, serde_json::to_vec(&classes).unwrap()).unwrap();
}

#[test]
fn a_model_that_cannot_be_served_ends_the_start_with_one_line() {
    type Change = fn(&Path);
    let cases: [(&str, Change, &[&str]); 4] = [
        ("absent", |model| std::fs::remove_dir_all(model).unwrap(), &["model"]),
        (
            "no onnx",
            |model| std::fs::write(model.join("model.onnx"), b"not a model").unwrap(),
            &["not an ONNX file"],
        ),
        ("cut", |model| cut(&model.join("model.onnx")), &["model"]),
        ("golden", reverse_scores, &["golden picture golden/shapes.jpg"]),
    ];
    let mut wrong = Vec::new();
    for (name, change, says) in cases {
        let folder = changed_model(change);
        let mut setup = Setup::new(folder.path(), 1);
        setup.model = folder.path().join("model");
        setup.cameras =
            vec![("front", project("tests/fixtures/tiny-classifier/golden/shapes.jpg"))];
        let mut agent = setup.start();
        let code = agent.end().code();
        let log = agent.log();
        let told: Vec<_> = log.lines().filter(|line| line.starts_with("ocelli: ")).collect();
        let fits = told.len() == 1 && says.iter().all(|text| told[0].contains(text));
        if code != Some(1) || !fits || log.contains("panicked") {
            wrong.push((name, code, log));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn cut(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}
