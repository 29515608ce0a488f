//! What somebody with access to the broker, and a bad signed model, can do: delay an update.

use std::process::Command;

use ocelli_protocol::model_state::UpdateOutcome;
use serde_json::Value;

use super::site::{Site, repository};

#[test]
fn tampered_chunks_wrong_answers_and_a_stranger_are_refused_and_the_next_update_works() {
    let site = Site::new();
    site.add("0.2.0", |_| {});
    site.roll_out("0.2.0", 1);
    site.push();
    // Somebody with access to the broker replaces the largest chunk.
    let port = site.broker.port.to_string();
    let tar = std::fs::read_dir(site.path().join("repo/chunks")).unwrap().next().unwrap().unwrap();
    let index: Value = serde_json::from_slice(&std::fs::read(tar.path()).unwrap()).unwrap();
    let chunk = index["chunks"][0][1].as_str().unwrap().to_owned();
    let topic = format!("ocelli/repo/factory-a/chunk/{chunk}");
    let published = Command::new("mosquitto_pub")
        .args(["-h", "127.0.0.1", "-p", &port, "-q", "1", "-r", "-t", &topic, "-m", "tampered"])
        .status();
    assert!(published.unwrap().success());
    let agent = site.agent(20.0);
    site.watcher.wait_model("refusal", &agent, |model| {
        model.running.version == "0.1.0"
            && model
                .update
                .reason
                .as_ref()
                .is_some_and(|why| why.contains("not what its name says"))
    });
    // A push sees what the broker holds and puts it right.
    let told = site.push();
    assert!(told.contains("1 messages"), "{told}");
    site.watcher.wait_confirmed("0.2.0", &agent);
    // A signed model that gives wrong answers does not pass its trial.
    site.add("0.3.0", |folder| {
        let path = folder.join("golden/shapes.json");
        let mut classes: Vec<Value> =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        classes.reverse();
        for (rank, class) in classes.iter_mut().enumerate() {
            class["score"] = (0.9 - 0.2 * rank as f64).into();
        }
        std::fs::write(&path, serde_json::to_vec(&classes).unwrap()).unwrap();
    });
    site.roll_out("0.3.0", 1);
    site.push();
    let model = site.watcher.wait_model("rejection", &agent, |model| {
        model.update.last.as_ref().is_some_and(|last| last.outcome == UpdateOutcome::Rejected)
    });
    let last = model.update.last.unwrap();
    assert!(last.reason.contains("golden picture"), "{last:?}");
    assert_eq!(model.running.version, "0.2.0");
    // Metadata of a stranger, whose keys nobody trusts.
    let stranger = tempfile::tempdir().unwrap();
    repository(stranger.path());
    let timestamp = stranger.path().join("repo/metadata/timestamp.json");
    let published = Command::new("mosquitto_pub")
        .args(["-h", "127.0.0.1", "-p", &port, "-q", "1", "-r"])
        .args(["-t", "ocelli/repo/factory-a/meta/timestamp.json", "-f"])
        .arg(timestamp)
        .status();
    assert!(published.unwrap().success());
    site.watcher.wait_model("refusal of a stranger", &agent, |model| {
        model.update.reason.as_ref().is_some_and(|why| why.contains("0 valid signatures"))
    });
    // None of it stands in the way of the next good one.
    site.add("0.4.0", |_| {});
    site.roll_out("0.4.0", 1);
    site.push();
    site.watcher.wait_confirmed("0.4.0", &agent);
    agent.terminate();
}
