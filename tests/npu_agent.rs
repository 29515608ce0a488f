//! An accelerator in the shipped binary: its crash costs no frame, and shows in results, in `health` and in the audit log.
//!
//! Needs `mosquitto` and a C compiler.

#![allow(clippy::unwrap_used, reason = "tests may panic, and so may what only they use")]

mod support;

use serde_json::Value;
use support::agent::{LONG, Setup};
use support::broker::Broker;
use support::subscriber::Subscriber;
use support::{plugin, wait_until};

/// Details of the rows of a kind in a stopped agent's audit log.
fn audit(setup: &Setup, kind: &str) -> Vec<(String, Value)> {
    let file = setup.store.join("ocelli.db");
    let database = rusqlite::Connection::open(file).unwrap();
    let query = "SELECT subject, detail FROM audit WHERE kind = ?1 ORDER BY number";
    let mut statement = database.prepare(query).unwrap();
    let rows = statement.query_map([kind], |row| {
        let detail: String = row.get(1)?;
        Ok((row.get(0)?, serde_json::from_str(&detail).unwrap()))
    });
    rows.unwrap().collect::<Result<_, _>>().unwrap()
}

/// Each way of failing after 20 good frames at 30 a second, over and over: until two were seen and the process came back.
#[test]
fn no_fault_costs_a_frame_and_each_is_told() {
    // What a process that says nothing costs is the deadline, so that one shows only where it leaves time for the stand-in.
    let (usual, short) = ("2s", "15ms");
    for (fault, deadline, told) in [
        ("segv", usual, "signal"),
        ("abort", usual, "signal"),
        ("exit", usual, "exit"),
        ("error", usual, "asked to fail"),
        ("lost", usual, "asked to lose the device"),
        ("hang", short, "deadline"),
        ("hog", short, "deadline"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let broker = Broker::start();
        let mut setup = Setup::new(folder.path(), broker.port);
        setup.fps = 30.0;
        setup.model_lines = format!("delegates = [\"npu\", \"int8\"]\ndeadline = \"{deadline}\"");
        setup.sections = format!(
            "[npu]\nworker = {:?}\n[[plugin]]\nname = \"npu\"\nlibrary = {:?}\n\
             options = {{ fault = \"{fault}\", after = \"20\" }}\n",
            plugin::worker(),
            plugin::library("ref")
        );
        fails_and_comes_back(&setup, broker.port, told);
    }
}

fn fails_and_comes_back(setup: &Setup, port: u16, told: &str) {
    let subscriber = Subscriber::start(port);
    let agent = setup.start();
    let health = || subscriber.latest("ocelli/device/dock-3/health").unwrap_or_default();
    let worker = |health: &Value| health["delegates"][0]["workers"][0].clone();
    let ended = |health: &Value| {
        let worker = worker(health);
        worker["faults"].as_u64().unwrap_or(0) + worker["overruns"].as_u64().unwrap_or(0)
    };
    let back = || {
        let health = health();
        ended(&health) >= 2 && worker(&health)["starts"].as_u64() >= Some(3)
    };
    assert!(wait_until(LONG, back), "{}\n{}", health(), agent.log());
    let health = health();
    for lost in ["skipped", "failed", "panicked", "undecodable"] {
        assert_eq!(health["frames"][lost], 0, "{lost}: {health}");
    }
    let error = health["delegates"][0]["last_error"].as_str().unwrap();
    assert!(error.contains(told), "{told}: {error}");
    let used = |name: &str| {
        let backend = serde_json::json!([name]);
        subscriber.results().iter().any(|result| result["backend"] == backend)
    };
    assert!(used("npu") && used("int8"));
    agent.terminate();
    let rows = audit(setup, "accelerator");
    assert!(rows.iter().all(|(subject, _)| subject == "npu"), "{rows:?}");
    // Rows are of states that were seen, so two faults in a row may share one.
    let ended = |(_, detail): &(String, Value)| {
        detail["faults"].as_u64().unwrap() + detail["overruns"].as_u64().unwrap()
    };
    let faults: Vec<_> = rows.iter().map(ended).collect();
    assert!(faults.is_sorted() && faults.first() == Some(&0), "{rows:?}");
    assert!(faults.last() >= Some(&2), "{rows:?}");
    subscriber.settled().assert_complete();
}

#[test]
fn delegates_are_compared_and_one_is_recommended() {
    let model = support::agent::project("tests/fixtures/tiny-classifier");
    let library = plugin::library("ref");
    let done = support::program::ocelli()
        .arg("bench")
        .arg(&model)
        .args([
            "--compare",
            "--runs=5",
            "--warmup=1",
            "--json",
            "--recommend=latency",
            "--floor=0.5",
        ])
        .arg(format!("--plugin=npu={}", library.display()))
        .arg(format!("--pictures={}", model.join("golden").display()))
        .arg(format!("--fp32={}", model.join("model.onnx").display()))
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let said: Value = serde_json::from_slice(&done.stdout).unwrap();
    let rows = said["rows"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["delegate"].as_str().unwrap()).collect();
    assert_eq!(names, ["npu", "int8", "tract", "fp32"], "{said}");
    for row in rows {
        assert_eq!(row["error"], Value::Null, "{row}");
        assert_eq!((&row["same_findings"], &row["batch"]), (&1.0.into(), &1.into()), "{row}");
        for figure in ["p50_ms", "p99_ms", "fps", "tops", "load_ms", "peak_rss_mib", "agreement"] {
            assert!(row[figure].as_f64() > Some(0.0), "{figure}: {row}");
        }
        assert_eq!(row["simulated"], row["delegate"] == "npu", "{row}");
    }
    let chosen = said["recommended"]["delegate"].as_str().unwrap();
    assert!(["int8", "tract"].contains(&chosen), "a simulator is not chosen: {said}");
}
