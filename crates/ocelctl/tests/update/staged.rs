//! A roll-out grows from 1 % over 10 % to 100 % with the online keys alone, and metadata is renewed without the others.

use ocelli::model::Sha256;
use ocelli_protocol::repository::{Rollout, RolloutEntry};

use super::site::{MODEL, ONLINE, Site, ok_with, update_section};
use super::support::agent::{Agent, Setup};

/// The newest roll-out that the repository holds, for channel `stable`.
fn entries(site: &Site) -> Vec<RolloutEntry> {
    let folder = site.path().join("repo/targets/rollout");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let newest = files.max_by_key(|file| file.metadata().unwrap().modified().unwrap()).unwrap();
    let rollout = Rollout::parse(&std::fs::read(newest.path()).unwrap()).unwrap();
    rollout.channels[&"stable".parse().unwrap()].clone()
}

fn takes(entries: &[RolloutEntry], device: &str) -> Option<String> {
    let meant = |entry: &&RolloutEntry| {
        let hash = Sha256::of(&[entry.salt.as_bytes(), &[0], device.as_bytes()].concat()).0;
        entry.includes(hash[..8].try_into().unwrap(), &[])
    };
    entries.iter().find(meant).map(|entry| entry.target.clone())
}

fn start(site: &Site, device: &str) -> Agent {
    let folder = site.path().join(device);
    std::fs::create_dir_all(&folder).unwrap();
    let mut setup = Setup::new(&folder, site.broker.port);
    setup.id = device.to_owned();
    setup.mqtt = update_section(site.path());
    setup.start()
}

#[test]
fn a_roll_out_grows_in_stages_with_the_online_keys_alone() {
    let site = Site::new();
    for version in ["0.2.0", "0.3.0"] {
        site.add(version, |_| {});
    }
    site.roll_out("0.2.0", 1);
    // From here on no offline key is at hand.
    for role in ["root", "targets", "releases"] {
        std::fs::remove_file(site.path().join(format!("keys/{role}.key"))).unwrap();
    }
    let fleet: Vec<String> = (0..1000).map(|number| format!("dock-{number}")).collect();
    let mut before: Vec<&String> = Vec::new();
    let mut stages = Vec::new();
    for percent in ["1", "10", "100"] {
        let words = ["repo", "rollout", MODEL, "0.3.0", "--percent", percent];
        ok_with(site.path(), &words, &ONLINE);
        let entries = entries(&site);
        let new = |device: &&String| takes(&entries, device).unwrap().ends_with("0.3.0.tar");
        let now: Vec<&String> = fleet.iter().filter(new).collect();
        let expected = percent.parse::<f64>().unwrap() / 100.0 * fleet.len() as f64;
        assert!((now.len() as f64 - expected).abs() <= 25.0, "{percent} %: {}", now.len());
        assert!(
            before.iter().all(|device| now.contains(device)),
            "a device fell out at {percent} %"
        );
        println!("{percent} %: {} of {} devices", now.len(), fleet.len());
        stages.push((site.push(), now.clone()));
        before = now;
        // What is checked with a real device is the stage that divides the fleet.
        if percent == "10" {
            let first = before[0];
            let later = fleet.iter().find(|device| !before.contains(device)).unwrap();
            for (device, version) in [(first, "0.3.0"), (later, "0.2.0")] {
                let agent = start(&site, device);
                site.watcher.wait_confirmed_of(device, version, &agent);
                agent.terminate();
            }
        }
    }
    assert!(stages[0].1.len() < stages[1].1.len() && stages[2].1.len() == fleet.len());
    // What the timer does, with the same keys.
    let told = ok_with(site.path(), &["repo", "refresh"], &ONLINE);
    assert!(told.contains("timestamp") && told.contains("signed and published"), "{told}");
    site.push();
}
