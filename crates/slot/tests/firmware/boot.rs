//! From a flashed card to the first result at the broker, and what is on the board then.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use crate::card::Card;
use crate::machine::{Board, Machine, Network};
use crate::support::{Broker, folder, now, run, wait_until};

const SECRET: &str = "correct-horse-battery-staple-7741";

/// Flashes a card, edits it as on a laptop, boots, and holds the board to what the documentation promises.
fn first_boot(board: Board, more: &[&str]) {
    let folder = folder(board.name());
    let broker = Broker::start(&folder);
    let card = Card::flash(board, &folder);
    card.configure(broker.port);
    card.put("password", SECRET);
    card.put("hostname", "Dock-3\r\n");
    assert!(card.fat_holds(SECRET.as_bytes()), "the search finds what is there");

    let start = now();
    let mut machine = Machine::start(board, &card, Network::Up, more);
    let first = broker.wait_results(0, 1).remove(0);
    let to_first = now() - start;
    assert_eq!((&first["device"], &first["stream"]), (&"dock-3".into(), &"front".into()));
    assert!(first["classes"].as_array().is_some_and(|classes| !classes.is_empty()), "{first}");
    let (slot, _) = machine.wait_up(0);
    assert_eq!(slot, "a");
    let uptime = machine.console.ask("cut -d' ' -f1 /proc/uptime");
    let memory = machine.console.ask("grep VmHWM /proc/$(pidof ocelli)/status");

    // Provisioning: taken over, for the agent's eyes only, and gone from the FAT.
    assert_eq!(machine.console.ask("hostname"), "Dock-3");
    assert_eq!(machine.console.ask("cat /data/config/password"), SECRET);
    let rights = machine.console.ask("stat -c '%u:%g %a' /data/config/password /data/config/");
    assert_eq!(rights, "990:990 600\n990:990 700");
    // The root cannot be written, the agent is nobody special, the clock is not before the build.
    assert_ne!(machine.console.run("touch /usr/bin/x").status, 0, "the root is read-only");
    assert_eq!(
        machine.console.ask("awk '/^Uid/ { print $2 }' /proc/$(pidof ocelli)/status"),
        "990"
    );
    machine.console.ask("[ $(date +%s) -ge $(cat /etc/ocelli-firmware/built) ]");
    // The data partition reaches the end of the card: 1 GiB less what lies before it.
    let size: u64 = machine.console.ask("df -m /data | awk 'END { print $2 }'").parse().unwrap();
    assert!(size > 650, "the data partition has {size} MiB");
    let status = machine.console.ask("ocelli-slot status");
    let lines: Vec<_> = status.lines().map(|line| line.split(", ").collect::<Vec<_>>()).collect();
    assert!(lines[0].contains(&"running") && lines[0].contains(&"boots next"), "{status}");

    // An orderly restart: the same configuration, numbers go on.
    let last = broker.results().last().unwrap()["seq"].as_u64().unwrap();
    let from = machine.console.position();
    machine.console.ask("reboot");
    if !board.restarts_itself() {
        machine.console.wait_for(from, "reboot: Restarting system");
        machine.reset();
    }
    let known = broker.results().len();
    let (slot, _) = machine.wait_up(from);
    assert_eq!(slot, "a");
    let again = wait_until(Duration::from_secs(600), || {
        broker.results()[known..].iter().any(|result| result["boot_id"] != first["boot_id"])
    });
    assert!(again, "no results after the restart");
    assert!(broker.results().last().unwrap()["seq"].as_u64().unwrap() > last);
    assert_eq!(machine.console.ask("hostname"), "Dock-3");
    machine.console.ask("umount -l /data; sync");
    machine.cut_power();
    assert!(!card.fat_holds(SECRET.as_bytes()), "the password is still on the FAT partition");
    assert_eq!(card.get("ocelli.toml"), None);
    let told = card.get("ocelli-status.txt").unwrap();
    assert!(told.contains("hostname, ocelli.toml, password"), "{told}");
    record(board, to_first, &uptime, &memory);
}

/// A line for the table in docs/boards.md.
fn record(board: Board, to_first: Duration, uptime: &str, memory: &str) {
    let image = board.image();
    let blocks: u64 = run("stat", &["-c", "%b", image.to_str().unwrap()]).trim().parse().unwrap();
    let line = format!(
        "| {} | {:.1} | {:.1} | {:.0} | {uptime} | {} |\n",
        board.name(),
        image.metadata().unwrap().len() as f64 / f64::from(1 << 20),
        (blocks * 512) as f64 / f64::from(1 << 20),
        to_first.as_secs_f64(),
        memory.split_whitespace().nth(1).unwrap_or("?"),
    );
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("firmware/figures.md");
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

#[test]
#[ignore = "boots a board: firmware/test.sh"]
fn qemu_arm64_is_flashed_provisioned_and_serves_though_its_clock_stands_at_1970() {
    first_boot(Board::QemuArm64, &["-rtc", "base=1970-01-01T00:00:00"]);
}

#[test]
#[ignore = "boots a board: firmware/test.sh"]
fn qemu_armv7_is_flashed_provisioned_and_serves() {
    first_boot(Board::QemuArmv7, &[]);
}

#[test]
#[ignore = "boots a board: firmware/test.sh"]
fn nanopi_neo_is_flashed_provisioned_and_serves() {
    first_boot(Board::NanopiNeo, &[]);
}
