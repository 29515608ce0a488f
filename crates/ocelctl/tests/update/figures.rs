//! What an update costs: bytes on the wire for the whole model and for a new head of it, and many devices at once.

use std::ops::Range;
use std::path::Path;

use ocelli_protocol::model_state::Trust;

use super::site::{MODEL, ONLINE, PATIENCE, Site, ok, ok_with, update_section};
use super::support::agent::{Agent, Setup, project};
use super::support::proxy::Proxy;
use super::support::{now, wait_until};

const CLASSIFIER: &str = "efficientnet-lite0";
/// A new head must cost at most this part of the whole.
const MOST_FOR_A_HEAD: f64 = 0.35;

/// Fields of a protobuf message: number, and where the content of those with a length lies.
fn fields(bytes: &[u8], within: Range<usize>) -> Vec<(u64, Range<usize>)> {
    let (mut at, mut found) = (within.start, Vec::new());
    let varint = |at: &mut usize| {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[*at];
            *at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    };
    while at < within.end {
        let key = varint(&mut at);
        match key & 7 {
            0 => drop(varint(&mut at)),
            1 => at += 8,
            5 => at += 4,
            2 => {
                let length = varint(&mut at) as usize;
                found.push((key >> 3, at..at + length));
                at += length;
            }
            kind => panic!("no ONNX file has wire type {kind}"),
        }
    }
    found
}

/// Changes every weight of the largest tensor by one: a classifier's last layer.
fn change_head(model: &mut [u8]) -> usize {
    let part = |whole: Range<usize>, number| {
        let all = fields(model, whole).into_iter();
        all.filter(move |(found, _)| *found == number).map(|(_, range)| range).collect::<Vec<_>>()
    };
    // ModelProto.graph, GraphProto.initializer, TensorProto.raw_data
    let graph = part(0..model.len(), 7).remove(0);
    let weights = part(graph, 5).into_iter().flat_map(|tensor| part(tensor, 9));
    let head = weights.max_by_key(ExactSizeIterator::len).unwrap();
    for weight in &mut model[head.clone()] {
        *weight ^= 1;
    }
    head.len()
}

/// The classifier under another version; `head` makes another last layer.
fn classifier(site: &Site, version: &str, head: bool) -> u64 {
    let from = project("models").join(CLASSIFIER);
    let folder = format!("classifier-{version}");
    let to = site.path().join(&folder);
    copy(&from, &to);
    let manifest = std::fs::read_to_string(from.join("manifest.toml")).unwrap();
    let budget = "\n[budget]\nlatency_p90_ms = 60000.0\n";
    let manifest = manifest.replace("version = \"1.0.0\"", &format!("version = \"{version}\""));
    std::fs::write(to.join("manifest.toml"), manifest + budget).unwrap();
    let mut model = std::fs::read(from.join("model.onnx")).unwrap();
    if head {
        change_head(&mut model);
    }
    std::fs::write(to.join("model.onnx"), &model).unwrap();
    ok_with(site.path(), &["repo", "add", &folder], &["releases"]);
    ok_with(site.path(), &["repo", "rollout", CLASSIFIER, version], &ONLINE);
    let tar = format!("{CLASSIFIER}-{version}.tar");
    let released = site.path().join("repo/targets/releases").join(CLASSIFIER);
    let mut files = std::fs::read_dir(released).unwrap().map(|entry| entry.unwrap());
    let file = files.find(|file| file.file_name().to_string_lossy().ends_with(&tar)).unwrap();
    file.metadata().unwrap().len()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let place = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &place);
        } else {
            std::fs::copy(&path, place).unwrap();
        }
    }
}

/// Bytes that a push wrote.
fn written(told: &str) -> u64 {
    let line = told.lines().last().unwrap();
    let (before, _) = line.split_once(" bytes;").unwrap_or_else(|| panic!("{told}"));
    before.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_new_head_costs_a_fraction_of_the_model_to_push() {
    let site = Site::new();
    let whole = classifier(&site, "1.1.0", false);
    assert!(written(&site.push()) >= whole);
    classifier(&site, "1.2.0", true);
    let head = written(&site.push());
    let part = head as f64 / whole as f64;
    println!("pushed: whole {whole} bytes, new head {head} bytes, {:.1} %", part * 100.0);
    assert!(part <= MOST_FOR_A_HEAD, "{head} of {whole} bytes");
}

#[test]
#[ignore = "runs a large model for minutes: make test-updates"]
fn a_device_fetches_a_new_head_only() {
    let site = Site::new();
    let proxy = Proxy::start(site.broker.port);
    let mut setup = Setup::new(site.path(), proxy.port);
    setup.model = project("models").join(CLASSIFIER);
    setup.cameras = vec![("front", setup.model.join("golden/camera.jpg"))];
    setup.fps = 1.0;
    setup.mqtt = update_section(site.path()).replace(MODEL, CLASSIFIER);
    let agent = setup.start();
    site.watcher.wait_confirmed("1.0.0", &agent);
    let cost = |version: &str, head: bool| {
        let length = classifier(&site, version, head);
        let (before, began) = (proxy.passed(), now());
        site.push();
        site.watcher.wait_confirmed(version, &agent);
        let (bytes, took) = (proxy.passed() - before, (now() - began).as_secs_f32());
        println!(
            "{version}: package {length} bytes, {bytes} on the wire, {took:.1} s from push to confirmed"
        );
        bytes as f64
    };
    let whole = cost("1.1.0", false);
    let head = cost("1.2.0", true);
    println!("new head: {:.1} % of the whole", head / whole * 100.0);
    assert!(head / whole <= MOST_FOR_A_HEAD, "{head} of {whole} bytes");
    agent.terminate();
}

#[test]
fn many_devices_update_at_once() {
    let wanted = std::env::var("OCELLI_FLEET").ok().and_then(|text| text.parse().ok());
    let fleet: usize = wanted.unwrap_or(5);
    let site = Site::new();
    let proxy = Proxy::start(site.broker.port);
    let names: Vec<String> = (1..=fleet).map(|number| format!("dock-{number}")).collect();
    let start = |name: &String| {
        let folder = site.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let mut setup = Setup::new(&folder, proxy.port);
        setup.id.clone_from(name);
        setup.fps = 2.0;
        setup.mqtt = update_section(site.path());
        setup.start()
    };
    let agents: Vec<Agent> = names.iter().map(start).collect();
    let all_run = |version: &str| {
        names.iter().all(|name| {
            site.watcher.model_of(name).is_some_and(|model| {
                model.running.version == version && model.running.state == Trust::Confirmed
            })
        })
    };
    assert!(wait_until(PATIENCE, || all_run("0.1.0")), "{}", agents[0].log());
    site.add("0.2.0", |_| {});
    site.roll_out("0.2.0", 1);
    let (before, began) = (proxy.passed(), now());
    site.push();
    let limit = PATIENCE.max(std::time::Duration::from_secs(20 * fleet as u64));
    let came = wait_until(limit, || all_run("0.2.0"));
    let states: Vec<_> = names.iter().map(|name| site.watcher.model_of(name)).collect();
    assert!(came, "{states:#?}");
    let (bytes, took) = (proxy.passed() - before, (now() - began).as_secs_f32());
    println!(
        "{fleet} devices on one broker: {took:.1} s from push to all confirmed, {bytes} bytes on the wire"
    );
}

#[test]
#[ignore = "needs python-tuf in the interpreter that OCELLI_PYTHON_TUF names: make test-updates"]
fn python_tuf_reads_what_ocelctl_wrote() {
    let python = std::env::var_os("OCELLI_PYTHON_TUF").expect("OCELLI_PYTHON_TUF names a Python");
    let site = Site::new();
    site.add("0.2.0", |_| {});
    site.roll_out("0.2.0", 1);
    let rotation =
        ["repo", "rotate", "timestamp", "--add", "keys/next.pub", "--key", "keys/root.key"];
    ok(site.path(), &["keys", "new", "keys/next"]);
    ok_with(site.path(), &rotation, &ONLINE);
    let release = format!("releases/{MODEL}/{MODEL}-0.2.0.tar");
    let tar = find(&site.path().join("repo/targets/releases"), ".tar");
    let rollout = find(&site.path().join("repo/targets/rollout"), ".json");
    let status = std::process::Command::new(python)
        .arg(project("crates/tuf/tests/interop/read.py"))
        .arg(site.path().join("repo"))
        .args([release, format!("@{tar}"), format!("rollout/{MODEL}.json"), format!("@{rollout}")])
        .status();
    assert!(status.unwrap().success());
}

/// The newest file below a folder whose name ends so.
fn find(folder: &Path, end: &str) -> String {
    let mut open = vec![folder.to_owned()];
    let mut found = Vec::new();
    while let Some(inner) = open.pop() {
        for entry in std::fs::read_dir(inner).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().ends_with(end) {
                found.push((path.metadata().unwrap().modified().unwrap(), path));
            }
        }
    }
    found.sort();
    found.pop().unwrap().1.display().to_string()
}
