//! `kill -9` at random moments of updates.

use std::time::Duration;

use super::site::Site;

#[test]
fn kill_9_at_random_moments_of_updates_always_ends_on_the_right_model() {
    let rounds = std::env::var("OCELLI_KILL_ROUNDS").ok().and_then(|text| text.parse().ok());
    let kills: u64 = rounds.unwrap_or(10);
    let site = Site::new();
    site.add("0.2.0", |_| {});
    site.add("0.3.0", |_| {});
    let mut state = 0x5eed_u64;
    let mut random = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut agent = site.agent(20.0);
    site.watcher.wait_confirmed("0.1.0", &agent);
    let mut old = "0.1.0";
    for round in 0..kills.div_ceil(2) {
        let new = if round % 2 == 0 { "0.2.0" } else { "0.3.0" };
        site.roll_out(new, 1 + round as u32);
        site.push();
        for _ in 0..2 {
            std::thread::sleep(Duration::from_millis(random(2500)));
            agent.kill();
            site.watcher.messages.lock().unwrap().clear();
            agent = site.agent(20.0);
            let model = site.watcher.wait_model("a start", &agent, |_| true);
            let version = model.running.version;
            assert!(
                version == old || version == new,
                "{version} after a kill between {old} and {new}"
            );
        }
        site.watcher.wait_confirmed(new, &agent);
        old = new;
    }
    agent.terminate();
    println!("{kills} kills, each followed by the old or the new model, and then the new one");
}
