//! The power goes at every storage operation of an update, and again at every one of the recovery.

use super::world::{Device, Repository, digest, package};
use crate::model::disk::Disk as _;
use crate::model::power_cut::{LOSSES, Loss, PowerCut};
use crate::model::slots::Slot;

/// Long enough for a whole update, with the waits after failures.
const UPDATE_SECONDS: u64 = 120;

/// One direction of the table: a disk to start from, and what the roll-out names then.
struct Direction {
    name: &'static str,
    disk: PowerCut,
    repository: Repository,
    old: Vec<u8>,
    new: Vec<u8>,
}

fn update(disk: &PowerCut, repository: &Repository, configured: &[u8]) -> Device<PowerCut> {
    let mut device = Device::boot(repository.settings(), disk.clone(), configured);
    for _ in 0..UPDATE_SECONDS {
        if disk.is_off() {
            break;
        }
        device.live(&repository.broker, 1);
    }
    device
}

fn running(device: &Device<PowerCut>, disk: &PowerCut, configured: &[u8]) -> Vec<u8> {
    match device.runs {
        None => configured.to_vec(),
        Some(slot) => disk.read(slot.file(), u64::MAX).unwrap(),
    }
}

fn directions() -> Vec<Direction> {
    let (one, two) = (package("1.0.0"), package("2.0.0"));
    let mut repository = Repository::new();
    repository.release("1.0.0", &one);
    repository.release("2.0.0", &two);
    repository.roll_out("2.0.0", 1);
    let mut found = Vec::new();
    let mut disk = PowerCut::default();
    let mut step = |name, disk: &PowerCut, repository: &Repository, old: &[u8], new: &[u8]| {
        found.push(Direction {
            name,
            disk: disk.copy(),
            repository: repository.clone(),
            old: old.to_vec(),
            new: new.to_vec(),
        });
        let after = disk.copy();
        let device = update(&after, repository, &one);
        assert_eq!(digest(&running(&device, &after, &one)), digest(new), "{name}");
        after
    };
    disk = step("configured model to a slot", &disk, &repository, &one, &two);
    repository.roll_out("1.0.0", 1);
    disk = step("back to the older package, to the other slot", &disk, &repository, &two, &one);
    repository.roll_out("2.0.0", 2);
    step("forward again, held already", &disk, &repository, &one, &two);
    found
}

/// What is started after a cut is the old or the new package, whole; and the update then comes to its end.
fn recover(direction: &Direction, disk: &PowerCut, loss: Loss, configured: &[u8], place: &str) {
    disk.restart(loss);
    let probe = disk.copy();
    let device = Device::boot(direction.repository.settings(), probe.clone(), configured);
    let started = running(&device, &probe, configured);
    assert!(started == direction.old || started == direction.new, "{place}: neither model starts");
}

#[test]
fn every_cut_leaves_the_old_or_the_new_model_and_a_way_on() {
    let configured = package("1.0.0");
    let (mut cuts, mut second_cuts) = (0, 0);
    for direction in directions() {
        let whole = direction.disk.copy();
        update(&whole, &direction.repository, &configured);
        let operations = whole.operations();
        assert!(operations > 20, "{}: {operations}", direction.name);
        for (at, loss) in (0..operations).flat_map(|at| LOSSES.map(|loss| (at, loss))) {
            let place = format!("{}, operation {at}, {loss:?}", direction.name);
            let disk = direction.disk.copy();
            disk.cut_at(at);
            update(&disk, &direction.repository, &configured);
            assert!(disk.is_off(), "{place}: no cut");
            recover(&direction, &disk, loss, &configured, &place);
            cuts += 1;
            // And again in the recovery: at each operation, the loss turning with it.
            let whole = disk.copy();
            let device = update(&whole, &direction.repository, &configured);
            let found = digest(&running(&device, &whole, &configured));
            assert_eq!(found, digest(&direction.new), "{place}: {:?}", device.state());
            if loss != LOSSES[at % LOSSES.len()] {
                continue;
            }
            for again in 0..whole.operations() {
                let place = format!("{place}, then operation {again}");
                let disk = disk.copy();
                disk.cut_at(again);
                update(&disk, &direction.repository, &configured);
                let loss = LOSSES[again % LOSSES.len()];
                recover(&direction, &disk, loss, &configured, &place);
                let device = update(&disk, &direction.repository, &configured);
                let found = digest(&running(&device, &disk, &configured));
                assert_eq!(found, digest(&direction.new), "{place}: {:?}", device.state());
                second_cuts += 1;
            }
        }
    }
    assert!(cuts > 300 && second_cuts > 1500, "{cuts} cuts, {second_cuts} second cuts");
    // Shown with `--nocapture`; docs/updates.md states it.
    println!("{cuts} cuts in updates, {second_cuts} more in their recovery");
}

#[test]
fn a_disk_that_fills_at_any_operation_only_delays() {
    let configured = package("1.0.0");
    let mut moments = 0;
    for direction in directions() {
        let whole = direction.disk.copy();
        update(&whole, &direction.repository, &configured);
        for at in 0..whole.operations() {
            let place = format!("{}, full from operation {at} on", direction.name);
            let disk = direction.disk.copy();
            disk.full_at(Some(at));
            let device = update(&disk, &direction.repository, &configured);
            let found = running(&device, &disk, &configured);
            assert!(found == direction.old || found == direction.new, "{place}: neither runs");
            // One row for the same trouble, and no trial again and again.
            assert!(device.audit.len() < 20, "{place}: {:?}", device.audit);
            // The agent is restarted on the full disk.
            let mut device =
                Device::boot(direction.repository.settings(), disk.clone(), &configured);
            let found = running(&device, &disk, &configured);
            assert!(found == direction.old || found == direction.new, "{place}: neither starts");
            disk.full_at(None);
            // The longest wait after failures is half an hour.
            device.live(&direction.repository.broker, 2 * 1800);
            let found = digest(&running(&device, &disk, &configured));
            assert_eq!(found, digest(&direction.new), "{place}: {:?}", device.state());
            moments += 1;
        }
    }
    assert!(moments > 60, "{moments}");
    println!("a disk that fills at {moments} moments of updates");
}

#[test]
fn a_damaged_slot_is_never_started() {
    let (one, two) = (package("1.0.0"), package("2.0.0"));
    let mut repository = Repository::new();
    repository.release("2.0.0", &two);
    repository.roll_out("2.0.0", 1);
    let mut disk = PowerCut::default();
    let device = update(&disk, &repository, &one);
    assert_eq!(device.runs, Some(Slot::A));
    disk.write_at("a.tar", 700, b"worn flash").unwrap();
    let device = Device::boot(repository.settings(), disk.clone(), &one);
    assert_eq!(device.runs, None);
    let device = update(&disk, &repository, &one);
    assert_eq!(device.runs, Some(Slot::A), "fetched again");
    assert_eq!(digest(&disk.read("a.tar", u64::MAX).unwrap()), digest(&two));
}
