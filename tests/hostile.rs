//! Brokers that break the protocol, lie, fall silent or flood: the agent gives each one up in time, and delivers everything
//! to the next that behaves.

#![allow(clippy::unwrap_used, reason = "tests may panic, and so may what only they use")]

mod support;

use std::path::Path;
use std::time::Duration;

use support::agent::{Agent, LONG, Setup};
use support::broker::Broker;
use support::hostile::{FLOODED_RESULTS, Hostile, Trick};
use support::subscriber::Subscriber;
use support::wait_until;

/// An agent of 50 results a second whose first connections get `tricks`.
fn agent(folder: &Path, hostile: &Hostile, durability: &'static str) -> Agent {
    let mut setup = Setup::new(folder, hostile.port);
    (setup.durability, setup.fps) = (durability, 50.0);
    setup.start()
}

/// Through all tricks, then everything arrives at the real broker.
fn survives(tricks: &[Trick], durability: &'static str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start();
    let subscriber = Subscriber::start(broker.port);
    let hostile = Hostile::start(tricks.iter().copied(), broker.port);
    let running = agent(folder.path(), &hostile, durability);
    let arrived =
        wait_until(2 * LONG, || hostile.is_through() && subscriber.received().known.len() > 50);
    let log = running.log();
    assert!(arrived, "stuck with one of {tricks:?}:\n{log}");
    running.terminate();
    subscriber.settled().assert_complete();
    log
}

#[test]
fn a_broker_that_breaks_the_protocol_is_left() {
    let tricks = [
        Trick::ShortAck,
        Trick::Reserved,
        Trick::EndlessLength,
        Trick::Huge,
        Trick::LongTopic,
        Trick::EmptySuback,
        Trick::Garbage,
        Trick::Half,
    ];
    survives(&tricks, "spill");
}

#[test]
fn a_broker_that_falls_silent_is_given_up() {
    survives(&[Trick::NoConnack, Trick::NoPing, Trick::NoReading], "spill");
}

#[test]
fn a_broker_that_acknowledges_nothing_is_given_up() {
    let log = survives(&[Trick::NoAck, Trick::ForeignAck], "results");
    assert!(log.contains("acknowledges nothing"), "{log}");
}

#[test]
fn a_flood_of_messages_does_not_stop_the_results() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start();
    let subscriber = Subscriber::start(broker.port);
    let hostile = Hostile::start([Trick::Flood], broker.port);
    let running = agent(folder.path(), &hostile, "results");
    let over = wait_until(2 * LONG, || subscriber.received().known.len() > 50);
    assert!(over, "stuck after a flood:\n{}", running.log());
    assert!(hostile.acked() > FLOODED_RESULTS, "{} results during the flood", hostile.acked());
    std::thread::sleep(Duration::from_millis(200));
    running.terminate();
}
