//! Delivery under fire: a real broker, a sender in a process of its own, cuts, stalls and kills.
//!
//! `OCELLI_FIRE_ROUNDS` sets the rounds of each test (3 unless set; the full run has 30).

#![allow(clippy::unwrap_used, reason = "tests may panic, and so may what only they use")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ocelli::clock::{Clock, SystemClock, UnixTime};
use ocelli::detection::{BoundingBox, Detection, Findings};
use ocelli::mqtt::{self, BackoffSettings};
use ocelli::report::{self, Durability, FrameReport, OutboxSettings};
use ocelli::store;
use ocelli_protocol::message::{ModelId, StageLatency};
use support::broker::Broker;
use support::field::{Field, pick, rounds};
use support::proxy::Mode;
use support::subscriber::Received;
use support::{now, wait_until};

/// Tells the child what it is; see [`child_sender`].
const ROLE: &str = "OCELLI_FIRE_SENDER";
/// Upper bounds of the sender's waits.
const BACKOFF: BackoffSettings = BackoffSettings {
    first: Duration::from_millis(100),
    max: Duration::from_secs(1),
    stable_after: Duration::from_secs(2),
};
/// Longer than two pings: the sender notices a dead line by itself.
const SILENT: Duration = Duration::from_millis(2500);
/// Time from one result to the next: 100 a second.
const PERIOD: Duration = Duration::from_millis(10);

/// The sender, started by re-running this test program. Killed on drop.
struct Sender(Child);

impl Sender {
    fn start(dir: &Path, port: u16, durability: &str) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_sender", "--nocapture", "--test-threads=1"])
            .env(ROLE, format!("{durability} {port} {}", dir.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Orderly end.
    fn finish(mut self) {
        drop(self.0.stdin.take());
        let ended = wait_until(Duration::from_secs(20), || self.0.try_wait().unwrap().is_some());
        assert!(ended, "the sender does not end");
        assert!(self.0.wait().unwrap().success(), "the sender failed");
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test of its own: the body of the sender's process, and nothing without [`ROLE`].
#[test]
fn child_sender() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let [durability, port, dir] = role.splitn(3, ' ').collect::<Vec<_>>()[..] else {
        panic!("{role}");
    };
    let durability = if durability == "results" { Durability::Results } else { Durability::Spill };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(send(durability, port.parse().unwrap(), dir));
}

async fn send(durability: Durability, port: u16, dir: &str) {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (store, recovered) =
        store::start(store::Settings::in_dir(dir), Arc::clone(&clock)).unwrap();
    let boot_id = report::new_boot_id(clock.wall());
    let mut settings = report::Settings::new("sender".parse().unwrap(), "ocelli", boot_id);
    settings.outbox = OutboxSettings {
        durability,
        spill_after: Duration::from_millis(300),
        ..OutboxSettings::default()
    };
    let mut connection = mqtt::Settings::new("sender", "127.0.0.1", port);
    connection.keep_alive = Duration::from_secs(1);
    connection.timeout = Duration::from_secs(2);
    connection.backoff = BACKOFF;
    connection.will = Some(settings.will(clock.wall()));
    let (port, link) = mqtt::client::start(connection, Arc::clone(&clock));
    let link = tokio::spawn(link);
    let (handle, _events, reporter) =
        report::start(settings, store, &recovered, port, Arc::clone(&clock));
    let task = tokio::spawn(reporter.run());
    let mut end = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    let mut ticks = tokio::time::interval(PERIOD);
    for frame in 0.. {
        tokio::select! {
            _ = &mut end => break,
            _ = ticks.tick() => handle.submit(synthetic(frame, clock.wall())).await.unwrap(),
        }
    }
    handle.shutdown().await.unwrap();
    task.await.unwrap();
    link.await.unwrap();
}

fn synthetic(frame: u64, captured_at: UnixTime) -> FrameReport {
    let bounding_box = BoundingBox { x: 0.41, y: 0.22, w: 0.18, h: 0.6 };
    FrameReport {
        stream: "front".parse().unwrap(),
        frame,
        captured_at,
        model: ModelId { name: "nanodet-g-coco".into(), version: "1.0.0".into() },
        backend: vec!["int8".into()],
        latency: StageLatency::default(),
        findings: Findings::Detections(vec![Detection {
            label: "person".into(),
            class: 0,
            score: 0.83,
            bounding_box,
            landmarks: vec![],
        }]),
    }
}

fn sender(field: &Field) -> Sender {
    Sender::start(field.dir.path(), field.proxy.port, field.durability)
}

/// Orderly end; then what arrived.
fn finish(field: &Field, sender: Sender) -> Received {
    field.wait_flowing();
    sender.finish();
    field.harvest()
}

#[test]
fn results_survive_network_cuts() {
    let field = Field::new("results");
    let running = sender(&field);
    for round in 0..rounds() {
        field.wait_flowing();
        std::thread::sleep(pick(round, 0, 400));
        field.cut(round, SILENT);
    }
    let received = finish(&field, running);
    received.assert_complete();
    field.assert_patient(BACKOFF.first);
}

#[test]
fn results_survive_kills_of_the_sender() {
    let field = Field::new("results");
    let mut running = sender(&field);
    for round in 0..rounds() {
        field.wait_flowing();
        std::thread::sleep(pick(round, 0, 700));
        running.kill();
        running = sender(&field);
    }
    finish(&field, running).assert_complete();
}

#[test]
fn results_survive_restarts_of_the_broker() {
    let mut field = Field::new("results");
    let running = sender(&field);
    for round in 0..rounds() {
        field.wait_flowing();
        std::thread::sleep(pick(round, 0, 700));
        field.restart_broker(Broker::terminate);
    }
    let received = finish(&field, running);
    received.assert_complete();
    field.assert_patient(BACKOFF.first);
}

#[test]
fn what_a_killed_broker_loses_it_had_acknowledged() {
    let mut field = Field::new("results");
    let running = sender(&field);
    for round in 0..rounds() {
        field.wait_flowing();
        std::thread::sleep(pick(round, 0, 700));
        // What the broker holds for an absent subscriber dies with it.
        if round % 2 == 0 {
            field.subscriber.pause();
            std::thread::sleep(pick(round, 200, 500));
        }
        field.restart_broker(Broker::kill);
    }
    let received = finish(&field, running);
    received.assert_ordered();
    assert!(
        !received.holes().is_empty(),
        "a killed broker must lose something, or the test shows nothing"
    );
    let acked = field.proxy.acked();
    let ours: Vec<_> = received.holes().into_iter().filter(|seq| !acked.contains(seq)).collect();
    assert!(ours.is_empty(), "lost, and not by the broker: {ours:?}");
    assert_eq!(received.gaps, BTreeSet::new());
}

#[test]
fn spill_announces_every_hole_in_exactly_one_gap() {
    let mut field = Field::new("spill");
    let mut running = sender(&field);
    for round in 0..rounds() {
        field.wait_flowing();
        std::thread::sleep(pick(round, 0, 700));
        // Some kills happen while the broker is away and results are on their way to the store.
        match round % 3 {
            0 => {}
            1 => {
                field.proxy.set(Mode::Refuse);
                field.proxy.cut();
                std::thread::sleep(pick(round, 100, 1500));
            }
            _ => field.restart_broker(Broker::terminate),
        }
        running.kill();
        field.proxy.set(Mode::Pass);
        running = sender(&field);
    }
    let received = finish(&field, running);
    received.assert_holes_announced();
    assert!(!received.gaps.is_empty(), "kills must leave gaps, or the test shows nothing");
}

#[test]
fn spill_survives_cuts_without_a_gap() {
    let field = Field::new("spill");
    let running = sender(&field);
    for round in 0..rounds() {
        field.wait_flowing();
        field.cut(round, SILENT);
    }
    let received = finish(&field, running);
    received.assert_complete();
    field.assert_patient(BACKOFF.first);
}

#[test]
fn reconnects_are_never_busier_than_the_back_off_says() {
    let field = Field::new("spill");
    let running = sender(&field);
    field.wait_flowing();
    std::thread::sleep(BACKOFF.stable_after + Duration::from_millis(200));
    let known = field.proxy.attempts().len();
    field.proxy.set(Mode::Refuse);
    let start = now();
    field.proxy.cut();
    // Waits that went on doubling would take minutes for these.
    let enough = wait_until(Duration::from_secs(60), || field.proxy.attempts().len() >= known + 12);
    let attempts = field.proxy.attempts().split_off(known);
    assert!(enough, "only {} attempts in a minute", attempts.len());
    field.proxy.set(Mode::Pass);
    let mut earliest = start;
    for (number, attempt) in attempts.into_iter().enumerate() {
        // Measured from the start, because a busy machine makes single attempts late, and so the next wait look short.
        earliest += (BACKOFF.first * (1 << number.min(8))).min(BACKOFF.max) / 2;
        assert!(attempt >= earliest, "attempt {number} is {:?} early", earliest - attempt);
    }
    finish(&field, running).assert_complete();
}
