//! Two firmware slots on a running board: install, try, confirm, fall back; damage, and power cuts on the way.

use std::path::Path;
use std::time::Duration;

use ocelli_slot::state::Slot;

use crate::card::{Card, repacked};
use crate::machine::{Board, Machine, Network};
use crate::support::{Broker, folder, serve};

const BOARD: Board = Board::QemuArm64;

/// A provisioned board that runs, its broker and its card.
fn running(folder: &Path) -> (Broker, Card, Machine) {
    let broker = Broker::start(folder);
    let card = Card::flash(BOARD, folder);
    card.configure(broker.port);
    let machine = Machine::start(BOARD, &card, Network::Up, &[]);
    assert_eq!(machine.wait_up(0).0, "a");
    (broker, card, machine)
}

/// Version 2 as a file server offers it; the server's port.
fn offered(folder: &Path) -> u16 {
    let file = folder.join("2.slot");
    repacked(BOARD, "2", &file);
    serve(&file)
}

/// Fetches it, once the network has come up.
fn download(port: u16) -> String {
    let fetch = format!("wget -q -O /tmp/new.slot http://10.0.2.2:{port}/2.slot");
    format!("for _ in $(seq 60); do {fetch} && exit; sleep 1; done; false")
}

#[test]
#[ignore = "boots a board: firmware/test.sh"]
fn a_firmware_that_is_never_confirmed_falls_back_and_one_that_works_stays() {
    let folder = folder("fallback");
    let (broker, _card, mut machine) = running(&folder);
    broker.wait_results(0, 1);
    let port = offered(&folder);
    machine.console.ask(&download(port));
    let told = machine.console.ask("ocelli-slot install /tmp/new.slot");
    assert!(told.contains("version 2 is in slot b, verified"), "{told}");

    // Three boots that end before the agent has proved itself; the fourth is the old firmware's.
    let mut from = machine.console.position();
    machine.console.ask("reboot");
    for left in [2, 1, 0] {
        let (slot, at) = machine.wait_up(from);
        assert_eq!(slot, "b");
        let status = machine.console.ask("ocelli-slot status");
        let want = if left == 0 {
            "running, boots next\n".to_owned()
        } else {
            format!("{left} tries left")
        };
        assert!((status + "\n").contains(&want), "with {left} tries left");
        from = at;
        machine.reset();
    }
    machine.console.wait_for(from, "slot b was not confirmed in its tries, falling back");
    assert_eq!(machine.wait_up(from).0, "a");
    let status = machine.console.ask("ocelli-slot status");
    assert!(status.contains("slot b: 2, bad"), "{status}");

    // The same again, left alone: confirmed by its work, and it stays over a reset.
    machine.console.ask(&download(port));
    machine.console.ask("ocelli-slot install /tmp/new.slot");
    let from = machine.console.position();
    assert_eq!(machine.reboot(), "b");
    machine.console.wait_for(from, "slot b has proved itself: confirmed");
    let from = machine.console.position();
    machine.reset();
    assert_eq!(machine.wait_up(from).0, "b");
    let status = machine.console.ask("ocelli-slot status");
    assert!(status.contains("slot b: 2, good, running, boots next"), "{status}");
}

#[test]
#[ignore = "boots a board: firmware/test.sh"]
fn a_flipped_byte_anywhere_in_a_slot_boots_the_other_one() {
    let folder = folder("flipped");
    let card = Card::flash(BOARD, &folder);
    // The kernel: U-Boot notices.
    card.damage(Slot::A, "kernel");
    let machine = Machine::start(BOARD, &card, Network::Up, &[]);
    let at = machine.console.wait_for(0, "slot a has no kernel that can be started");
    machine.console.wait_for(at, "falling back to slot b");
    assert_eq!(machine.wait_up(at).0, "b");
    machine.cut_power();
    // The root: the initramfs notices, and the board goes back to a, whose kernel U-Boot refuses: both are bad.
    card.damage(Slot::B, "root");
    let machine = Machine::start(BOARD, &card, Network::Up, &[]);
    let at = machine.console.wait_for(0, "the root is damaged");
    let at = machine.console.wait_for(at, "slot b is marked bad, slot a is next");
    let at = machine.console.wait_for(at, "slot a has no kernel that can be started");
    // It never stands still: the next round has begun.
    machine.console.wait_for(at, "slot b is marked bad, slot a is next");
    machine.cut_power();
    // The byte flips back: nobody has to touch the board.
    card.damage(Slot::B, "root");
    let machine = Machine::start(BOARD, &card, Network::Up, &[]);
    assert_eq!(machine.wait_up(0).0, "b");
}

#[test]
#[ignore = "boots a board: firmware/test.sh"]
fn with_no_kernel_in_either_slot_u_boot_says_so_and_tries_again() {
    let folder = folder("no-kernel");
    let card = Card::flash(BOARD, &folder);
    card.damage(Slot::A, "kernel");
    card.damage(Slot::B, "initrd");
    let machine = Machine::start(BOARD, &card, Network::Up, &[]);
    let at = machine.console.wait_for(0, "NO SLOT CAN BE STARTED");
    machine.console.wait_for(at, "NO SLOT CAN BE STARTED");
}

#[test]
#[ignore = "boots a board: firmware/test.sh"]
fn power_cuts_while_installing_leave_the_running_firmware_whole() {
    let folder = folder("cut-install");
    let (_broker, card, mut machine) = running(&folder);
    let port = offered(&folder);
    for cut in 0..5_u32 {
        machine.console.ask(&download(port));
        machine.console.ask("ocelli-slot install /tmp/new.slot >/run/installed 2>&1 &");
        // Verifying, writing and verifying again take some seconds here: each cut falls later.
        std::thread::sleep(Duration::from_millis(300) + cut * Duration::from_millis(900));
        machine.cut_power();
        machine = Machine::start(BOARD, &card, Network::Up, &[]);
        let (slot, _) = machine.wait_up(0);
        let status = machine.console.ask("ocelli-slot status");
        let whole = format!(
            "ocelli-slot verify --key /dev/null /dev/vda{}",
            if slot == "a" { 2 } else { 3 }
        );
        machine.console.ask(&whole);
        assert!(slot == "a" || status.contains("slot b: 2, trial"), "cut {cut}: {status}");
        if slot == "b" {
            // The cut came after the install was through.
            break;
        }
    }
}
