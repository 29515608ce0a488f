//! Packages with a compiled form for an accelerator, through the plug-in for Rockchip's NPUs, on a MOCK of the vendor's library that
//! we wrote from its documented interface (`npu/mock_rknnrt.c`): every check of the gate, and what each says. Whether the real
//! library behaves so is not shown here.

#![allow(clippy::unwrap_used, reason = "tests may panic, and so may what only they use")]

mod support;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ocelli::agent::{Accelerators, Loaded, Misfit, ModelSettings, load};
use ocelli::clock::{Clock, SystemClock};
use ocelli::inference::WorkerSettings;
use ocelli::inference::session::WorkerReport;
use ocelli::model::Sha256;
use ocelli::processor::Processor;
use support::agent::project;
use support::plugin;

/// A package beside the fixture, with a compiled form of its model.
struct Packed {
    folder: tempfile::TempDir,
}

/// What may be other than right.
struct Case {
    /// `target_platform` in the file's own text.
    file_target: &'static str,
    /// `target` in the manifest.
    target: &'static str,
    /// `runtime` in the manifest.
    runtime: &'static str,
    /// Channels, rows, columns, type, scale and zero point of the mock's model.
    mock: &'static str,
    /// Further text at the file's end.
    more: &'static str,
    /// Further keys of the entry.
    keys: &'static str,
    /// Of the plug-in.
    options: &'static [(&'static str, &'static str)],
}

const RIGHT: Case = Case {
    file_target: "rk3588",
    target: "rk3588",
    runtime: ">=2.3.0, <3",
    mock: "3 8 8 0 1 0",
    more: "",
    keys: "",
    options: &[],
};

/// 8-bit tensors in the device's own memory and order.
const NATIVE: Case = Case {
    mock: "3 8 8 2 0.0078125 -1",
    keys: "io = [\
        { tensor = \"input\", element = \"i8\", scale = 0.0078125, zero_point = -1, layout = \"channels-last\" }, \
        { tensor = \"means\", element = \"i8\", scale = 0.0078125, zero_point = -1 }]",
    options: &[("io", "native")],
    ..RIGHT
};

impl Packed {
    fn new(case: &Case) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fixture = project("tests/fixtures/npu/mean-classifier");
        copy(&fixture, folder.path());
        let Case { file_target, mock, more, .. } = case;
        let mut file = b"RKNN\0\0\0\0".to_vec();
        file.resize(256, 7);
        let text = format!(
            "{{\"version\":\"2.5.0\",\"target_platform\":[\"{file_target}\"],\"mock\":\"{mock}\"{more}}}"
        );
        file.extend(text.bytes());
        std::fs::write(folder.path().join("model.rknn"), &file).unwrap();
        let path = folder.path().join("manifest.toml");
        let mut manifest = std::fs::read_to_string(&path).unwrap();
        let (digest, Case { target, runtime, keys, .. }) = (Sha256::of(&file), case);
        write!(
            manifest,
            "[[delegate]]\nkind = \"rknn\"\nfile = \"model.rknn\"\nsha256 = \"{digest}\"\ntarget = \"{target}\"\n\
             toolchain = \"rknn-toolkit2 2.5.0\"\nruntime = \"{runtime}\"\n{keys}\n"
        )
        .unwrap();
        std::fs::write(path, manifest).unwrap();
        Self { folder }
    }

    /// As the agent loads it, on an RK3588 by the plug-in's options.
    fn settings(&self, case: &Case, misfit: Misfit) -> ModelSettings {
        let mut settings = WorkerSettings::new("rknn", plugin::library("rknn"));
        settings.program = plugin::worker();
        let library = mock();
        let options = [("library", library.to_str().unwrap()), ("target", "rk3588")];
        for (key, value) in options.iter().chain(case.options) {
            settings.options.insert((*key).to_owned(), (*value).to_owned());
        }
        ModelSettings {
            path: self.folder.path().to_owned(),
            delegates: vec!["rknn".to_owned(), "int8".to_owned()],
            profile: None,
            processor: Processor::default(),
            deadline: Duration::from_secs(60),
            accelerators: Accelerators {
                plugins: vec![settings],
                misfit,
                ..Accelerators::default()
            },
        }
    }

    fn load(&self, case: &Case, misfit: Misfit) -> Result<(Loaded, Option<WorkerReport>), String> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let settings = self.settings(case, misfit);
        let loaded = load(&settings, &clock).map_err(|error| error.to_string())?;
        let worker = loaded.watch.report().segments.remove(0).workers.into_iter().next();
        Ok((loaded, worker))
    }
}

fn mock() -> PathBuf {
    plugin::compiled("tests/npu/mock_rknnrt.c")
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn a_compiled_model_passes_the_gate_and_serves() {
    for (what, case) in [("floats", RIGHT), ("native", NATIVE)] {
        let packed = Packed::new(&case);
        let (loaded, worker) = packed.load(&case, Misfit::Refuse).unwrap();
        let worker = worker.unwrap();
        assert_eq!((worker.state, worker.counts.starts), ("ready", 1), "{what}");
        assert_eq!(loaded.detector.backend(), ["rknn"], "{what}");
    }
}

/// Each misfit is named: refused where the package is an update, run by another delegate at the start.
#[test]
fn what_does_not_fit_is_named_and_does_not_serve() {
    let cases = [
        (
            "manifest for another chip",
            Case { target: "rk3566", ..RIGHT },
            &["rk3566", "here is rk3588"][..],
        ),
        (
            "file for another chip",
            Case { file_target: "rk3566", ..RIGHT },
            &["compiled for rk3566", "2.5.0", "this is rk3588"],
        ),
        (
            "newer runtime",
            Case { runtime: ">=3.0.0", ..RIGHT },
            &["runtime version >=3.0.0", "here is 2.3.2", "driver 0.9.8"],
        ),
        ("damaged", Case { mock: "nothing", ..RIGHT }, &["rknn_init", "damaged"]),
        ("no NPU", Case { more: ",\"answer\":-3", ..RIGHT }, &["finds no NPU", "rknpu"]),
        ("another driver", Case { more: ",\"answer\":-10", ..RIGHT }, &["another driver"]),
        ("loads, and fails at the first run", Case { more: ",\"run\":-1", ..RIGHT }, &["rknn_run"]),
        (
            "another size",
            Case { mock: "3 8 4 0 1 0", ..RIGHT },
            &["tensor `input`", "shape is [1, 3, 8, 4]"],
        ),
        (
            "another scale",
            Case { mock: "3 8 8 2 0.01 -1", ..NATIVE },
            &["tensor `input`", "0.01 around -1", "manifest's 0.0078125"],
        ),
        ("unlisted integers", Case { keys: "", ..NATIVE }, &["tensor `input`", "type number is 3"]),
        ("coarse answers", Case { mock: "3 8 8 2 0.4 0", ..RIGHT }, &["an answer is off by"]),
    ];
    let mut wrong = Vec::new();
    for (what, case, expected) in cases {
        let packed = Packed::new(&case);
        match packed.load(&case, Misfit::Refuse) {
            Ok((_, worker)) => wrong.push(format!("{what}: serves: {worker:?}")),
            Err(error) => {
                let missing = expected.iter().filter(|text| !error.contains(**text));
                wrong.extend(missing.map(|text| format!("{what}: {text:?} is not in {error:?}")));
                if !error.contains("mean-classifier 0.1.0 does not fit the accelerator rknn") {
                    wrong.push(format!("{what}: {error}"));
                }
            }
        }
        match packed.load(&case, Misfit::StandIn) {
            Ok((loaded, _)) if loaded.detector.backend() == ["tract"] => {}
            Ok((loaded, _)) => {
                wrong.push(format!("{what}: runs on {:?}", loaded.detector.backend()))
            }
            Err(error) => wrong.push(format!("{what}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_tolerance_of_the_package_comes_before_the_devices() {
    let case =
        Case { mock: "3 8 8 2 0.02 0", keys: "tolerance = { steps = 1, share = 0.001 }", ..RIGHT };
    let error = Packed::new(&case).load(&case, Misfit::Refuse).map(|_| ()).unwrap_err();
    assert!(error.contains("an answer is off by"), "{error}");
    let case = Case { keys: "", ..case };
    assert!(Packed::new(&case).load(&case, Misfit::Refuse).is_ok());
}

#[test]
fn delegates_are_chosen_by_measurement_once() {
    let packed = Packed::new(&RIGHT);
    let store = tempfile::tempdir().unwrap();
    let profile = store.path().join("delegates.json");
    let mut settings = packed.settings(&RIGHT, Misfit::Refuse);
    settings.profile = Some(profile.clone());
    // The order of the list does not count.
    settings.delegates = vec!["int8".to_owned(), "rknn".to_owned()];
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let backend =
        |settings: &ModelSettings| load(settings, &clock).unwrap().detector.backend().to_vec();
    assert_eq!(backend(&settings), ["rknn"]);
    let first = std::fs::read_to_string(&profile).unwrap();
    assert!(first.contains("\"delegate\": \"rknn\""), "{first}");
    // Kept: figures of another run would differ.
    let marked = first.replace("\"median_us\": ", "\"median_us\": 77");
    std::fs::write(&profile, &marked).unwrap();
    assert_eq!(backend(&settings), ["rknn"]);
    assert_eq!(std::fs::read_to_string(&profile).unwrap(), marked);
    // Another plug-in, here another option of it: measured anew.
    let plugin = &mut settings.accelerators.plugins[0];
    plugin.options.insert("cores".to_owned(), "7".to_owned());
    assert_eq!(backend(&settings), ["rknn"]);
    assert_ne!(std::fs::read_to_string(&profile).unwrap(), marked);
}

#[test]
fn a_library_that_is_not_rockchips_is_told() {
    let mut settings = WorkerSettings::new("rknn", plugin::library("rknn"));
    settings.program = plugin::worker();
    settings.options.insert("target".to_owned(), "rk3588".to_owned());
    for (library, expected) in [
        ("libm.so.6", "it lacks: rknn_init"),
        ("/nowhere/librknnrt.so", "cannot open Rockchip's runtime"),
    ] {
        settings.options.insert("library".to_owned(), library.to_owned());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let plugins = [settings.clone()];
        let delegate = ocelli::inference::delegates_with(&["rknn".to_owned()], &plugins, &clock);
        let error = delegate[0].probe().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
