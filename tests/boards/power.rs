//! Power cuts: the board dies at any moment, its disk forgets what was not flushed, and nothing that counts is lost.
//!
//! `OCELLI_CUTS` sets the rounds of each test (20 unless set).

use std::sync::Arc;
use std::time::Duration;

use ocelli::clock::SystemClock;
use ocelli::store::{self, AuditRow, DATABASE_FILE};

use crate::console::PATIENCE;
use crate::disk::Disk;
use crate::machine::{AARCH64, Machine};
use crate::site::{Site, tiny};
use crate::support::field::pick;
use crate::support::wait_until;

/// Files that only an operator changes, and their digests.
const SUMS: &str = "cd /data && sha256sum ocelli.toml device.key model/*.* model/golden/*";

fn rounds() -> u64 {
    std::env::var("OCELLI_CUTS").map_or(20, |text| text.parse().expect("OCELLI_CUTS is a number"))
}

/// Waits for results of a run of the agent that was not seen before the boot.
fn wait_new_run(site: &Site, runs: usize) {
    let came = wait_until(PATIENCE, || site.subscriber.received().boots.len() > runs);
    assert!(came, "no results after the cut");
}

fn power_cuts(durability: &str) -> Site {
    let mut site = Site::new(&format!("power-{durability}"));
    site.put("shapes.jpg", std::fs::read(tiny().1).unwrap());
    site.put("device.key", "a key that must not change\n");
    site.configure(
        "[[stream]]\nname = \"front\"\ncamera = \"shapes.jpg\"\nloop = true\nfps = 20\n",
    );
    site.configure(&format!("[outbox]\ndurability = \"{durability}\"\n"));
    let disk = site.disk(&tiny().0, "service start\n");
    let disk = disk.with_volatile_cache(site.folder.join("disk.socket"));
    let mut sums = String::new();
    let (mut audit, mut lost_sectors) = (0, 0);
    for round in 0..rounds() {
        let runs = site.subscriber.received().boots.len();
        // Every fourth cut comes while the board boots, checks its disk and loads the model.
        if round % 4 == 3 {
            let machine = Machine::start(&site.start(AARCH64, &disk));
            std::thread::sleep(pick(round, 500, 12_000));
            lost_sectors += cut(machine, &disk, round);
            continue;
        }
        let mut machine = site.boot(AARCH64, &disk);
        wait_new_run(&site, runs);
        audit = assert_intact(&mut machine, &site, &mut sums, audit);
        std::thread::sleep(pick(round, 0, 4000));
        lost_sectors += cut(machine, &disk, round);
    }
    // With "spill" little is written while the broker acknowledges; there the gaps show that the cuts were seen.
    let shown = lost_sectors > 0 || durability == "spill";
    assert!(shown, "no cut lost a sector, so the test shows nothing");

    let runs = site.subscriber.received().boots.len();
    let mut machine = site.boot(AARCH64, &disk);
    wait_new_run(&site, runs);
    assert_intact(&mut machine, &site, &mut sums, audit);
    machine.console.ask("service stop; umount /data");
    machine.quit();
    assert_chain(&site, &disk);
    site
}

/// Config, keys, model and database are what they were, the file system is whole, and the audit log went on.
fn assert_intact(machine: &mut Machine, site: &Site, sums: &mut String, audit: u64) -> u64 {
    let found = machine.console.ask(SUMS);
    if sums.is_empty() {
        sums.clone_from(&found);
    }
    assert_eq!(found, *sums, "files changed");
    let store = machine.console.ask("ls /data/store");
    assert!(store.contains(DATABASE_FILE) && !store.contains("damaged"), "{store}");
    let kernel = machine.console.ask("dmesg | grep -i 'ext4.*error' || true");
    assert_eq!(kernel, "", "the file system");
    let boot = site.subscriber.results().last().unwrap()["boot_id"].clone();
    let health = site.wait_health("the audit head", |health| {
        health["boot_id"] == boot && !health["audit"].is_null()
    });
    let number = health["audit"]["number"].as_u64().unwrap();
    assert!(number > audit, "the audit log has {number} rows, it had {audit}");
    number
}

/// Gives how many sectors the disk forgot.
fn cut(machine: Machine, disk: &Disk, round: u64) -> usize {
    let (_kept, lost) = disk.lose_cache(round);
    machine.cut_power();
    disk.restore();
    lost
}

/// The audit log of the disk is one unbroken chain.
fn assert_chain(site: &Site, disk: &Disk) {
    let folder = tempfile::tempdir_in(&site.folder).unwrap();
    disk.extract(&format!("/store/{DATABASE_FILE}"), &folder.path().join(DATABASE_FILE));
    let settings = store::Settings::in_dir(folder.path());
    let (store, _) = store::start(settings, Arc::new(SystemClock)).unwrap();
    let (answer, rows) = std::sync::mpsc::channel();
    store.audit_after(0, 10_000, move |rows| answer.send(rows).unwrap()).unwrap();
    let rows = rows.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();
    assert!(rows.len() as u64 > rounds() / 2, "{} rows", rows.len());
    let mut previous = [0; 32];
    for (row, number) in rows.iter().zip(1..) {
        assert_eq!((row.number, row.previous), (number, previous));
        assert_eq!(row.digest, AuditRow::digest_of(&previous, row.number, &row.entry));
        previous = row.digest;
    }
}

#[test]
#[ignore = "boots an emulated board: make test-boards"]
fn power_cuts_lose_no_result_that_was_stored() {
    power_cuts("results").subscriber.settled().assert_complete();
}

#[test]
#[ignore = "boots an emulated board: make test-boards"]
fn power_cuts_leave_only_announced_gaps() {
    let site = power_cuts("spill");
    let received = site.subscriber.settled();
    received.assert_holes_announced();
    assert!(!received.gaps.is_empty(), "cuts must leave gaps, or the test shows nothing");
}
