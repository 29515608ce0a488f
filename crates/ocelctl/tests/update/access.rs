//! A broker with client certificates and the access rules of `docs/examples/mosquitto.acl`: who may write what, and what those
//! see who may not.

use std::process::{Command, Output};

use super::site::{
    MODEL, ONLINE, PATIENCE, Watcher, ocelctl, ok_with, package, repository, update_section,
};
use super::support::agent::{Agent, Setup, project};
use super::support::broker::Broker;
use super::support::keys::keys;
use super::support::wait_until;

/// A broker whose clients are known by their certificates, and a repository to push.
struct Guarded {
    broker: Broker,
    keys: tempfile::TempDir,
    folder: tempfile::TempDir,
}

impl Guarded {
    /// `rules` is mosquitto's `acl_file`.
    fn new(rules: &str) -> Self {
        let (keys, folder) = (keys(), tempfile::tempdir().unwrap());
        repository(folder.path());
        package(folder.path(), "0.2.0", |_| {});
        ok_with(folder.path(), &["repo", "add", "package-0.2.0"], &["releases"]);
        ok_with(folder.path(), &["repo", "rollout", MODEL, "0.2.0"], &ONLINE);
        let path = |name: &str| keys.path().join(name).display().to_string();
        let broker = Broker::start_with(|dir| {
            let acl = dir.join("acl");
            std::fs::write(&acl, rules).unwrap();
            format!(
                "allow_anonymous false\nrequire_certificate true\nuse_identity_as_username true\nacl_file {}\n\
                 cafile {}\ncertfile {}\nkeyfile {}\n",
                acl.display(),
                path("ca.pem"),
                path("good.pem"),
                path("good.key")
            )
        });
        Self { broker, keys, folder }
    }

    fn key(&self, name: &str) -> String {
        self.keys.path().join(name).display().to_string()
    }

    /// `ocelctl push` with somebody's certificate, or none.
    fn push(&self, who: Option<&str>) -> Output {
        let port = self.broker.port.to_string();
        let mut words =
            ["push", "--host", "localhost", "--port", &port].map(str::to_owned).to_vec();
        words.extend(["--ca".to_owned(), self.key("ca.pem")]);
        if let Some(who) = who {
            let [cert, key] = ["pem", "key"].map(|kind| self.key(&format!("{who}.{kind}")));
            words.extend(["--cert".to_owned(), cert, "--key".to_owned(), key]);
        }
        ocelctl(self.folder.path(), &words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn arguments(&self, who: &str) -> Vec<String> {
        let mut words = ["-h", "localhost", "-p"].map(str::to_owned).to_vec();
        words.push(self.broker.port.to_string());
        for (option, file) in [("--cafile", "ca.pem".to_owned()), ("--cert", format!("{who}.pem"))]
        {
            words.extend([option.to_owned(), self.key(&file)]);
        }
        words.extend(["--key".to_owned(), self.key(&format!("{who}.key"))]);
        words
    }

    fn publish(&self, who: &str, topic: &str, payload: &str) {
        let status = Command::new("mosquitto_pub")
            .args(self.arguments(who))
            .args(["-q", "1", "-t", topic, "-m", payload])
            .status();
        // A 3.1.1 broker acknowledges what it does not let through.
        assert!(status.unwrap().success());
    }

    fn watcher(&self, who: &str) -> Watcher {
        let words = self.arguments(who);
        Watcher::start(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn agent(&self, who: &str) -> Agent {
        let mut setup = Setup::new(self.folder.path(), self.broker.port);
        setup.broker = Some(("localhost".to_owned(), self.broker.port));
        setup.mqtt = format!(
            "tls = {{ ca = {:?}, cert = {:?}, key = {:?} }}\n{}",
            self.key("ca.pem"),
            self.key(&format!("{who}.pem")),
            self.key(&format!("{who}.key")),
            update_section(self.folder.path())
        );
        setup.start()
    }
}

fn rules() -> String {
    std::fs::read_to_string(project("docs/examples/mosquitto.acl")).unwrap()
}

fn stderr(output: &Output) -> String {
    assert!(!output.status.success(), "it succeeded");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn with_acl_and_client_certificates_only_the_publisher_writes_the_repository() {
    let guarded = Guarded::new(&rules());
    for (who, says) in [
        // A device is let in; what it writes is not acknowledged, or not kept.
        (Some("dock-4"), "this user may write"),
        // No certificate, and one of another authority.
        (None, "certificate"),
        (Some("foreign-client"), "certificate"),
    ] {
        let told = stderr(&guarded.push(who));
        assert!(told.contains(says), "{who:?}: {told}");
    }
    let told = guarded.push(Some("publisher"));
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let watcher = guarded.watcher("publisher");
    let agent = guarded.agent("dock-3");
    watcher.wait_confirmed("0.2.0", &agent);
    agent.terminate();
}

#[test]
fn a_device_cannot_speak_for_another_nor_command_it() {
    let guarded = Guarded::new(&rules());
    let watcher = guarded.watcher("ops");
    // The watcher's subscription stands once it sees something.
    let seen = wait_until(PATIENCE, || {
        guarded.publish("dock-4", "ocelli/device/dock-4/status", "{\"v\":1}");
        watcher.newest("/dock-4/status").is_some()
    });
    assert!(seen, "a device may write its own topics");
    for topic in [
        "ocelli/device/dock-3/status",
        "ocelli/device/dock-3/cmd/abort-trial",
        "ocelli/repo/factory-a/head",
    ] {
        guarded.publish("dock-4", topic, "{\"v\":1,\"id\":\"x\"}");
    }
    guarded.publish("ops", "ocelli/repo/factory-a/head", "{\"v\":1}");
    guarded.publish("dock-4", "ocelli/device/dock-4/health", "{\"v\":1}");
    let seen = wait_until(PATIENCE, || watcher.newest("/dock-4/health").is_some());
    assert!(seen, "what was published last arrives");
    let messages = watcher.messages.lock().unwrap();
    let foreign = messages.iter().find(|(topic, _)| !topic.starts_with("ocelli/device/dock-4/"));
    assert!(foreign.is_none(), "{foreign:?}");
}

#[test]
fn a_device_that_may_not_read_the_repository_says_so() {
    let guarded = Guarded::new(&rules().replace("pattern read ocelli/repo/#", ""));
    let told = guarded.push(Some("publisher"));
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let watcher = guarded.watcher("publisher");
    let agent = guarded.agent("dock-3");
    let model = watcher.wait_model("a reason", &agent, |model| model.update.reason.is_some());
    let reason = model.update.reason.unwrap();
    assert!(reason.contains("timestamp.json") && reason.contains("read it"), "{reason}");
    assert_eq!(model.running.version, "0.1.0");
    agent.terminate();
}
