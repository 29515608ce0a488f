//! Data flows one way, and foreign crates stay where they belong: the import table of the agent, held by a test.
//!
//! A module imports only itself and modules listed before it. To change the table, change the design and say why
//! in the same commit.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules of `src/`, lowest first; `frame`, `tensor` and `vision` are the package `ocelli-vision`. `A` may name `B` in a path only when `B` stands before `A`.
const TABLE: &[&str] = &[
    "clock",
    "file",
    "processor",
    "telemetry",
    "frame",
    "detection",
    "tensor",
    "model",
    "camera",
    "vision",
    "inference",
    "store",
    "mqtt",
    "report",
    "update",
    "board",
    "pipeline",
    "agent",
    "config",
    "cli",
];

/// Rows of one level that must not name each other although the order would allow it.
const FORBIDDEN: &[(&str, &str)] = &[
    ("inference", "vision"),
    ("inference", "camera"),
    ("vision", "camera"),
    ("camera", "model"),
    ("mqtt", "store"),
    ("board", "update"),
    ("board", "mqtt"),
    ("agent", "cli"),
];

/// Foreign crates, and the only places of `src/` that may name them.
const CONFINED: &[(&str, &[&str])] = &[
    ("tract_core", &["src/inference/tract"]),
    ("prost", &["src/inference/"]),
    ("ocelli_int8", &["src/inference/int8"]),
    ("ocelli_delegate", &["src/inference/npu", "src/inference/mod.rs"]),
    ("zerocopy", &["src/inference/npu"]),
    ("rumqttc", &["src/mqtt/client.rs", "src/mqtt/tls.rs"]),
    ("rustls", &["src/mqtt/tls.rs", "src/mqtt/client.rs"]),
    ("rusqlite", &["src/store/"]),
    ("linux_embedded_hal", &["src/board/linux.rs"]),
    ("gpio_cdev", &["src/board/linux.rs"]),
    ("embedded_graphics", &["crates/vision/src/annotate.rs"]),
    ("zune_jpeg", &["crates/vision/src/jpeg.rs", "src/camera/jpeg.rs"]),
    ("lexopt", &["src/cli", "src/main.rs"]),
    ("dlmalloc", &["src/heap.rs"]),
    ("nix", &["src/processor.rs"]),
    ("toml", &["src/config", "src/model/manifest.rs"]),
    ("sd_notify", &["src/agent"]),
];

#[test]
fn modules_import_only_what_stands_above_them() {
    let rank: BTreeMap<_, _> = TABLE.iter().enumerate().map(|(rank, name)| (*name, rank)).collect();
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let module = module_of(&path);
        let Some(own) = rank.get(module.as_str()) else {
            assert!(
                matches!(module.as_str(), "lib" | "main" | "heap"),
                "{module} is not in the table"
            );
            continue;
        };
        for named in crate_paths(&text) {
            let allowed = rank.get(named.as_str()).is_some_and(|other| other <= own)
                && !FORBIDDEN.contains(&(module.as_str(), named.as_str()));
            if rank.contains_key(named.as_str()) && !allowed {
                wrong.push(format!("{} names crate::{named}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn foreign_crates_stay_in_their_places() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src").into_iter().chain(sources("crates/vision/src")) {
        for (name, places) in CONFINED {
            let here = path.to_string_lossy().replace('\\', "/");
            let named = code_lines(&text).any(|line| names_crate(line, name));
            if named && !places.iter().any(|place| here.contains(place)) {
                wrong.push(format!("{here} names {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_code_stays_on_its_islands() {
    const ISLANDS: &[&str] = &[
        "src/camera/v4l2",
        // The allocator of the device binary.
        "src/heap.rs",
        "src/update/limits.rs",
        "crates/int8/src/kernels",
        "crates/int8/tests/allocation.rs",
        // Socket pair with descriptors and sealed memory files, for which std has no safe form.
        "crates/delegate/src/link.rs",
        // The C ABI of plug-ins, and the limits of the process that loads them: never linked into the agent.
        "crates/npu-worker/src/host",
        "crates/npu-worker/src/fence.rs",
    ];
    let mut wrong = Vec::new();
    for (path, text) in sources("src").into_iter().chain(sources("crates")) {
        let here = path.to_string_lossy().into_owned();
        let uses =
            code_lines(&text).any(|line| line.contains("unsafe {") || line.contains("unsafe fn"));
        if uses && !ISLANDS.iter().any(|island| here.contains(island)) {
            wrong.push(here);
        }
    }
    assert!(wrong.is_empty(), "unsafe outside its islands: {wrong:#?}");
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<_> = sources("src")
        .into_iter()
        .chain(sources("crates"))
        .chain(sources("tests"))
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "files without a //! line at the top: {silent:#?}");
}

/// Each row of the tables of attacks in `docs/threat-model.md` is `| attack | error | test |`.
#[test]
fn every_attack_of_the_threat_model_has_a_test_that_speaks_of_its_error() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/threat-model.md")).unwrap();
    let (mut rows, mut wrong) = (0, Vec::new());
    for line in text.lines().filter(|line| line.contains(".rs` `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", attack, error, test, ""] = cells[..] else {
            panic!("not three cells: {line}");
        };
        let [file, name] = quoted(test)[..] else { panic!("no file and test: {line}") };
        let source = std::fs::read_to_string(root.join(file)).unwrap_or_default();
        let body = source.split(&format!("fn {name}()")).nth(1).unwrap_or_default();
        let body = body.split("\n}\n").next().unwrap_or_default().to_lowercase();
        let spoken = quoted(error).into_iter().all(|error| speaks_of(&body, error));
        if body.is_empty() || !spoken {
            wrong.push(format!("{attack}: {file} {name}: {error}"));
        }
        rows += 1;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(rows > 50, "{rows} rows");
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// An error variant by its last word, any other error by a text of the test that is part of it.
fn speaks_of(body: &str, error: &str) -> bool {
    if error.chars().all(char::is_alphanumeric) {
        let last = error.rfind(char::is_uppercase).unwrap_or_default();
        return body.contains(&error[last..].to_lowercase());
    }
    let error = error.to_lowercase();
    let texts = body.split('"').skip(1).step_by(2);
    texts.filter(|text| text.len() >= 5).any(|text| error.contains(text))
}

/// All Rust files below a folder of the repository, with their text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("the folder exists") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("UTF-8 source");
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {folder}");
    found
}

/// First path element below `src/`.
fn module_of(path: &Path) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let below = path.strip_prefix(root).expect("below src");
    let first =
        below.components().next().expect("a file").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim_start).filter(|line| !line.starts_with("//"))
}

/// Every `X` of a `crate::X` in code, also where a `use` goes over several lines.
fn crate_paths(text: &str) -> Vec<String> {
    let code = code_lines(text).collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    for tail in code.split("crate::").skip(1) {
        if let Some(list) = tail.strip_prefix('{') {
            let list = list.split_once("};").map_or(list, |(list, _)| list);
            let names =
                list.split(['{', '}', ',']).filter_map(|part| part.trim().split("::").next());
            found.extend(names.filter(|name| !name.is_empty()).map(str::to_owned));
        } else {
            let end = tail.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(tail.len());
            found.push(tail[..end].to_owned());
        }
    }
    found
}

/// Whether a line of code has `name::` or `use name` as a whole word.
fn names_crate(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = &line[at + name.len()..];
        let word = before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':');
        word && (after.starts_with("::") || (line.starts_with("use ") && after.starts_with(';')))
    })
}

#[test]
fn the_checks_see_what_they_look_for() {
    assert_eq!(crate_paths("use crate::mqtt::Client;"), ["mqtt"]);
    assert_eq!(crate_paths("use crate::{clock::Clock, frame};"), ["clock", "frame"]);
    assert_eq!(crate_paths("use crate::{\n    clock,\n    frame,\n};"), ["clock", "frame"]);
    assert!(crate_paths("// crate::mqtt").is_empty());
    assert!(names_crate("let x = rumqttc::QoS::AtLeastOnce;", "rumqttc"));
    assert!(!names_crate("let x = my_rumqttc::QoS;", "rumqttc"));
}
