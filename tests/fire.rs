//! Delivery under fire with the shipped binary: replay camera at 100 frames a second, tiny classifier, real broker.
//!
//! `OCELLI_FIRE_ROUNDS` sets the rounds of each test (3 unless set; `make test-fire` has 30).

#![allow(clippy::unwrap_used, reason = "tests may panic, and so may what only they use")]

mod support;

use std::time::Duration;

use support::agent::{Agent, LONG, Setup};
use support::broker::Broker;
use support::field::{Field, pick, rounds};
use support::proxy::Mode;
use support::subscriber::Received;
use support::wait_until;

/// The agent's first wait before it connects again; also its longest, by `mqtt.retry_max`.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longer than twice the keep-alive of the configuration: the agent notices a dead line by itself.
const SILENT: Duration = Duration::from_secs(11);

fn agent(field: &Field) -> Agent {
    let mut setup = Setup::new(field.dir.path(), field.proxy.port);
    setup.durability = field.durability;
    setup.fps = 100.0;
    setup.start()
}

fn finish(field: &Field, agent: Agent) -> Received {
    field.wait_flowing();
    agent.terminate();
    field.harvest()
}

fn network_cuts(durability: &'static str) {
    let field = Field::new(durability);
    let running = agent(&field);
    for round in 0..rounds() {
        field.wait_flowing();
        std::thread::sleep(pick(round, 0, 400));
        field.cut(round, SILENT);
    }
    finish(&field, running).assert_complete();
    field.assert_patient(FIRST_WAIT);
}

fn broker_restarts(durability: &'static str) {
    let mut field = Field::new(durability);
    let running = agent(&field);
    for round in 0..rounds() {
        field.wait_flowing();
        std::thread::sleep(pick(round, 0, 700));
        field.restart_broker(Broker::terminate);
    }
    finish(&field, running).assert_complete();
    field.assert_patient(FIRST_WAIT);
}

/// Some kills happen while the broker is away and results are on their way to the store.
fn kills(durability: &'static str) -> Received {
    let field = Field::new(durability);
    let mut running = agent(&field);
    for round in 0..rounds() {
        // A backlog of the run before comes first; this run must be heard of too.
        let heard = wait_until(LONG, || field.subscriber.received().boots.len() as u64 > round);
        assert!(heard, "nothing from run {round}:\n{}", running.log());
        std::thread::sleep(pick(round, 0, 700));
        if round % 3 == 1 {
            field.proxy.set(Mode::Refuse);
            field.proxy.cut();
            std::thread::sleep(pick(round, 100, 3000));
        }
        running.kill();
        field.proxy.set(Mode::Pass);
        running = agent(&field);
    }
    let received = finish(&field, running);
    assert!(received.boots.len() as u64 >= rounds(), "each run delivered");
    received
}

#[test]
fn the_agent_loses_nothing_by_network_cuts_with_results() {
    network_cuts("results");
}

#[test]
fn the_agent_loses_nothing_by_network_cuts_with_spill() {
    network_cuts("spill");
}

#[test]
fn the_agent_loses_nothing_by_restarts_of_the_broker_with_results() {
    broker_restarts("results");
}

#[test]
fn the_agent_loses_nothing_by_restarts_of_the_broker_with_spill() {
    broker_restarts("spill");
}

#[test]
fn a_killed_agent_loses_nothing_with_results() {
    kills("results").assert_complete();
}

#[test]
fn a_killed_agent_announces_what_it_lost_with_spill() {
    let received = kills("spill");
    received.assert_holes_announced();
    assert!(!received.gaps.is_empty(), "kills must leave gaps, or the test shows nothing");
}
