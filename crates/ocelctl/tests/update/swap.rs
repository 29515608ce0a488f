//! The good way: a pushed model takes over at 30 frames a second, an older one comes back, and every frame is accounted for.

use ocelli_protocol::model_state::UpdateOutcome;

use super::site::{PATIENCE, Site};
use super::support::{now, wait_until};

#[test]
fn a_pushed_model_takes_over_without_losing_or_doubling_a_result_and_an_older_one_comes_back() {
    let site = Site::new();
    let agent = site.agent(30.0);
    site.watcher.wait_confirmed("0.1.0", &agent);
    site.add("0.1.0", |_| {});
    site.add("0.2.0", |_| {});
    site.roll_out("0.2.0", 1);
    let pushed = now();
    site.push();
    let model = site.watcher.wait_confirmed("0.2.0", &agent);
    let messages = site.watcher.messages.lock().unwrap().clone();
    let of_new = |(topic, state): &&(String, serde_json::Value)| {
        topic.ends_with("/model") && state["running"]["version"] == "0.2.0"
    };
    let first = messages.iter().find(of_new).unwrap();
    assert_eq!(first.1["running"]["state"], "trial", "{first:?}");
    println!("push to confirmed: {:.1} s", (now() - pushed).as_secs_f32());
    assert_eq!(model.running.slot, "a");
    let last = model.update.last.unwrap();
    assert_eq!(
        (last.target.as_str(), last.outcome),
        ("tiny-classifier-0.2.0", UpdateOutcome::Confirmed)
    );
    // Back by a signed roll-out: the older package is fetched into the other slot.
    site.roll_out("0.1.0", 1);
    site.push();
    let model = site.watcher.wait_confirmed("0.1.0", &agent);
    assert_eq!(model.running.slot, "b");
    // And forward again: it is held already.
    site.roll_out("0.2.0", 1);
    site.push();
    let model = site.watcher.wait_confirmed("0.2.0", &agent);
    assert_eq!(model.running.slot, "a");
    let results = site.watcher.results();
    // Two reports from now on, the second of which was made after these results.
    let reports = site.watcher.count("/health");
    let came = wait_until(PATIENCE, || site.watcher.count("/health") >= reports + 2);
    assert!(came, "no health reports\n{}", agent.log());
    let health = site.watcher.newest("/health").unwrap();
    agent.terminate();

    let versions: Vec<_> = results.iter().map(|one| one.model.version.as_str()).collect();
    let mut seen = versions.clone();
    seen.dedup();
    assert_eq!(seen, ["0.1.0", "0.2.0", "0.1.0", "0.2.0"], "each swap is between two frames");
    let wrong = results.windows(2).find(|pair| pair[1].seq != pair[0].seq + 1);
    assert!(wrong.is_none(), "a result is lost or doubled: {wrong:?}");
    let wrong = results.windows(2).find(|pair| pair[1].frame <= pair[0].frame);
    assert!(wrong.is_none(), "a frame is looked at twice: {wrong:?}");
    // A frame without a result was replaced by a newer one before inference, and counted.
    let span = results.last().unwrap().frame - results[0].frame + 1;
    let missing = span - results.len() as u64;
    let stream = &health["streams"][0];
    let counted = ["dropped", "rate_limited"].map(|name| stream[name].as_u64().unwrap());
    let failed = ["skipped", "failed", "undecodable", "panicked", "dropped"]
        .map(|name| health["frames"][name].as_u64().unwrap_or_default());
    println!(
        "{} results at 30 frames/s over 3 swaps, {missing} frames replaced by newer ones",
        results.len()
    );
    let counted: u64 = counted.iter().sum();
    assert!(missing <= counted, "{missing} of {span} frames are missing, {counted} are counted");
    assert_eq!(failed, [0; 5]);
}
