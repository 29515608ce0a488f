//! The device binary as its users meet it: help, exit codes, messages, and the shapes of its output.

#![allow(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ocelli::vision::annotate::Picture;
use serde_json::Value;
use support::program;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn ocelli(arguments: &[&str]) -> Output {
    program::ocelli()
        .args(arguments)
        .current_dir(ROOT)
        .env_remove("OCELLI_LOG")
        .output()
        .expect("the binary starts")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn picture(name: &str) -> String {
    format!("models/pictures/{name}.jpg")
}

/// A folder with one file.
fn file(name: &str, content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join(name);
    fs::write(&path, content).expect("a writable folder");
    (folder, path)
}

#[test]
fn help_teaches_at_the_top_and_for_each_command() {
    let top = ocelli(&["--help"]);
    assert_eq!(top.status.code(), Some(0));
    let mut missing = Vec::new();
    for command in ["run", "infer", "check", "bench"] {
        if !out(&top).contains(&format!("\n  {command} ")) {
            missing.push(format!("{command} in the list"));
        }
        let help = ocelli(&[command, "--help"]);
        let text = out(&help);
        let usage = text.contains(&format!("Usage: ocelli {command}"));
        let shown = format!("ocelli {command} ");
        let mut lines = text.lines().skip_while(|line| !line.contains("Example"));
        let example = lines.any(|line| line.starts_with("  ") && line.contains(&shown));
        if help.status.code() != Some(0) || !usage || !example || !help.stderr.is_empty() {
            missing.push(format!("usage and example of {command}: {text}"));
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn version_is_that_of_the_package() {
    let output = ocelli(&["--version"]);
    assert_eq!(out(&output), format!("ocelli {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_use_exits_with_2_and_one_line_that_says_where_to_read_on() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "which command?"),
        (&["fly"], "unknown command \"fly\""),
        (&["--fly"], "--fly"),
        (&["infer"], "which picture?"),
        (&["infer", "--fly", "a.jpg"], "--fly"),
        (&["infer", "a.jpg", "--model"], "--model"),
        (&["infer", "a.jpg", "--delegates", "itn8"], "no delegate \"itn8\""),
        (&["check"], "check what?"),
        (&["check", "a", "b"], "\"b\""),
        (&["run", "extra"], "\"extra\""),
        (&["run", "--config"], "--config"),
    ];
    let mut wrong = Vec::new();
    for (arguments, part) in cases {
        let output = ocelli(arguments);
        let said = err(&output);
        let one_line = said.starts_with("ocelli: ") && said.matches('\n').count() == 1;
        let complete = said.contains(part) && said.contains("--help");
        if output.status.code() != Some(2) || !one_line || !complete || !output.stdout.is_empty() {
            wrong.push(format!("{arguments:?}: {:?} {said}", output.status.code()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_printed_defaults_are_a_valid_configuration() {
    let printed = ocelli(&["check", "--defaults"]);
    assert_eq!(printed.status.code(), Some(0));
    let (_folder, path) = file("ocelli.toml", &printed.stdout);
    let checked = ocelli(&["check", path.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(0), "{}", err(&checked));
    assert!(out(&checked).contains("nanodet-g-coco"), "{}", out(&checked));
    assert!(out(&checked).ends_with("no problem found.\n"), "{}", out(&checked));
}

#[test]
fn check_names_every_problem_of_a_configuration_on_its_own_line() {
    let text = "[mqtt]\nhost = \"b\"\nprot = 1\n[outbox]\nmax_age = 7\n";
    let (_folder, path) = file("ocelli.toml", text);
    let output = ocelli(&["check", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = err(&output);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 3, "{said}");
    assert!(
        lines
            .iter()
            .any(|line| line.contains("line 3: mqtt.prot: unknown key; did you mean \"port\"?")),
        "{said}"
    );
    assert!(
        lines.iter().any(|line| line.contains("line 5: outbox.max_age: expected a time")),
        "{said}"
    );
    assert!(lines.iter().any(|line| line.contains("device.id: missing")), "{said}");
}

#[test]
fn check_looks_at_every_file_that_a_configuration_names() {
    let text = "[device]\nid = \"a\"\n[[stream]]\ncamera = \"absent.jpg\"\n[model]\npath = \"absent\"\n\
        [mqtt]\nhost = \"b\"\ntls = { ca = \"ca.pem\" }\nusername = \"u\"\npassword_file = \"pw\"\n\
        [update]\nrepo = \"factory-a\"\nmodel = \"m\"\nroot = \"1.root.json\"\n";
    let (folder, path) = file("ocelli.toml", text);
    fs::write(folder.path().join("1.root.json"), "{\"signed\":{}}").unwrap();
    fs::write(folder.path().join("ca.pem"), "no certificate").unwrap();
    let output = ocelli(&["check", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = err(&output);
    for part in [
        "stream.camera: ",
        "model.path: ",
        "mqtt.tls: ",
        "mqtt.password_file: ",
        "1.root.json: root.json is malformed",
    ] {
        assert!(said.contains(part), "lacks {part}: {said}");
    }
}

#[test]
fn check_proves_a_package_on_its_golden_pictures() {
    let output = ocelli(&["check", "models/nanodet-g-coco"]);
    let said = out(&output);
    assert_eq!(output.status.code(), Some(0), "{said}{}", err(&output));
    for part in ["finds objects", "416 x 416", "80 (", "int8", "Golden picture", "as expected"] {
        assert!(said.contains(part), "lacks {part:?}: {said}");
    }
    assert!(!said.contains("WRONG"), "{said}");
}

/// A copy of a package with one file changed.
fn changed_package(change: impl FnOnce(&Path)) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let target = to.join(path.file_name().unwrap());
            if path.is_dir() {
                copy(&path, &target);
            } else {
                fs::copy(&path, &target).unwrap();
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy(&Path::new(ROOT).join("models/nanodet-g-coco"), folder.path());
    change(folder.path());
    folder
}

#[test]
fn check_refuses_a_package_and_says_what_is_wrong_with_it() {
    let replace = |folder: &Path, from: &str, to: &str| {
        let path = folder.join("manifest.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replace(from, to)).unwrap();
    };
    let cases: Vec<(&str, tempfile::TempDir, &str)> = vec![
        (
            "unknown key",
            changed_package(|f| replace(f, "iou_threshold", "iou_treshold")),
            "iou_treshold",
        ),
        (
            "no model",
            changed_package(|f| fs::remove_file(f.join("model.onnx")).unwrap()),
            "model.onnx",
        ),
        ("no ONNX", changed_package(|f| fs::write(f.join("model.onnx"), "text").unwrap()), "model"),
        ("labels", changed_package(|f| fs::write(f.join("labels.txt"), "one\n").unwrap()), "label"),
        (
            "threshold",
            changed_package(|f| replace(f, "score_threshold = 0.", "score_threshold = 0.9")),
            "golden picture golden/coffee.jpg",
        ),
    ];
    let mut wrong = Vec::new();
    for (name, folder, part) in cases {
        let output = ocelli(&["check", folder.path().to_str().unwrap()]);
        let said = err(&output);
        if output.status.code() != Some(1)
            || !said.contains(part)
            || said.matches('\n').count() != 1
        {
            wrong.push(format!("{name}: {:?} {said}", output.status.code()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn infer_prints_results_as_on_mqtt_in_the_order_of_the_arguments() {
    let pictures = [picture("chelsea"), picture("astronaut"), picture("horse")];
    let arguments: Vec<_> =
        ["infer", "--json"].into_iter().chain(pictures.iter().map(String::as_str)).collect();
    let output = ocelli(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let lines: Vec<Value> =
        out(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    let labels = ["cat", "person", "horse"];
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(line["v"], 1);
        assert_eq!(line["source"], Value::from(pictures[index].as_str()));
        assert_eq!(line["seq"], index + 1);
        assert_eq!(line["frame"], index + 1);
        assert_eq!(
            (&line["device"], &line["stream"]),
            (&Value::from("local"), &Value::from("infer"))
        );
        assert_eq!(line["model"]["name"], "nanodet-g-coco");
        assert_eq!(line["backend"], serde_json::json!(["int8"]));
        assert!(line["latency_us"]["inference"].as_u64().unwrap() > 0, "{line}");
        let found = line["detections"].as_array().unwrap();
        assert!(found.iter().any(|found| found["label"] == labels[index]), "{line}");
        for found in found {
            let side = |key: &str| found["box"][key].as_f64().unwrap();
            assert!(side("x") >= 0.0 && side("x") + side("w") <= 1.0001, "{found}");
            assert!(side("y") >= 0.0 && side("y") + side("h") <= 1.0001, "{found}");
        }
    }
}

#[test]
fn infer_writes_annotated_pictures_of_the_same_size() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("new/out");
    let source = picture("coffee");
    let output = ocelli(&["infer", &source, "--annotate", to.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(out(&output).contains("cup"), "{}", out(&output));
    let plain = Picture::decode(&fs::read(Path::new(ROOT).join(&source)).unwrap()).unwrap();
    let drawn = Picture::decode(&fs::read(to.join("coffee.jpg")).unwrap()).unwrap();
    assert_eq!((drawn.width, drawn.height), (plain.width, plain.height));
    let differs = |(a, b): (&u8, &u8)| a.abs_diff(*b) > 60;
    let changed = plain.rgb.iter().zip(&drawn.rgb).filter(|pair| differs(*pair)).count();
    assert!(changed > 1000, "only {changed} bytes differ: nothing was drawn");
}

#[test]
fn a_bad_picture_is_told_and_the_others_are_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let whole = fs::read(Path::new(ROOT).join(picture("horse"))).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let bad = [
        write("cut.jpg", &whole[..whole.len() / 2]),
        write("text.jpg", b"not a picture"),
        write("empty.jpg", b""),
        folder.path().join("absent.jpg").to_str().unwrap().to_owned(),
        folder.path().to_str().unwrap().to_owned(),
    ];
    let good = picture("horse");
    let mut arguments = vec!["infer", "--json"];
    arguments.extend(bad.iter().map(String::as_str));
    arguments.push(&good);
    let output = ocelli(&arguments);
    assert_eq!(output.status.code(), Some(1));
    let said = err(&output);
    assert_eq!(said.lines().count(), bad.len(), "{said}");
    for (line, path) in said.lines().zip(&bad) {
        assert!(line.starts_with("ocelli: ") && line.contains(path.as_str()), "{path}: {line}");
    }
    assert!(said.contains("is a folder; name the pictures in it"), "{said}");
    let lines = out(&output);
    assert_eq!(lines.lines().count(), 1, "{lines}");
    let line: Value = serde_json::from_str(lines.trim()).unwrap();
    assert_eq!(line["source"], Value::from(good.as_str()));
    assert_eq!(line["seq"], bad.len() + 1);
}

#[test]
fn a_pipe_where_a_file_belongs_is_refused_and_not_waited_for() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let pipe = pipe.to_str().expect("UTF-8");
    let horse = picture("horse");
    let fixture = "tests/fixtures/tiny-classifier";
    let cases: [&[&str]; 6] = [
        &["check", pipe],
        &["run", "--config", pipe],
        &["infer", &horse, "--model", pipe],
        &["infer", pipe, "--model", fixture],
        &["bench", pipe],
        &["bench", fixture, "--input", pipe],
    ];
    for case in cases {
        // `timeout` ends a program that waits with 124.
        let output = Command::new("timeout")
            .arg("20")
            .args(program::words())
            .args(case)
            .current_dir(ROOT)
            .output()
            .expect("timeout of coreutils");
        let said = err(&output);
        assert_eq!(output.status.code(), Some(1), "{case:?}: {said}");
        assert!(said.contains(pipe) && said.contains("no regular file"), "{case:?}: {said}");
    }
}

#[test]
fn the_configuration_page_shows_every_key_as_the_program_prints_it() {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/configuration.md")).unwrap();
    let printed = out(&ocelli(&["check", "--defaults"]));
    assert!(
        page.contains(&format!("```toml\n{printed}```")),
        "docs/configuration.md is out of date"
    );
}

#[test]
fn every_row_of_the_bad_input_page_that_names_a_command_gets_what_it_says() {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/bad-input.md")).unwrap();
    let mut tried = 0;
    let mut wrong = Vec::new();
    for row in page.lines().filter(|line| line.starts_with("| `[") || line.starts_with("| `device"))
    {
        let cells: Vec<_> =
            row.split(" | ").map(|cell| cell.trim_matches(['|', ' ', '`'])).collect();
        let [config, message] = cells[..] else { panic!("two columns: {row}") };
        let text = config.replace(" ⏎ ", "\n");
        let (_folder, path) = file("ocelli.toml", text);
        let said = err(&ocelli(&["check", path.to_str().unwrap()]));
        tried += 1;
        if !said.contains(message) {
            wrong.push(format!("{row}\n  got: {said}"));
        }
    }
    assert!(tried >= 10, "only {tried} rows");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
