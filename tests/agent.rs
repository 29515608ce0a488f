//! The shipped binary with a real broker: presence, results, health, commands, orderly end, last will, troubles.
//!
//! Needs `mosquitto`, `mosquitto_sub` and `mosquitto_pub`.

#![allow(clippy::unwrap_used, reason = "tests may panic, and so may what only they use")]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};

use ocelli_protocol::health::{CameraHealth, Health};
use ocelli_protocol::message::{Findings, FrameResult, Presence, Status};
use ocelli_protocol::model_state::ModelState;
use serde_json::Value;
use support::agent::{Agent, LONG, Setup, project};
use support::field::Field;
use support::proxy::Mode;
use support::{broker, now, program, wait_until};

struct Message {
    retained: bool,
    topic: String,
    payload: Vec<u8>,
}

/// A process that does not outlive its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A broker, and everything that is published below `ocelli/`.
struct Broker {
    broker: broker::Broker,
    _subscriber: Process,
    messages: Receiver<Message>,
    folder: tempfile::TempDir,
}

impl Broker {
    fn start() -> Self {
        let broker = broker::Broker::start();
        let subscriber = Command::new("mosquitto_sub")
            .args(["-h", "127.0.0.1", "-p", &broker.port.to_string(), "-q", "1"])
            .args(["-t", "ocelli/#", "-F", "%r %t %x"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let mut subscriber = Process(subscriber.unwrap());
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
        let folder = tempfile::tempdir().unwrap();
        Self { broker, _subscriber: subscriber, messages, folder }
    }

    fn setup(&self, camera: &Path) -> Setup {
        let mut setup = Setup::new(self.folder.path(), self.broker.port);
        setup.cameras = vec![("front", camera.to_owned())];
        setup
    }

    fn agent(&self, camera: &Path) -> Agent {
        self.setup(camera).start()
    }

    fn health(&self, what: &str, wanted: impl Fn(&Health) -> bool) -> Health {
        self.wait(what, |message| {
            let health = (message.topic == "ocelli/device/dock-3/health")
                .then(|| serde_json::from_slice::<Health>(&message.payload).unwrap());
            health.filter(&wanted)
        })
    }

    /// The next message for which `wanted` has an answer.
    fn wait<T>(&self, what: &str, mut wanted: impl FnMut(&Message) -> Option<T>) -> T {
        let end = now() + LONG;
        loop {
            let left = end.saturating_duration_since(now());
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
            .args(["-h", "127.0.0.1", "-p", &self.broker.port.to_string(), "-q", "1"])
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

fn pictures() -> std::path::PathBuf {
    project("models/pictures")
}

#[test]
fn an_agent_reports_obeys_and_ends_in_order() {
    let broker = Broker::start();
    let agent = broker.agent(&pictures());
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
    assert_eq!(model.running.backend, ["int8"]);
    assert!(model.running.golden > 0 && model.running.sha256.len() == 64);
    let mut numbers = BTreeSet::new();
    while numbers.len() < 10 {
        let result = broker.wait("result", result_of);
        assert_eq!((result.boot_id.as_str(), result.device.as_str()), (&*online.boot_id, "dock-3"));
        assert!(matches!(&result.findings, Findings::Classes(classes) if !classes.is_empty()));
        assert!(result.latency_us.total >= result.latency_us.inference);
        assert!(numbers.insert(result.seq), "number {} came twice", result.seq);
    }
    let health = broker.health("health with results", |health| {
        health.frames.finished > 0 && health.outbox.delivered > 0
    });
    assert!(health.latency_us.total.p50 > 0 && health.streams[0].fps > 0.0);
    assert!(health.rss_bytes.is_some() && health.audit.is_some() && health.broker.connected);
    assert_eq!(health.delegates[0].name, "int8");

    commands_are_answered(&broker, &online.boot_id);

    agent.terminate();
    let offline = broker.presence(Presence::Offline);
    assert_eq!(offline.boot_id, online.boot_id);
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
    let health = broker
        .health("health after the commands", |health| health.streams[0].limit_fps == Some(2.0));
    assert!(health.commands.ignored >= 2 && health.commands.repeated == 1, "{:?}", health.commands);
}

#[test]
fn a_killed_agent_is_told_offline_by_the_broker() {
    let broker = Broker::start();
    let agent = broker.agent(&pictures());
    let online = broker.presence(Presence::Online);
    agent.kill();
    assert_eq!(broker.presence(Presence::Offline).boot_id, online.boot_id);
}

#[test]
fn an_agent_whose_terminal_goes_away_ends_in_order() {
    let broker = Broker::start();
    let mut agent = broker.agent(&pictures());
    let online = broker.presence(Presence::Online);
    broker.wait("result", result_of);
    agent.signal("HUP");
    assert!(agent.end().success(), "ended by the signal itself: results in memory were lost");
    assert_eq!(broker.presence(Presence::Offline).boot_id, online.boot_id);
}

#[test]
fn a_retained_message_that_is_too_large_stops_no_results() {
    let broker = Broker::start();
    let large = broker.folder.path().join("large");
    std::fs::write(&large, vec![b'x'; ocelli::mqtt::MAX_INCOMING_BYTES + 1024]).unwrap();
    let published = Command::new("mosquitto_pub")
        .args(["-h", "127.0.0.1", "-p", &broker.broker.port.to_string(), "-q", "1", "-r"])
        .args(["-t", "ocelli/device/dock-3/cmd/ping", "-f", large.to_str().unwrap()])
        .status();
    assert!(published.unwrap().success());
    let agent = broker.agent(&pictures());
    let health = broker.health("steady connection", |health| health.uptime_s >= 8);
    assert_eq!((health.broker.connected, health.broker.sessions), (true, 2), "{health:?}");
    agent.terminate();
}

#[test]
fn an_agent_whose_camera_is_away_lives_says_so_and_goes_on_once_it_is_there() {
    let broker = Broker::start();
    let absent = broker.folder.path().join("absent");
    let agent = broker.agent(&absent);
    broker.presence(Presence::Online);
    let health = broker.health("health that names the camera", |health| {
        health.streams[0].camera == CameraHealth::Unavailable
    });
    assert!(health.streams[0].reason.as_ref().unwrap().contains("absent"), "{health:?}");
    assert!(agent.log().contains("camera away stream=front"), "{}", agent.log());
    let pong = broker.ask("ping", "p1", "");
    assert!(pong["ok"].is_object(), "{pong}");
    std::fs::create_dir(&absent).unwrap();
    std::fs::copy(pictures().join("coffee.jpg"), absent.join("coffee.jpg")).unwrap();
    broker.wait("result once the camera is there", result_of);
    let health = broker.health("health of a camera that is there", |health| {
        health.streams[0].camera == CameraHealth::Streaming
    });
    assert_eq!(health.streams[0].reason, None);
    agent.terminate();
}

#[test]
fn the_audit_head_covers_earlier_runs() {
    let broker = Broker::start();
    let mut heads = Vec::new();
    for run in 1..=2 {
        let agent = broker.agent(&pictures());
        let boot_id = broker.presence(Presence::Online).boot_id;
        let health = broker.health("health of this run", |health| {
            health.boot_id == boot_id && health.audit.is_some()
        });
        heads.push(health.audit.unwrap());
        let pong = broker.ask("ping", &format!("p{run}"), "");
        assert!(pong["ok"].is_object(), "{pong}");
        agent.terminate();
        broker.presence(Presence::Offline);
    }
    assert_eq!(heads[0].number, 1, "the start of the first run");
    assert_eq!(heads[1].number, 3, "start, ping, start: {heads:?}");
    assert_ne!(heads[0].sha256, heads[1].sha256);
}

/// Each number given by a run that ends in order arrives: the next run goes on with the number after the last one.
#[test]
fn an_orderly_end_delivers_every_number_that_was_given() {
    for durability in ["spill", "results"] {
        let field = Field::new(durability);
        let mut setup = Setup::new(field.dir.path(), field.proxy.port);
        (setup.durability, setup.fps) = (durability, 100.0);
        let first = setup.start();
        field.wait_flowing();
        first.terminate();
        let delivered = field.harvest();
        delivered.assert_complete();
        let second = setup.start();
        field.wait_flowing();
        second.terminate();
        let received = field.harvest();
        received.assert_complete();
        let runs: Vec<_> = received.boots.values().collect();
        assert_eq!(runs.len(), 2, "{durability}");
        let next = delivered.known.last().unwrap() + 1;
        assert!(
            runs.iter().any(|run| run.first() == Some(&next)),
            "{durability}: the second run does not begin with {next}, so a number was given and not sent"
        );
    }
}

/// By `model.cores`: the thread that runs the model and the engine's helpers; cameras and connections run anywhere.
#[test]
fn inference_stays_on_its_cores() {
    let field = Field::new("spill");
    let mut setup = Setup::new(field.dir.path(), field.proxy.port);
    setup.model_lines = "cores = [0]".to_owned();
    let agent = setup.start();
    field.wait_flowing();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", agent.child.id())).unwrap();
    let cores = |task: std::io::Result<std::fs::DirEntry>| {
        let folder = task.unwrap().path();
        let status = std::fs::read_to_string(folder.join("status")).unwrap();
        let of =
            |key| status.lines().find_map(|line| Some(line.strip_prefix(key)?.trim().to_owned()));
        (of("Name:").unwrap(), of("Cpus_allowed_list:").unwrap())
    };
    let threads: Vec<_> = tasks.map(cores).collect();
    for (name, allowed) in &threads {
        assert_eq!(allowed == "0", name == "inference", "{name}: {threads:?}");
    }
    assert!(threads.iter().any(|(name, _)| name == "inference"), "{threads:?}");
    agent.terminate();
}

/// What a run without broker found is sent by the next one, under its own name and numbers.
#[test]
fn results_of_a_run_without_broker_are_sent_by_the_next_run() {
    for durability in ["spill", "results"] {
        let field = Field::new(durability);
        field.proxy.set(Mode::Refuse);
        let mut setup = Setup::new(field.dir.path(), field.proxy.port);
        setup.durability = durability;
        let first = setup.start();
        // Each attempt but the first comes after a wait, in which frames are looked at.
        let tried = wait_until(LONG, || field.proxy.attempts().len() >= 4);
        assert!(tried, "{}", first.log());
        let took = first.terminate();
        assert!(took.as_secs() < 20, "an end without broker took {took:?}");
        assert_eq!(field.subscriber.received().messages, 0);
        field.proxy.set(Mode::Pass);
        let second = setup.start();
        let both = wait_until(LONG, || field.subscriber.received().boots.len() == 2);
        assert!(both, "{durability}: {:?}", field.subscriber.received());
        field.wait_flowing();
        second.terminate();
        let received = field.harvest();
        received.assert_complete();
        let from_first = received.boots.values().find(|run| run.contains(&1)).unwrap();
        let last = *from_first.last().unwrap();
        assert!(from_first.len() >= 10, "{durability}: only {from_first:?}");
        assert_eq!(from_first.len() as u64, last, "{durability}: the numbers of the first run");
    }
}

#[test]
fn a_second_signal_ends_at_once_and_the_next_run_accounts_for_what_was_waiting() {
    let field = Field::new("spill");
    let mut setup = Setup::new(field.dir.path(), field.proxy.port);
    setup.fps = 50.0;
    let mut first = setup.start();
    field.wait_flowing();
    // Results wait, so the orderly end takes its flush time.
    field.proxy.set(Mode::Stall);
    first.signal("TERM");
    first.wait_logged("ending in order");
    let asked = now();
    first.signal("TERM");
    assert_eq!(first.end().code(), Some(1));
    let took = now() - asked;
    assert!(took.as_secs() < 3, "a second signal took {took:?}");
    assert!(first.log().contains("second signal"), "{}", first.log());
    field.proxy.cut();
    field.proxy.set(Mode::Pass);
    let second = setup.start();
    field.wait_flowing();
    second.terminate();
    field.harvest().assert_holes_announced();
}

/// A store that cannot be written: the agent goes on in memory, says so once, and uses the store when it can.
#[test]
fn an_agent_without_a_store_goes_on_says_so_once_and_tries_it_again() {
    let broker = Broker::start();
    let mut setup = broker.setup(&pictures());
    // Nobody, not even root, can make a folder below a file.
    let file = broker.folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    setup.store = file.join("store");
    let agent = setup.start();
    let mut numbers = BTreeSet::new();
    while numbers.len() < 10 {
        let result = broker.wait("result", result_of);
        assert!(numbers.insert(result.seq), "number {} came twice", result.seq);
    }
    let health = broker.health("health that says so", |health| health.outbox.degraded);
    assert_eq!(health.audit, None);
    agent.wait_logged("goes on in memory");
    // Several attempts to write lie between: what is told is not told again.
    let log = agent.log();
    let words = |line: &str| line.split_once(' ').map(|(_, words)| words.to_owned());
    let told: Vec<_> =
        log.lines().filter(|line| line.contains("store")).filter_map(words).collect();
    let once: BTreeSet<_> = told.iter().collect();
    assert_eq!(once.len(), told.len(), "{log}");
    let why = broker.health("health that says why", |health| health.store.is_some()).store;
    assert!(why.as_ref().is_some_and(|why| why.contains("ocelli.db")), "{why:?}");
    std::fs::remove_file(&file).unwrap();
    let health = broker.health("health with a store", |health| {
        health.audit.is_some() && health.store.is_none() && !health.outbox.degraded
    });
    assert_eq!(health.audit.unwrap().number, 1, "the row of the start waited in memory");
    agent.wait_logged("can be used from now on");
    agent.terminate();
}

#[test]
fn a_second_agent_on_the_same_store_is_told_who_has_it() {
    let broker = Broker::start();
    let first = broker.agent(&pictures());
    let boot_id = broker.health("health of the first", |health| health.audit.is_some()).boot_id;
    let folder = tempfile::tempdir().unwrap();
    let mut setup = broker.setup(&pictures());
    let store = std::mem::replace(&mut setup.folder, folder.path().to_owned()).join("store");
    assert_eq!(setup.store, store);
    let mut second = setup.start();
    assert_eq!(second.end().code(), Some(1));
    let log = second.log();
    assert!(log.contains(&format!("{} is used by another agent", store.display())), "{log}");
    assert!(log.contains("give each agent a store.dir of its own"), "{log}");
    // A kill leaves no lock behind.
    first.kill();
    let third = setup.start();
    broker.health("health of the third", |health| health.boot_id != boot_id);
    third.terminate();
}

/// A disk that is full, at the start or soon after: files of the process cannot grow, as RLIMIT_FSIZE has it.
#[test]
fn an_agent_on_a_full_disk_goes_on_and_loses_nothing_while_the_broker_is_there() {
    for kibibytes in [32, 128] {
        let field = Field::new("results");
        let mut setup = Setup::new(field.dir.path(), field.proxy.port);
        setup.durability = "results";
        let config = setup.write();
        let mut command = Command::new("sh");
        // Blocks have 512 bytes; that SIGXFSZ is ignored is inherited; nobody reads the log.
        command
            .args(["-c", "trap '' XFSZ; ulimit -f \"$0\"; exec \"$@\" 2>/dev/null"])
            .arg((2 * kibibytes).to_string())
            .args(program::words())
            .args(["run", "--config"])
            .arg(&config)
            .stdout(Stdio::null());
        let mut agent = Agent::start(&mut command, field.dir.path().join("agent.log"));
        for _ in 0..5 {
            field.wait_flowing();
        }
        assert!(agent.is_running());
        agent.terminate();
        let received = field.subscriber.settled();
        received.assert_ordered();
        // Without a store numbers begin at the clock's.
        let (first, last) = (received.first[0], received.first[received.first.len() - 1]);
        assert_eq!(last - first + 1, received.first.len() as u64, "{kibibytes} KiB: holes");
    }
}

#[test]
fn a_port_with_somebody_else_behind_it_is_told_and_tried_again() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Takes connections and closes them, as a server of another protocol would.
    std::thread::spawn(move || listener.incoming().map_while(Result::ok).for_each(drop));
    let folder = tempfile::tempdir().unwrap();
    let mut agent = Setup::new(folder.path(), port).start();
    agent.wait_logged(&format!("127.0.0.1:{port} ended the connection"));
    assert!(agent.is_running());
    agent.terminate();
}
