//! What must not stop a board: a data partition that is damaged or full, no network, bad provisioning, an agent that hangs.

use crate::card::Card;
use crate::machine::{Board, Machine, Network};
use crate::support::{Broker, folder};

const BOARD: Board = Board::QemuArm64;

#[test]
#[ignore = "boots a board: firmware/test.sh"]
fn a_data_partition_that_cannot_be_repaired_is_made_anew_and_the_card_says_so() {
    let folder = folder("data-lost");
    let broker = Broker::start(&folder);
    let card = Card::flash(BOARD, &folder);
    card.configure(broker.port);
    let machine = Machine::start(BOARD, &card, Network::Up, &[]);
    broker.wait_results(0, 1);
    machine.wait_up(0);
    machine.cut_power();
    // Some damage: repaired. The first superblock's checksum and the group descriptors.
    card.overwrite_data(1024 + 0x30, &[0xff; 16]);
    let mut machine = Machine::start(BOARD, &card, Network::Up, &[]);
    machine.console.wait_for(0, "the data partition is damaged, repairing");
    machine.console.wait_for(0, "data partition repaired");
    machine.wait_up(0);
    machine.console.ask("test -s /data/config/ocelli.toml");
    let known = broker.results().len();
    broker.wait_results(known, 1);
    machine.cut_power();
    // Nothing left of it.
    for mebibyte in 0..700 {
        card.overwrite_data(mebibyte << 20, &vec![0xA5; 1 << 20]);
    }
    let mut machine = Machine::start(BOARD, &card, Network::Up, &[]);
    machine.console.wait_for(0, "making it anew: configuration and stored results are lost");
    machine.wait_up(0);
    machine.console.wait_for(0, "no configuration yet: put ocelli.toml on the FAT partition");
    machine.console.ask("sync");
    machine.cut_power();
    let note = card.get("ocelli-data-lost.txt").unwrap();
    assert!(note.contains("Bring ocelli.toml and its files again"), "{note}");
    card.configure(broker.port);
    let known = broker.results().len();
    let _machine = Machine::start(BOARD, &card, Network::Up, &[]);
    broker.wait_results(known, 1);
}

#[test]
#[ignore = "boots a board: firmware/test.sh"]
fn a_full_data_partition_stops_no_results_and_refuses_a_new_configuration() {
    let folder = folder("data-full");
    let broker = Broker::start(&folder);
    let card = Card::flash(BOARD, &folder);
    card.configure(broker.port);
    let mut machine = Machine::start(BOARD, &card, Network::Up, &[]);
    broker.wait_results(0, 1);
    machine.wait_up(0);
    machine
        .console
        .run("dd if=/dev/zero of=/data/fill bs=1M; dd if=/dev/zero of=/data/fill2 bs=1k; sync");
    machine.power_off();
    card.put("password", "x".repeat(100_000));
    let known = broker.results().len();
    let mut machine = Machine::start(BOARD, &card, Network::Up, &[]);
    machine.console.wait_for(0, "the data partition is full; what was in force stays in force");
    broker.wait_results(known, 3);
    machine.wait_up(0);
    machine.console.ask("sync");
    machine.power_off();
    let told = card.get("ocelli-error.txt").unwrap();
    assert!(told.contains("the data partition is full"), "{told}");
}

#[test]
#[ignore = "boots a board: firmware/test.sh"]
fn a_bad_configuration_is_explained_on_the_card_and_the_board_waits_for_a_good_one() {
    let folder = folder("bad-configuration");
    let broker = Broker::start(&folder);
    let card = Card::flash(BOARD, &folder);
    card.put("ocelli.toml", "[device]\nid = \"dock-3\"\n[mqtt]\nhots = \"10.0.2.2\"\n");
    let mut machine = Machine::start(BOARD, &card, Network::Up, &[]);
    machine.wait_up(0);
    machine.console.wait_for(0, "no configuration yet");
    // A board that waits for its owner is not reset by the watchdog of its boot.
    machine.console.ask("sleep 20");
    machine.console.ask("sync");
    machine.power_off();
    let told = card.get("ocelli-error.txt").unwrap();
    assert!(told.contains("hots"), "{told}");
    card.configure(broker.port);
    let machine = Machine::start(BOARD, &card, Network::Up, &[]);
    broker.wait_results(0, 1);
    machine.cut_power();
    assert_eq!(card.get("ocelli-error.txt"), None);
}

#[test]
#[ignore = "boots a board: firmware/test.sh"]
fn without_network_the_board_works_and_confirms_and_results_wait() {
    let folder = folder("no-network");
    let broker = Broker::start(&folder);
    let card = Card::flash(BOARD, &folder);
    card.configure(broker.port);
    let machine = Machine::start(BOARD, &card, Network::None, &[]);
    machine.wait_up(0);
    machine.console.wait_for(0, "slot a serves; it was confirmed before");
    machine.power_off();
    let machine = Machine::start(BOARD, &card, Network::Up, &[]);
    let results = broker.wait_results(0, 1);
    assert_eq!(results[0]["seq"], 1, "what waited comes first");
    drop(machine);
}

#[test]
#[ignore = "boots a board: firmware/test.sh"]
fn a_hung_agent_is_reset_by_the_hardware_watchdog() {
    let folder = folder("hang");
    let broker = Broker::start(&folder);
    let card = Card::flash(BOARD, &folder);
    card.configure(broker.port);
    let mut machine = Machine::start(BOARD, &card, Network::Up, &[]);
    broker.wait_results(0, 1);
    machine.wait_up(0);
    let from = machine.console.position();
    machine.console.ask("kill -STOP $(pidof ocelli)");
    let at =
        machine.console.wait_for(from, "the hardware watchdog is no longer fed: the agent hangs");
    machine.console.wait_for(at, "ocelli: boot script for");
    let known = broker.results().len();
    broker.wait_results(known, 1);
}
