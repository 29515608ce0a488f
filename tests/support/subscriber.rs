//! A subscriber with a persistent session that remembers what arrived, in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde_json::Value;
use tokio::sync::Notify;

use super::wait_until;

/// What arrived.
#[derive(Debug, Clone, Default)]
pub struct Received {
    /// Result numbers in order of their first arrival.
    pub first: Vec<u64>,
    /// The same, for look-up.
    pub known: BTreeSet<u64>,
    /// Announced gaps, repetitions removed.
    pub gaps: BTreeSet<(u64, u64)>,
    /// Results of each run of the agent, by boot id; repetitions removed.
    pub boots: BTreeMap<String, BTreeSet<u64>>,
    /// Messages, repetitions included.
    pub messages: usize,
    /// Last status payload.
    pub status: String,
}

impl Received {
    /// Numbers up to the highest that did not arrive.
    pub fn holes(&self) -> Vec<u64> {
        let last = self.known.last().copied().unwrap_or(0);
        (1..=last).filter(|seq| !self.known.contains(seq)).collect()
    }

    /// Panics unless every number from 1 arrived, in order, and nothing was announced as lost.
    pub fn assert_complete(&self) {
        self.assert_ordered();
        assert_eq!(self.holes(), [0; 0], "missing numbers");
        assert_eq!(self.gaps, BTreeSet::new(), "announced although nothing is lost");
    }

    /// Panics unless first arrivals are in order and every hole lies in exactly one gap.
    pub fn assert_holes_announced(&self) {
        self.assert_ordered();
        let mut last = 0;
        for (from, to) in &self.gaps {
            assert!(*from > last && to >= from, "gaps share numbers: {:?}", self.gaps);
            last = *to;
        }
        let announced = |seq: &u64| self.gaps.iter().any(|(from, to)| (from..=to).contains(&seq));
        let silent: Vec<_> = self.holes().into_iter().filter(|seq| !announced(seq)).collect();
        assert!(silent.is_empty(), "lost in silence: {silent:?}; announced: {:?}", self.gaps);
    }

    /// Panics unless first arrivals are strictly increasing.
    pub fn assert_ordered(&self) {
        let wrong: Vec<_> = self.first.windows(2).filter(|pair| pair[0] >= pair[1]).collect();
        assert!(wrong.is_empty(), "out of order: {wrong:?}");
    }
}

/// Results kept whole.
const RESULTS_KEPT: usize = 512;

/// What arrived, as it came.
#[derive(Default)]
struct Payloads {
    results: VecDeque<Value>,
    latest: BTreeMap<String, Value>,
}

impl Payloads {
    fn keep(&mut self, topic: &str, payload: &[u8]) {
        let Ok(value) = serde_json::from_slice::<Value>(payload) else { return };
        if topic.contains("/result/") {
            if self.results.len() == RESULTS_KEPT {
                self.results.pop_front();
            }
            self.results.push_back(value.clone());
        }
        self.latest.insert(topic.to_owned(), value);
    }
}

/// The subscriber; its thread ends with the process or on drop.
#[derive(Default)]
pub struct Subscriber {
    received: Arc<Mutex<Received>>,
    payloads: Arc<Mutex<Payloads>>,
    subscribed: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    paused: Arc<AtomicBool>,
    wake: Arc<Notify>,
}

impl Subscriber {
    /// Subscribes to everything of all devices, and waits until the broker has agreed.
    pub fn start(port: u16) -> Self {
        let subscriber = Self::default();
        let own = Self {
            received: subscriber.received.clone(),
            payloads: subscriber.payloads.clone(),
            subscribed: subscriber.subscribed.clone(),
            ended: subscriber.ended.clone(),
            paused: subscriber.paused.clone(),
            wake: subscriber.wake.clone(),
        };
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(own.run(port));
        });
        subscriber.wait_subscribed();
        subscriber
    }

    /// Waits until the session is there (again).
    pub fn wait_subscribed(&self) {
        let there = wait_until(Duration::from_secs(10), || self.subscribed.load(Ordering::SeqCst));
        assert!(there, "the subscriber does not get a session");
    }

    /// The broker is about to go: the session must come back before [`Subscriber::wait_subscribed`] returns.
    pub fn forget_session(&self) {
        self.subscribed.store(false, Ordering::SeqCst);
    }

    /// Goes away; the broker keeps what comes.
    pub fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    /// Comes back.
    pub fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
    }

    async fn run(&self, port: u16) {
        let mut options = MqttOptions::new("watcher", "127.0.0.1", port);
        options.set_clean_session(false).set_keep_alive(Duration::from_secs(5));
        options.set_max_packet_size(1 << 20, 1 << 20);
        let (client, mut events) = AsyncClient::new(options, 16);
        while !self.ended.load(Ordering::SeqCst) {
            if self.paused.load(Ordering::SeqCst) {
                events.clean();
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
            let event = tokio::select! {
                event = events.poll() => event,
                () = self.wake.notified() => continue,
            };
            match event {
                Ok(Event::Incoming(Packet::ConnAck(ack))) if ack.session_present => {
                    self.subscribed.store(true, Ordering::SeqCst);
                }
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    client.try_subscribe("ocelli/device/+/#", QoS::AtLeastOnce).unwrap();
                }
                Ok(Event::Incoming(Packet::SubAck(_))) => {
                    self.subscribed.store(true, Ordering::SeqCst)
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    let (topic, payload) = (&publish.topic, &publish.payload);
                    self.payloads.lock().unwrap().keep(topic, payload);
                    note(&mut self.received.lock().unwrap(), topic, payload);
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// What arrived so far.
    pub fn received(&self) -> Received {
        self.received.lock().unwrap().clone()
    }

    /// The last results as they came, repetitions included, oldest first.
    pub fn results(&self) -> Vec<Value> {
        self.payloads.lock().unwrap().results.iter().cloned().collect()
    }

    /// The last payload whose topic ends so.
    pub fn latest(&self, topic: &str) -> Option<Value> {
        let payloads = self.payloads.lock().unwrap();
        payloads
            .latest
            .iter()
            .find(|(known, _)| known.ends_with(topic))
            .map(|(_, value)| value.clone())
    }

    /// What arrived, once the device's last word has, and nothing more came for a second.
    ///
    /// A broker hands on in order what one device sends, so `offline`, sent last, comes after all results.
    pub fn settled(&self) -> Received {
        wait_until(Duration::from_secs(60), || self.received.lock().unwrap().status == "offline");
        let mut before = usize::MAX;
        for _ in 0..60 {
            let messages = self.received.lock().unwrap().messages;
            if messages == before {
                break;
            }
            before = messages;
            std::thread::sleep(Duration::from_secs(1));
        }
        self.received()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }
}

fn note(received: &mut Received, topic: &str, payload: &[u8]) {
    let value: Value = serde_json::from_slice(payload).expect("payloads are JSON");
    received.messages += 1;
    if topic.contains("/result/") {
        let seq = value["seq"].as_u64().expect("a result has a number");
        if received.known.insert(seq) {
            received.first.push(seq);
            let boot = value["boot_id"].as_str().expect("a result names its run").to_owned();
            received.boots.entry(boot).or_default().insert(seq);
        }
    } else if topic.ends_with("/gap") {
        let range = (value["from"].as_u64().expect("from"), value["to"].as_u64().expect("to"));
        received.gaps.insert(range);
    } else if topic.ends_with("/status") {
        received.status = value["state"].as_str().expect("a state").to_owned();
    }
}
