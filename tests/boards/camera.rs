//! From the camera to the broker: known pictures go through the kernel's virtual camera, the agent captures and reports them, and
//! the same must arrive as on the host. Memory and time to the first result are measured on the way.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use serde_json::Value;

use crate::machine::{AARCH64, AARCH64_MAX, ARMV7, Board, timed};
use crate::scene::{Scene, agree, findings};
use crate::site::{CAMERA, Site, zoo};
use crate::support::agent::project;

/// Results after a change of the scene that may still show the one before: one on its way, one in the camera's queue, and room.
const LATE: usize = 4;

/// Shows two scenes to a model on a board, and holds every result against what the host finds.
fn camera_to_broker(board: Board, model: &str, pictures: [&str; 2]) -> Figures {
    let mut site = Site::new(&format!("{}-{model}", board.name));
    let package = zoo(model);
    let scenes = pictures.map(Scene::new);
    let expected = scenes.each_ref().map(|scene| scene.expected(&package));
    site.show(&scenes);
    site.configure("[[stream]]\nname = \"front\"\ncamera = \"/dev/video0\"\nfps = 5\n");
    let disk = site.disk(&package, &format!("{CAMERA}service start\n"));

    let (mut machine, wall) = timed(|| {
        let machine = site.boot(board, &disk);
        site.wait_results(0, 1);
        machine
    });
    let uptime = machine.uptime();
    let first = site.wait_results(0, 3);
    assert_shows(&first, &expected, 0);
    machine.console.ask("kill -USR1 $(pidof vivid)");
    let known = site.subscriber.results().len();
    let all = site.wait_results(known, LATE + 2);
    assert_shows(&all[..known], &expected, 0);
    let changed = all[known..].iter().position(|result| agree(findings(result), &expected[1]));
    let changed = changed.unwrap_or_else(|| panic!("the second scene never shows: {all:#?}"));
    assert!(changed <= LATE, "{changed} results after the change still show the first scene");
    assert_shows(&all[known..known + changed], &expected, 0);
    assert_shows(&all[known + changed..], &expected, 1);
    assert_consistent(&all, model);
    let health = site.wait_health("frames", |health| {
        health["frames"]["finished"].as_u64() >= Some(all.len() as u64)
    });
    assert_eq!(health["frames"]["failed"], 0, "{health:#}");
    assert_eq!(health["streams"][0]["camera"], "streaming", "{health:#}");
    let figures = Figures {
        board,
        model: model.to_owned(),
        delegates: all[0]["backend"].to_string(),
        peak_kib: machine.agent_memory("VmHWM"),
        resident_kib: machine.agent_memory("VmRSS"),
        uptime,
        wall: wall.as_secs_f64(),
    };
    figures.note();
    machine.console.ask("service stop");
    figures
}

/// A limit of `cross/limits.toml`, bytes.
fn limit(key: &str) -> u64 {
    let text = std::fs::read_to_string(project("cross/limits.toml")).unwrap();
    let limits: toml::Table = text.parse().unwrap();
    let limit = limits.get(key).and_then(toml::Value::as_integer);
    limit.and_then(|limit| limit.try_into().ok()).unwrap_or_else(|| panic!("no {key} in {text}"))
}

/// Panics unless every result shows that scene.
fn assert_shows(results: &[Value], expected: &[Value; 2], scene: usize) {
    for result in results {
        let found = findings(result);
        assert!(
            agree(found, &expected[scene]),
            "frame {} shows\n{found:#}\nexpected, as on the host:\n{:#}",
            result["frame"],
            expected[scene]
        );
    }
}

/// Panics unless numbers, frames and times go on as they must.
fn assert_consistent(results: &[Value], model: &str) {
    let number = |result: &Value, key: &str| result[key].as_u64().unwrap();
    assert_eq!(number(&results[0], "seq"), 1);
    for pair in results.windows(2) {
        assert_eq!(number(&pair[1], "seq"), number(&pair[0], "seq") + 1, "{pair:#?}");
        assert!(number(&pair[1], "frame") > number(&pair[0], "frame"), "{pair:#?}");
        let times = [0, 1].map(|at| pair[at]["captured_at"].as_str().unwrap().to_owned());
        assert!(times[1] > times[0], "{times:?}");
        assert_eq!(pair[1]["boot_id"], pair[0]["boot_id"]);
    }
    for result in results {
        assert_eq!(result["device"], "dock-3");
        assert_eq!(result["stream"], "front");
        assert_eq!(result["model"]["name"], model);
    }
}

/// What was measured: a row of the table in docs/boards.md.
struct Figures {
    board: Board,
    model: String,
    delegates: String,
    peak_kib: u64,
    resident_kib: u64,
    uptime: f64,
    wall: f64,
}

impl Figures {
    /// Appends to `figures.md`, which `run.sh` shows at the end.
    fn note(&self) {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("boards/figures.md");
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        let mib = |kib: u64| kib as f64 / 1024.0;
        writeln!(
            file,
            "| {} | {} | {} | {:.1} | {:.1} | {:.1} | {:.1} |",
            self.board.name,
            self.model,
            self.delegates.replace(['[', ']', '"'], ""),
            mib(self.peak_kib),
            mib(self.resident_kib),
            self.uptime,
            self.wall
        )
        .unwrap();
    }
}

const CLASSIFIED: [&str; 2] = ["coffee.jpg", "camera.jpg"];
const DETECTED: [&str; 2] = ["coffee.jpg", "astronaut.jpg"];

#[test]
#[ignore = "boots an emulated board: make test-boards"]
fn aarch64_classifies_what_its_camera_sees() {
    let figures = camera_to_broker(AARCH64, "efficientnet-lite0", CLASSIFIED);
    // What `run.sh` builds unless told otherwise is quickly linked, and larger.
    let shipped = std::env::var("OCELLI_BOARDS_PROFILE").is_ok_and(|profile| profile == "release");
    let key =
        if shipped { "peak-rss-classifier-aarch64" } else { "peak-rss-classifier-aarch64-thin" };
    let (peak, limit) = (figures.peak_kib * 1024, limit(key));
    assert!(peak <= limit, "peak RSS is {peak} bytes, limit {limit}");
}

#[test]
#[ignore = "boots an emulated board: make test-boards"]
fn aarch64_detects_what_its_camera_sees() {
    camera_to_broker(AARCH64, "nanodet-g-coco", DETECTED);
}

#[test]
#[ignore = "boots an emulated board: make test-boards"]
fn newest_arm_classifies_what_its_camera_sees() {
    camera_to_broker(AARCH64_MAX, "efficientnet-lite0", CLASSIFIED);
}

#[test]
#[ignore = "boots an emulated board: make test-boards"]
fn armv7_classifies_what_its_camera_sees() {
    camera_to_broker(ARMV7, "efficientnet-lite0", CLASSIFIED);
}

#[test]
#[ignore = "boots an emulated board: make test-boards"]
fn armv7_detects_what_its_camera_sees() {
    camera_to_broker(ARMV7, "nanodet-g-coco", DETECTED);
}
