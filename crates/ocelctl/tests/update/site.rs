//! A folder with keys and repository, a broker, agents that follow it, and what they publish.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ocelli_protocol::message::FrameResult;
use ocelli_protocol::model_state::{ModelState, Trust};
use serde_json::Value;

use super::support::agent::{Agent, Setup, project};
use super::support::broker::Broker;
use super::support::{program, wait_until};

pub(super) const ROLES: [&str; 6] =
    ["root", "targets", "releases", "rollout", "snapshot", "timestamp"];
pub(super) const ONLINE: [&str; 3] = ["rollout", "snapshot", "timestamp"];
pub(super) const MODEL: &str = "tiny-classifier";
/// A loaded machine takes its time.
pub(super) const PATIENCE: Duration = Duration::from_secs(240);

pub(super) fn ocelctl(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ocelctl"))
        .args(arguments)
        .current_dir(folder)
        .env("OCELCTL_PASSPHRASE", "for tests only")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

pub(super) fn ok(folder: &Path, arguments: &[&str]) -> String {
    let output = ocelctl(folder, arguments);
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{arguments:?}: {out}{err}");
    out.into_owned()
}

pub(super) fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = ocelctl(folder, arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    String::from_utf8(output.stderr).unwrap()
}

/// The test package under another version, changed by `change`.
pub(super) fn package(folder: &Path, version: &str, change: impl FnOnce(&Path)) {
    let from = project("tests/fixtures/tiny-classifier");
    let to = folder.join(format!("package-{version}"));
    std::fs::create_dir_all(to.join("golden")).unwrap();
    for name in ["model.onnx", "labels.txt", "golden/shapes.jpg", "golden/shapes.json"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
    let manifest = std::fs::read_to_string(from.join("manifest.toml")).unwrap();
    // A busy machine must not look like a slow model: no test here is about latency.
    let manifest = manifest.replace("0.1.0", version) + "\n[budget]\nlatency_p90_ms = 60000.0\n";
    std::fs::write(to.join("manifest.toml"), manifest).unwrap();
    change(&to);
}

/// Keys and an empty repository in a folder of its own.
pub(super) fn repository(folder: &Path) {
    for role in ROLES {
        ok(folder, &["keys", "new", &format!("keys/{role}")]);
    }
    let mut words = vec!["repo".to_owned(), "init".into(), "--id".into(), "factory-a".into()];
    for role in ROLES {
        words.extend([format!("--{role}"), format!("keys/{role}.pub")]);
        words.extend(["--key".into(), format!("keys/{role}.key")]);
    }
    ok(folder, &words.iter().map(String::as_str).collect::<Vec<_>>());
}

fn with_keys(words: &[&str], roles: &[&str]) -> Vec<String> {
    let keys = roles.iter().flat_map(|role| ["--key".to_owned(), format!("keys/{role}.key")]);
    words.iter().map(|word| (*word).to_owned()).chain(keys).collect()
}

pub(super) fn ok_with(folder: &Path, words: &[&str], roles: &[&str]) -> String {
    let words = with_keys(words, roles);
    ok(folder, &words.iter().map(String::as_str).collect::<Vec<_>>())
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

/// Everything that devices publish, as it comes.
pub(super) struct Watcher {
    _process: Process,
    pub(super) messages: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Watcher {
    pub(super) fn start(arguments: &[&str]) -> Self {
        let process = Command::new("mosquitto_sub")
            .args(arguments)
            .args(["-q", "1", "-t", "ocelli/device/#", "-F", "%t %p"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut process = Process(process.unwrap());
        let lines = BufReader::new(process.0.stdout.take().unwrap());
        let messages = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&messages);
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let (topic, payload) = line.split_once(' ').unwrap_or((&line, ""));
                if let Ok(value) = serde_json::from_str(payload) {
                    seen.lock().unwrap().push((topic.to_owned(), value));
                }
            }
        });
        Self { _process: process, messages }
    }

    pub(super) fn newest(&self, topic: &str) -> Option<Value> {
        let messages = self.messages.lock().unwrap();
        messages
            .iter()
            .rev()
            .find(|(name, _)| name.ends_with(topic))
            .map(|(_, value)| value.clone())
    }

    pub(super) fn model(&self) -> Option<ModelState> {
        self.model_of("dock-3")
    }

    pub(super) fn model_of(&self, device: &str) -> Option<ModelState> {
        serde_json::from_value(self.newest(&format!("/{device}/model"))?).ok()
    }

    /// Messages so far whose topic ends so.
    pub(super) fn count(&self, topic: &str) -> usize {
        self.messages.lock().unwrap().iter().filter(|(name, _)| name.ends_with(topic)).count()
    }

    pub(super) fn wait_model(
        &self,
        what: &str,
        agent: &Agent,
        wanted: impl Fn(&ModelState) -> bool,
    ) -> ModelState {
        let came = wait_until(PATIENCE, || self.model().is_some_and(|model| wanted(&model)));
        assert!(came, "{what}: {:#?}\n{}", self.model(), agent.log());
        self.model().unwrap()
    }

    pub(super) fn wait_confirmed(&self, version: &str, agent: &Agent) -> ModelState {
        self.wait_model(&format!("{version} confirmed"), agent, |model| {
            model.running.version == version && model.running.state == Trust::Confirmed
        })
    }

    pub(super) fn wait_confirmed_of(&self, device: &str, version: &str, agent: &Agent) {
        let confirmed = |model: ModelState| {
            model.running.version == version && model.running.state == Trust::Confirmed
        };
        let came = wait_until(PATIENCE, || self.model_of(device).is_some_and(confirmed));
        let model = self.model_of(device);
        assert!(came, "{device}, {version} confirmed: {model:#?}\n{}", agent.log());
    }

    pub(super) fn results(&self) -> Vec<FrameResult> {
        let messages = self.messages.lock().unwrap();
        let results = messages.iter().filter(|(topic, _)| topic.contains("/result/"));
        results.map(|(_, value)| serde_json::from_value(value.clone()).unwrap()).collect()
    }
}

/// A folder with keys and repository, a broker, and an agent that follows it.
pub(super) struct Site {
    pub(super) broker: Broker,
    folder: tempfile::TempDir,
    pub(super) watcher: Watcher,
}

impl Site {
    pub(super) fn new() -> Self {
        let broker = Broker::start();
        let folder = tempfile::tempdir().unwrap();
        repository(folder.path());
        let watcher = Watcher::start(&["-h", "127.0.0.1", "-p", &broker.port.to_string()]);
        Self { broker, folder, watcher }
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn agent(&self, fps: f32) -> Agent {
        let mut setup = Setup::new(self.path(), self.broker.port);
        setup.fps = fps;
        setup.mqtt = update_section(self.path());
        setup.start()
    }

    pub(super) fn add(&self, version: &str, change: impl FnOnce(&Path)) {
        package(self.path(), version, change);
        let folder = format!("package-{version}");
        ok_with(self.path(), &["repo", "add", &folder], &["releases"]);
    }

    pub(super) fn roll_out(&self, version: &str, attempt: u32) {
        let attempt = attempt.to_string();
        let words = ["repo", "rollout", MODEL, version, "--attempt", &attempt];
        ok_with(self.path(), &words, &ONLINE);
    }

    pub(super) fn push(&self) -> String {
        ok(self.path(), &["push", "--port", &self.broker.port.to_string()])
    }
}

pub(super) fn update_section(folder: &Path) -> String {
    let root = folder.join("repo/metadata/1.root.json");
    let runner = program::runner();
    format!(
        "\n[update]\nrepo = \"factory-a\"\nmodel = \"{MODEL}\"\nroot = {root:?}\nprobation = \"1s\"\nprobation_frames = 10\nrunner = {runner:?}\n"
    )
}
