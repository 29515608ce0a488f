//! Model updates on a board: a signed model is pushed from this machine and takes over, the power goes in the middle of it, and
//! one that a stranger signed is refused.
//!
//! `OCELLI_UPDATE_CUTS` sets how often the power goes (6 unless set).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ocelli_protocol::model_state::{ModelState, Trust};

use crate::console::PATIENCE;
use crate::disk::Disk;
use crate::machine::AARCH64;
use crate::site::{Site, tiny};
use crate::support::field::pick;
use crate::support::{now, wait_until};

const MODEL: &str = "tiny-classifier";
const ROLES: [&str; 6] = ["root", "targets", "releases", "rollout", "snapshot", "timestamp"];

/// Keys and a repository on this machine, driven by `ocelctl`.
struct Publisher {
    folder: PathBuf,
    port: u16,
}

impl Publisher {
    fn new(folder: PathBuf, port: u16) -> Self {
        std::fs::create_dir_all(&folder).unwrap();
        let publisher = Self { folder, port };
        for role in ROLES {
            publisher.ocelctl(&["keys", "new", role], &[]);
        }
        let public = ROLES.map(|role| [format!("--{role}"), format!("{role}.pub")]).concat();
        let words = ["repo", "init", "--id", "factory-a"].map(str::to_owned);
        let words = [&words[..], &public].concat();
        publisher.ocelctl(&words.iter().map(String::as_str).collect::<Vec<_>>(), &ROLES);
        publisher
    }

    /// Runs the `ocelctl` beside this test, signing with the keys of these roles.
    fn ocelctl(&self, words: &[&str], roles: &[&str]) {
        let own = std::env::current_exe().unwrap();
        let program = own.ancestors().nth(2).unwrap().join("ocelctl");
        let keys = roles.iter().flat_map(|role| ["--key".to_owned(), format!("{role}.key")]);
        let output = Command::new(&program)
            .args(words)
            .args(keys)
            .current_dir(&self.folder)
            .env("OCELCTL_PASSPHRASE", "for tests only")
            .stdin(Stdio::null())
            .output();
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ocelctl {words:?}: {told}");
    }

    /// The test package under another version, signed.
    fn add(&self, version: &str) {
        let (from, to) = (tiny().0, self.folder.join(version));
        std::fs::create_dir_all(to.join("golden")).unwrap();
        for name in ["model.onnx", "labels.txt", "golden/shapes.jpg", "golden/shapes.json"] {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
        let manifest = std::fs::read_to_string(from.join("manifest.toml")).unwrap();
        // Latency in an emulator says nothing about a model.
        let budget = "\n[budget]\nlatency_p90_ms = 60000.0\n";
        std::fs::write(to.join("manifest.toml"), manifest.replace("0.1.0", version) + budget)
            .unwrap();
        self.ocelctl(&["repo", "add", version], &["releases"]);
    }

    fn push(&self, version: &str, attempt: u64) {
        let attempt = attempt.to_string();
        let words = ["repo", "rollout", MODEL, version, "--attempt", &attempt];
        self.ocelctl(&words, &["rollout", "snapshot", "timestamp"]);
        self.ocelctl(&["push", "--port", &self.port.to_string()], &[]);
    }
}

/// A board that follows a repository with versions 0.2.0 and 0.3.0.
fn site(name: &str) -> (Site, Disk, Publisher) {
    let mut site = Site::new(name);
    let publisher = Publisher::new(site.folder.join("publisher"), site.broker.port);
    ["0.2.0", "0.3.0"].iter().for_each(|version| publisher.add(version));
    site.put("shapes.jpg", std::fs::read(tiny().1).unwrap());
    site.put("1.root.json", root(&publisher.folder));
    site.configure(
        "[[stream]]\nname = \"front\"\ncamera = \"shapes.jpg\"\nloop = true\nfps = 5\n\
         [update]\nrepo = \"factory-a\"\nmodel = \"tiny-classifier\"\nroot = \"1.root.json\"\n\
         probation = \"2s\"\nprobation_frames = 10\n",
    );
    let disk = site.disk(&tiny().0, "service start\n");
    (site, disk, publisher)
}

fn root(publisher: &Path) -> Vec<u8> {
    std::fs::read(publisher.join("repo/metadata/1.root.json")).unwrap()
}

fn model(site: &Site) -> Option<ModelState> {
    serde_json::from_value(site.subscriber.latest("/model")?).ok()
}

fn wait_model(site: &Site, what: &str, fits: impl Fn(&ModelState) -> bool) -> ModelState {
    let came = wait_until(PATIENCE, || model(site).is_some_and(|model| fits(&model)));
    assert!(came, "{what}: {:#?}", model(site));
    model(site).unwrap()
}

fn confirmed(version: &str) -> impl Fn(&ModelState) -> bool {
    move |model| model.running.version == version && model.running.state == Trust::Confirmed
}

#[test]
#[ignore = "boots an emulated board: make test-boards"]
fn a_pushed_model_is_confirmed_on_a_board_and_a_forged_one_is_refused() {
    let (site, disk, publisher) = site("update");
    let machine = site.boot(AARCH64, &disk);
    wait_model(&site, "the configured model", confirmed("0.1.0"));
    site.wait_results(0, 10);
    let pushed = now();
    publisher.push("0.2.0", 1);
    let state = wait_model(&site, "0.2.0", confirmed("0.2.0"));
    println!("push to confirmed on an emulated board: {:.1} s", (now() - pushed).as_secs_f32());
    assert_eq!(state.running.slot, "a");
    // A stranger with access to the broker and keys of his own, under the same names.
    let stranger = Publisher::new(site.folder.join("stranger"), site.broker.port);
    stranger.add("6.6.6");
    stranger.push("6.6.6", 1);
    let state = wait_model(&site, "a refusal", |model| {
        model.update.reason.as_ref().is_some_and(|why| why.contains("valid signatures"))
    });
    assert_eq!((state.running.version.as_str(), state.running.state), ("0.2.0", Trust::Confirmed));
    // The owner's next push puts the broker right and is taken.
    publisher.push("0.3.0", 1);
    wait_model(&site, "0.3.0", confirmed("0.3.0"));
    let results = site.subscriber.results();
    machine.quit();
    let mut versions: Vec<&str> =
        results.iter().map(|result| result["model"]["version"].as_str().unwrap()).collect();
    versions.dedup();
    // The subscriber keeps the last results only; on a slow machine the first model's are no longer among them.
    let swaps = ["0.1.0", "0.2.0", "0.3.0"];
    assert!(versions.len() > 1 && swaps.ends_with(&versions), "{versions:?}");
    let numbers: Vec<u64> = results.iter().map(|result| result["seq"].as_u64().unwrap()).collect();
    let wrong = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1);
    assert!(wrong.is_none(), "a result is lost or doubled: {wrong:?}");
}

#[test]
#[ignore = "boots an emulated board: make test-boards"]
fn power_cuts_during_updates_leave_the_old_or_the_new_model_and_then_the_new() {
    let cuts = std::env::var("OCELLI_UPDATE_CUTS").map_or(6, |text| text.parse().unwrap());
    let (site, disk, publisher) = site("update-power");
    let disk = disk.with_volatile_cache(site.folder.join("disk.socket"));
    let (mut old, mut lost_sectors, mut interrupted) = ("0.1.0", 0, 0);
    let mut machine = Some(site.boot(AARCH64, &disk));
    wait_model(&site, "the configured model", confirmed("0.1.0"));
    for round in 0..cuts {
        let new = if round % 2 == 0 { "0.2.0" } else { "0.3.0" };
        let before = site.subscriber.received().boots;
        publisher.push(new, round + 1);
        std::thread::sleep(pick(round, 500, 12_000));
        interrupted += u32::from(!model(&site).is_some_and(|model| confirmed(new)(&model)));
        lost_sectors += disk.lose_cache(round).1;
        machine.take().unwrap().cut_power();
        disk.restore();
        machine = Some(site.boot(AARCH64, &disk));
        // What the outbox sends again is of earlier runs.
        let fresh = || {
            let result = site.subscriber.results().pop()?;
            (!before.contains_key(result["boot_id"].as_str()?)).then_some(result)
        };
        assert!(wait_until(PATIENCE, || fresh().is_some()), "no results after cut {round}");
        let version = fresh().unwrap()["model"]["version"].as_str().unwrap().to_owned();
        assert!(version == old || version == new, "{version} after a cut between {old} and {new}");
        wait_model(&site, &format!("{new} after cut {round}"), confirmed(new));
        old = new;
    }
    println!(
        "{cuts} cuts, {interrupted} of them before the update was confirmed, {lost_sectors} sectors lost"
    );
    assert!(lost_sectors > 0 && interrupted > 0, "the cuts met no update: the test shows nothing");
    let console = &mut machine.as_mut().unwrap().console;
    let kernel = console.ask("dmesg | grep -i 'ext4.*error' || true");
    assert_eq!(kernel, "", "the file system");
}
