//! A broker behind a proxy, a subscriber that remembers, and what is done to them round after round.

use std::time::{Duration, Instant};

use super::broker::Broker;
use super::proxy::{Mode, Proxy};
use super::subscriber::{Received, Subscriber};
use super::{now, wait_until};

/// `OCELLI_FIRE_ROUNDS`, 3 unless set.
pub fn rounds() -> u64 {
    std::env::var("OCELLI_FIRE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

/// Different each round, the same each run: milliseconds in `from..to`.
pub fn pick(round: u64, from: u64, to: u64) -> Duration {
    let mixed = (round + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29) ^ to;
    Duration::from_millis(from + mixed % (to - from))
}

/// Broker, proxy, subscriber and the sender's folder.
pub struct Field {
    /// Behind the proxy.
    pub broker: Broker,
    /// What the sender connects to.
    pub proxy: Proxy,
    /// Connected to the broker itself.
    pub subscriber: Subscriber,
    /// For the sender's store.
    pub dir: tempfile::TempDir,
    /// `outbox.durability`.
    pub durability: &'static str,
    began: Instant,
}

impl Field {
    /// Everything is up, and the subscriber's session is on the broker's disk.
    pub fn new(durability: &'static str) -> Self {
        let broker = Broker::start();
        let proxy = Proxy::start(broker.port);
        let subscriber = Subscriber::start(broker.port);
        // The session must outlive a broker that is killed at once.
        broker.save();
        std::thread::sleep(Duration::from_millis(200));
        let dir = tempfile::tempdir().unwrap();
        Self { broker, proxy, subscriber, dir, durability, began: now() }
    }

    /// Waits until results come (again).
    pub fn wait_flowing(&self) {
        let before = self.subscriber.received().known.len();
        let flowing = wait_until(Duration::from_secs(30), || {
            self.subscriber.received().known.len() > before + 20
        });
        assert!(flowing, "no results come");
    }

    /// One of four kinds of trouble on the line; `silent` is longer than the sender takes to notice a dead one.
    pub fn cut(&self, round: u64, silent: Duration) {
        match round % 4 {
            0 => self.proxy.cut(),
            1 => {
                self.proxy.set(Mode::Refuse);
                self.proxy.cut();
                std::thread::sleep(pick(round, 200, 1200));
            }
            2 => {
                self.proxy.set(Mode::Stall);
                std::thread::sleep(silent + pick(round, 0, 1000));
                self.proxy.cut();
            }
            _ => {
                self.proxy.set(Mode::Stall);
                std::thread::sleep(pick(round, 100, 900));
            }
        }
        self.proxy.set(Mode::Pass);
    }

    /// Takes the broker down and up; the sender stays outside until the subscriber is back.
    pub fn restart_broker(&mut self, down: fn(&mut Broker)) {
        self.subscriber.forget_session();
        down(&mut self.broker);
        self.proxy.set(Mode::Refuse);
        self.proxy.cut();
        self.broker.resume();
        self.subscriber.resume();
        self.subscriber.wait_subscribed();
        self.proxy.set(Mode::Pass);
    }

    /// What arrived, once the sender has ended in order.
    #[expect(clippy::print_stdout, reason = "the figures of the run, shown with --nocapture")]
    pub fn harvest(&self) -> Received {
        let received = self.subscriber.settled();
        assert_eq!(received.status, "offline", "the last word");
        println!(
            "{} rounds, {} numbers, {} messages, {} holes, gaps {:?}, {} connection attempts",
            rounds(),
            received.known.len(),
            received.messages,
            received.holes().len(),
            received.gaps,
            self.proxy.attempts().len()
        );
        received
    }

    /// There were no more attempts than waits of half of `first`, the shortest there may be, fit into the test so far.
    ///
    /// The time between two attempts says nothing: on a busy machine the proxy may notice the first one late.
    pub fn assert_patient(&self, first: Duration) {
        let (attempts, passed) = (self.proxy.attempts().len(), now() - self.began);
        let most = 1 + (passed.as_millis() / (first / 2).as_millis()) as usize;
        assert!(attempts <= most, "{attempts} attempts in {passed:?}, at most {most} expected");
    }
}
