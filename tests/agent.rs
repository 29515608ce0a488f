//! The agent as a process of its own, with a real broker: presence, results, health, commands, orderly end, last will.
//!
//! Needs `mosquitto`, `mosquitto_sub` and `mosquitto_pub`. The agent's process is this test binary, started again with
//! [`CHILD`] set, so that signals and exit codes are real.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use ocelli::agent::{
    self, DeliverySettings, ModelSettings, Settings, StreamSettings, WatchdogLimits,
};
use ocelli::camera::{self, Loop};
use ocelli::clock::{Clock, SystemClock};
use ocelli::pipeline::Gate;
use ocelli::report::OutboxSettings;
use ocelli::{board, mqtt, store};
use ocelli_protocol::health::Health;
use ocelli_protocol::message::{Findings, FrameResult, Presence, Status};
use ocelli_protocol::model_state::ModelState;
use serde_json::Value;

/// `<port> <folder of the store> <camera>` of the process that is the agent.
const CHILD: &str = "OCELLI_TEST_AGENT";
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn settings(port: u16, folder: &str, source: &str) -> Settings {
    let device: ocelli_protocol::Id = "dock-3".parse().unwrap();
    let camera = camera::Settings {
        looped: Loop::Forever,
        fps: Some(20.0),
        ..camera::Settings::new(source)
    };
    Settings {
        streams: vec![StreamSettings { name: "front".parse().unwrap(), camera, gate: Gate::Open }],
        model: ModelSettings {
            path: format!("{ROOT}/tests/fixtures/tiny-classifier").into(),
            delegates: vec![],
            deadline: Duration::from_secs(2),
        },
        delivery: Some(DeliverySettings {
            mqtt: mqtt::Settings::new(device.as_str(), "127.0.0.1", port),
            device,
            root: "ocelli".to_owned(),
            outbox: OutboxSettings::default(),
            store: store::Settings::in_dir(folder),
            flush: Duration::from_secs(5),
        }),
        board: board::Settings::default(),
        health_interval: Duration::from_secs(1),
        watchdog: WatchdogLimits::default(),
    }
}

/// The agent's process: does nothing unless it is started as such.
#[test]
fn agent_process() {
    let Ok(told) = std::env::var(CHILD) else { return };
    let [port, folder, camera]: [&str; 3] = told.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let settings = settings(port.parse().unwrap(), folder, camera);
    let code = match agent::run(settings, Arc::new(SystemClock), &mut std::io::sink()) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("ocelli: {error}");
            1
        }
    };
    std::process::exit(code);
}

/// A process that does not outlive its test.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    fn end(&mut self) -> ExitStatus {
        let end = SystemClock.now() + LONG;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(SystemClock.now() < end, "the process does not end");
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Message {
    retained: bool,
    topic: String,
    payload: Vec<u8>,
}

/// A broker, and everything that is published below `ocelli/`.
struct Broker {
    _process: Process,
    _subscriber: Process,
    port: u16,
    messages: Receiver<Message>,
    folder: tempfile::TempDir,
}

impl Broker {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = folder.path().join("mosquitto.conf");
        std::fs::write(&config, format!("listener {port} 127.0.0.1\nallow_anonymous true\n"))
            .unwrap();
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let quiet = |program: &str| {
            let mut command = Command::new(program);
            command.env("PATH", &path).stdin(Stdio::null()).stderr(Stdio::null());
            command
        };
        let process = Process::start(quiet("mosquitto").arg("-c").arg(&config));
        let end = SystemClock.now() + LONG;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(SystemClock.now() < end, "mosquitto does not listen");
            std::thread::park_timeout(Duration::from_millis(10));
        }
        let mut subscriber = Process::start(
            quiet("mosquitto_sub")
                .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-q", "1"])
                .args(["-t", "ocelli/#", "-F", "%r %t %x"])
                .stdout(Stdio::piped()),
        );
        let lines = BufReader::new(subscriber.0.stdout.take().unwrap());
        let (sender, messages) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut parts = line.splitn(3, ' ');
                let retained = parts.next() == Some("1");
                let topic = parts.next().unwrap_or_default().to_owned();
                let payload = unhex(parts.next().unwrap_or_default());
                if sender.send(Message { retained, topic, payload }).is_err() {
                    return;
                }
            }
        });
        Self { _process: process, _subscriber: subscriber, port, messages, folder }
    }

    fn agent(&self, camera: &str) -> Process {
        let store = self.folder.path().join("store");
        let told = format!("{} {} {camera}", self.port, store.display());
        let mut command = Command::new(std::env::current_exe().unwrap());
        Process::start(
            command
                .args(["--exact", "agent_process", "--nocapture"])
                .env(CHILD, told)
                .stdin(Stdio::null())
                .stdout(Stdio::null()),
        )
    }

    /// The next message for which `wanted` has an answer.
    fn wait<T>(&self, what: &str, mut wanted: impl FnMut(&Message) -> Option<T>) -> T {
        let end = SystemClock.now() + LONG;
        loop {
            let left = end.saturating_duration_since(SystemClock.now());
            let message = self.messages.recv_timeout(left).unwrap_or_else(|_| panic!("no {what}"));
            if let Some(found) = wanted(&message) {
                return found;
            }
        }
    }

    fn document<T: serde::de::DeserializeOwned>(&self, topic: &str) -> T {
        let topic = format!("ocelli/device/dock-3/{topic}");
        self.wait(&topic, |message| {
            (message.topic == topic).then(|| serde_json::from_slice(&message.payload).unwrap())
        })
    }

    fn presence(&self, wanted: Presence) -> Status {
        let topic = "ocelli/device/dock-3/status";
        self.wait(&format!("status {wanted:?}"), |message| {
            let status = (message.topic == topic).then(|| serde_json::from_slice(&message.payload));
            status.map(Result::unwrap).filter(|status: &Status| status.state == wanted)
        })
    }

    fn publish(&self, verb: &str, payload: &str, more: &[&str]) {
        let status = Command::new("mosquitto_pub")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-q", "1"])
            .args(["-t", &format!("ocelli/device/dock-3/cmd/{verb}"), "-m", payload])
            .args(more)
            .status();
        assert!(status.unwrap().success());
    }

    /// Asks, and gives the answer.
    fn ask(&self, verb: &str, id: &str, arguments: &str) -> Value {
        self.publish(verb, &format!(r#"{{"id":"{id}"{arguments}}}"#), &[]);
        self.document(&format!("reply/{id}"))
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks_exact(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

fn result_of(message: &Message) -> Option<FrameResult> {
    let is_result = message.topic == "ocelli/device/dock-3/result/front";
    is_result.then(|| serde_json::from_slice(&message.payload).unwrap())
}

fn pictures() -> String {
    format!("{ROOT}/models/pictures")
}

#[test]
fn an_agent_reports_obeys_and_ends_in_order() {
    let broker = Broker::start();
    let mut agent = broker.agent(&pictures());
    let (mut online, mut model) = (None, None);
    broker.wait("status and model", |message| {
        match message.topic.strip_prefix("ocelli/device/dock-3/") {
            Some("status") => online = serde_json::from_slice::<Status>(&message.payload).ok(),
            Some("model") => model = serde_json::from_slice::<ModelState>(&message.payload).ok(),
            _ => {}
        }
        online.clone().zip(model.clone())
    });
    let (online, model) = (online.expect("waited for"), model.expect("waited for"));
    assert_eq!(online.state, Presence::Online);
    assert_eq!(model.running.backend, ["tract"]);
    assert!(model.running.golden > 0 && model.running.sha256.len() == 64);
    let mut numbers = BTreeSet::new();
    while numbers.len() < 10 {
        let result = broker.wait("result", result_of);
        assert_eq!((result.boot_id.as_str(), result.device.as_str()), (&*online.boot_id, "dock-3"));
        assert!(matches!(&result.findings, Findings::Classes(classes) if !classes.is_empty()));
        assert!(result.latency_us.total >= result.latency_us.inference);
        assert!(numbers.insert(result.seq), "number {} came twice", result.seq);
    }
    let health = broker.wait("health with results", |message| {
        let health = (message.topic == "ocelli/device/dock-3/health")
            .then(|| serde_json::from_slice::<Health>(&message.payload).unwrap());
        health.filter(|health| health.frames.finished > 0 && health.outbox.delivered > 0)
    });
    assert!(health.latency_us.total.p50 > 0 && health.streams[0].fps > 0.0);
    assert!(health.rss_bytes.is_some() && health.audit.is_some() && health.broker.connected);
    assert_eq!(health.delegates[0].name, "tract");

    commands_are_answered(&broker, &online.boot_id);

    agent.signal("-TERM");
    assert!(agent.end().success());
    let mut last = None;
    let offline = broker.wait("goodbye", |message| {
        if let Some(result) = result_of(message) {
            numbers.insert(result.seq);
            last = Some(result.seq);
        }
        assert_ne!(message.topic, "ocelli/device/dock-3/gap");
        (message.topic == "ocelli/device/dock-3/status")
            .then(|| serde_json::from_slice::<Status>(&message.payload).unwrap())
    });
    assert_eq!((offline.state, offline.boot_id), (Presence::Offline, online.boot_id));

    // The next run goes on above the last number: everything up to it came, or lies in an announced gap.
    let mut again = broker.agent(&pictures());
    let next = broker.wait("result of the second run", result_of);
    assert!(last.is_none_or(|last| next.seq > last), "{} after {last:?}", next.seq);
    again.signal("-INT");
    assert!(again.end().success());
}

fn commands_are_answered(broker: &Broker, boot_id: &str) {
    let pong = broker.ask("ping", "p1", "");
    assert_eq!(pong["ok"]["boot_id"], boot_id);
    assert_eq!(broker.ask("ping", "p1", ""), pong, "a known id is answered again");
    let refused = [
        ("query", "q1", "", "unknown-verb"),
        ("set-rate", "r1", r#","stream":"front","fps":0"#, "bad-request"),
        ("set-rate", "r2", r#","stream":"back","fps":2"#, "unknown-stream"),
        ("snapshot", "s1", r#","stream":"back""#, "unknown-stream"),
        ("check-update", "u1", "", "not-now"),
        ("abort-trial", "t1", "", "not-now"),
    ];
    for (verb, id, arguments, code) in refused {
        let answer = broker.ask(verb, id, arguments);
        assert_eq!(answer["error"]["code"], code, "{verb}: {answer}");
    }
    broker.publish("ping", "{no json", &[]);
    broker.publish("ping", r#"{"id":"NO ID"}"#, &[]);
    broker.publish("ping", r#"{"id":"kept"}"#, &["-r"]);

    broker.publish("snapshot", r#"{"id":"s2","stream":"front"}"#, &[]);
    let mut answer = None;
    let mut picture = None;
    broker.wait("snapshot and its answer", |message| {
        match message.topic.strip_prefix("ocelli/device/dock-3/") {
            Some("reply/s2") => answer = serde_json::from_slice::<Value>(&message.payload).ok(),
            Some("snapshot/front") => picture = Some((message.payload.clone(), message.retained)),
            _ => {}
        }
        (answer.is_some() && picture.is_some()).then_some(())
    });
    let (picture, retained) = picture.unwrap();
    assert!(picture.starts_with(&[0xFF, 0xD8]) && !retained);
    assert_eq!(answer.unwrap()["ok"]["bytes"], picture.len());

    let answer = broker.ask("set-rate", "r3", r#","fps":2"#);
    assert_eq!(answer["ok"], serde_json::json!({ "stream": "front", "fps": 2.0 }));
    // The retained ping is still with the broker, and was delivered live as well: neither may be answered twice.
    let health = broker.wait("health after the commands", |message| {
        let health = (message.topic == "ocelli/device/dock-3/health")
            .then(|| serde_json::from_slice::<Health>(&message.payload).unwrap());
        health.filter(|health| health.streams[0].limit_fps == Some(2.0))
    });
    assert!(health.commands.ignored >= 2 && health.commands.repeated == 1, "{:?}", health.commands);
}

#[test]
fn a_killed_agent_is_told_offline_by_the_broker() {
    let broker = Broker::start();
    let mut agent = broker.agent(&pictures());
    let online = broker.presence(Presence::Online);
    agent.signal("-KILL");
    assert!(!agent.end().success());
    assert_eq!(broker.presence(Presence::Offline).boot_id, online.boot_id);
}

#[test]
fn an_agent_whose_terminal_goes_away_ends_in_order() {
    let broker = Broker::start();
    let mut agent = broker.agent(&pictures());
    let online = broker.presence(Presence::Online);
    broker.wait("result", result_of);
    agent.signal("-HUP");
    assert!(agent.end().success(), "ended by the signal itself: results in memory were lost");
    assert_eq!(broker.presence(Presence::Offline).boot_id, online.boot_id);
}

#[test]
fn a_retained_message_that_is_too_large_stops_no_results() {
    let broker = Broker::start();
    let large = broker.folder.path().join("large");
    std::fs::write(&large, vec![b'x'; mqtt::MAX_INCOMING_BYTES + 1024]).unwrap();
    let published = Command::new("mosquitto_pub")
        .args(["-h", "127.0.0.1", "-p", &broker.port.to_string(), "-q", "1", "-r"])
        .args(["-t", "ocelli/device/dock-3/cmd/ping", "-f", large.to_str().unwrap()])
        .status();
    assert!(published.unwrap().success());
    let mut agent = broker.agent(&pictures());
    let health = broker.wait("steady connection", |message| {
        let health = (message.topic == "ocelli/device/dock-3/health")
            .then(|| serde_json::from_slice::<Health>(&message.payload).unwrap());
        health.filter(|health| health.uptime_s >= 8)
    });
    assert_eq!((health.broker.connected, health.broker.sessions), (true, 2), "{health:?}");
    agent.signal("-TERM");
    assert!(agent.end().success());
}

#[test]
fn an_agent_whose_camera_is_away_lives_and_says_so() {
    let broker = Broker::start();
    let absent = broker.folder.path().join("absent");
    let mut agent = broker.agent(absent.to_str().unwrap());
    broker.presence(Presence::Online);
    let health = broker.wait("health that names the camera", |message| {
        let health = (message.topic == "ocelli/device/dock-3/health")
            .then(|| serde_json::from_slice::<Health>(&message.payload).unwrap());
        health.filter(|health| health.streams[0].reason.is_some())
    });
    assert!(health.streams[0].reason.as_ref().unwrap().contains("absent"), "{health:?}");
    let pong = broker.ask("ping", "p1", "");
    assert!(pong["ok"].is_object(), "{pong}");
    std::fs::create_dir(&absent).unwrap();
    let picture = Path::new(&pictures()).join("coffee.jpg");
    std::fs::copy(picture, absent.join("coffee.jpg")).unwrap();
    broker.wait("result once the camera is there", result_of);
    agent.signal("-TERM");
    assert!(agent.end().success());
}

#[test]
fn an_agent_without_its_broker_ends_in_order_and_keeps_its_results() {
    let folder = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let told = format!("{port} {} {}", folder.path().display(), pictures());
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut agent = Process::start(
        command.args(["--exact", "agent_process"]).env(CHILD, told).stdout(Stdio::null()),
    );
    let database = folder.path().join(store::DATABASE_FILE);
    let end = SystemClock.now() + LONG;
    while !database.exists() {
        assert!(SystemClock.now() < end, "no store");
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let asked: Instant = SystemClock.now();
    agent.signal("-TERM");
    assert!(agent.end().success());
    assert!(SystemClock.now() - asked < Duration::from_secs(20));
}
