//! `ocelctl watch` and `ocelctl cmd` against a real broker with TLS, client certificates and passwords, and a real agent.
//!
//! Needs `mosquitto`, `mosquitto_passwd`, and the binary `ocelli` beside `ocelctl`: build the workspace.

#![allow(clippy::unwrap_used, reason = "tests may panic, and so may what only they use")]

#[path = "../../../tests/support/mod.rs"]
mod support;

use std::process::{Command, Output};

use serde_json::Value;
use support::agent::{Agent, Setup};
use support::broker::Broker;
use support::keys::keys;
use support::{free_port, now};

/// The guarded broker and who may use it.
struct Site {
    broker: Broker,
    keys: tempfile::TempDir,
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let keys = keys();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("device-password"), "of the device\n").unwrap();
        std::fs::write(folder.path().join("password"), "of the operator\n").unwrap();
        std::fs::write(folder.path().join("wrong-password"), "guessed\n").unwrap();
        let broker = Broker::start_with(|dir| {
            let file = dir.join("passwords");
            std::fs::write(&file, "").unwrap();
            for (user, password) in [("dock-3", "of the device"), ("ops", "of the operator")] {
                let made = Command::new("mosquitto_passwd")
                    .arg("-b")
                    .arg(&file)
                    .args([user, password])
                    .status();
                assert!(made.unwrap().success());
            }
            let key = |name: &str| keys.path().join(name).display().to_string();
            format!(
                "allow_anonymous false\npassword_file {}\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
                file.display(),
                key("ca.pem"),
                key("good.pem"),
                key("good.key")
            )
        });
        Self { broker, keys, folder }
    }

    fn key(&self, name: &str) -> String {
        self.keys.path().join(name).display().to_string()
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn agent(&self) -> Agent {
        let mut setup = Setup::new(self.folder.path(), self.broker.port);
        setup.broker = Some(("localhost".to_owned(), self.broker.port));
        setup.mqtt = format!(
            "tls = {{ ca = {:?}, cert = {:?}, key = {:?} }}\nusername = \"dock-3\"\npassword_file = {:?}",
            self.key("ca.pem"),
            self.key("client.pem"),
            self.key("client.key"),
            self.file("device-password")
        );
        setup.start()
    }

    /// How an operator reaches the broker, `changed` replacing values.
    fn connection(&self, changed: &[(&str, &str)]) -> Vec<String> {
        let (port, password) = (self.broker.port.to_string(), self.file("password"));
        let (ca, cert, key) = (self.key("ca.pem"), self.key("client.pem"), self.key("client.key"));
        let options = [
            ("--host", "localhost"),
            ("--port", &port),
            ("--ca", &ca),
            ("--cert", &cert),
            ("--key", &key),
            ("--username", "ops"),
            ("--password-file", &password),
        ];
        let value = |(name, value): (&str, &str)| {
            let change = changed.iter().find(|(changed, _)| *changed == name);
            [name.to_owned(), change.map_or(value, |(_, value)| value).to_owned()]
        };
        options.into_iter().flat_map(value).collect()
    }

    fn ocelctl(&self, arguments: &[&str], changed: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ocelctl"));
        command.args(arguments).args(self.connection(changed)).output().unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Exit code 0, and standard output.
fn done(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Exit code 1, and the one line on standard error.
fn failed(output: &Output) -> String {
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{}\n{told}", text(&output.stdout));
    assert_eq!(told.lines().count(), 1, "{told}");
    told
}

#[test]
fn an_operator_watches_and_commands_a_device() {
    let site = Site::new();
    let agent = site.agent();

    let told = done(&site.ocelctl(&["watch", "--results", "10"], &[]));
    let results: Vec<_> = told.lines().filter(|line| line.contains(" #")).collect();
    assert_eq!(results.len(), 10, "{told}");
    assert!(
        results.iter().all(|line| line.starts_with("dock-3 ") && line.contains("front")),
        "{told}"
    );
    assert!(told.contains("status     online since"), "{told}");
    assert!(told.lines().last().unwrap().ends_with("0 missing"), "{told}");

    let told = done(&site.ocelctl(&["watch", "dock-3", "--json", "--for", "3s"], &[]));
    let lines: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for topic in ["status", "health", "model", "result/front"] {
        let topic = format!("ocelli/device/dock-3/{topic}");
        let found = lines.iter().find(|line| line["topic"] == topic.as_str());
        assert_eq!(found.unwrap_or_else(|| panic!("no {topic}: {told}"))["payload"]["v"], 1);
    }

    let table = done(&site.ocelctl(&["watch", "--fleet", "--for", "2s"], &[]));
    let row = table.lines().find(|line| line.contains("dock-3")).unwrap_or_default();
    for words in ["online", "tiny-classifier 0.1.0", "confirmed", "off"] {
        assert!(row.contains(words), "{words}: {table}");
    }

    let pong: Value =
        serde_json::from_str(&done(&site.ocelctl(&["cmd", "dock-3", "ping"], &[]))).unwrap();
    assert!(pong["boot_id"].is_string(), "{pong}");

    let file = site.file("front.jpg");
    let told = done(&site.ocelctl(&["cmd", "dock-3", "snapshot", "--save", &file], &[]));
    assert!(told.contains(&file), "{told}");
    assert!(std::fs::read(&file).unwrap().starts_with(&[0xFF, 0xD8]));

    let rate = ["cmd", "dock-3", "set-rate", "--arg", "stream=front", "--arg", "fps=2.5"];
    let answer: Value = serde_json::from_str(&done(&site.ocelctl(&rate, &[]))).unwrap();
    assert_eq!(answer, serde_json::json!({ "stream": "front", "fps": 2.5 }));

    let refused = failed(&site.ocelctl(&["cmd", "dock-3", "fly"], &[]));
    assert!(
        refused.contains("dock-3 refused: ") && refused.contains("(unknown-verb)"),
        "{refused}"
    );

    agent.terminate();
    for command in [["cmd", "dock-3", "ping"].as_slice(), &["audit", "dock-3"]] {
        let words = [command, &["--timeout", "1s"]].concat();
        let told = failed(&site.ocelctl(&words, &[]));
        assert!(told.contains("no answer from dock-3 within 1s: it is offline since"), "{told}");
        // Somebody who mistook the name sees which there are.
        let words: Vec<&str> =
            words.iter().map(|word| if *word == "dock-3" { "dock-33" } else { word }).collect();
        let told = failed(&site.ocelctl(&words, &[]));
        assert!(told.contains("no answer from dock-33 within 1s"), "{told}");
        assert!(told.contains("never seen a device of that name"), "{told}");
        assert!(told.contains("it knows dock-3"), "{told}");
    }
}

#[test]
fn a_device_that_nobody_has_seen_is_told_after_the_timeout() {
    let site = Site::new();
    let asked = now();
    let told = failed(&site.ocelctl(&["cmd", "dock-4", "ping", "--timeout", "1s"], &[]));
    assert!(told.contains("no answer from dock-4 within 1s"), "{told}");
    assert!(told.contains("never seen a device of that name"), "{told}");
    assert!(told.contains("it knows no device at all"), "{told}");
    assert!((now() - asked).as_secs() < 20);
    let nothing = failed(&site.ocelctl(&["watch", "dock-4", "--for", "1s"], &[]));
    assert!(nothing.contains("never seen a device dock-4"), "{nothing}");
    // Whoever waits longer is told meanwhile.
    let output = site.ocelctl(&["watch", "dock-4", "--for", "5s"], &[]);
    assert!(text(&output.stderr).contains("dock-4, or does not let"), "{output:?}");
    assert!(text(&output.stderr).contains("still waiting"), "{output:?}");
    let nobody = failed(&site.ocelctl(&["watch", "--for", "1s"], &[]));
    assert!(nobody.contains("knows no device"), "{nobody}");
    let table = done(&site.ocelctl(&["watch", "--fleet", "--for", "1s"], &[]));
    assert!(table.contains("0 devices"), "{table}");
}

#[test]
fn an_operator_who_is_not_let_in_is_told_why() {
    let site = Site::new();
    let wrong = [
        ("--password-file", site.file("wrong-password"), "check --username and --password-file"),
        ("--username", "nobody".to_owned(), "check --username and --password-file"),
        ("--password-file", site.file("absent"), "see --password-file"),
        ("--ca", site.key("other-ca.pem"), "check --ca"),
        ("--ca", site.file("password"), "holds no certificate"),
        ("--key", site.key("good.key"), "does not go with"),
        ("--port", free_port().to_string(), "check --host and --port"),
    ];
    let mut mistaken = Vec::new();
    for (option, value, says) in &wrong {
        for command in [["watch", "dock-3"].as_slice(), &["cmd", "dock-3", "ping"]] {
            let output = site.ocelctl(command, &[(option, value)]);
            let told = text(&output.stderr);
            if output.status.code() != Some(1) || !told.contains(says) || told.lines().count() != 1
            {
                mistaken.push((option, says, command[0], output.status.code(), told));
            }
        }
    }
    assert!(mistaken.is_empty(), "{mistaken:#?}");
}

/// A certificate of another authority: with TLS 1.3 the refusal comes after the handshake.
#[test]
fn a_foreign_client_certificate_is_refused() {
    let site = Site::new();
    let foreign =
        [("--cert", site.key("foreign-client.pem")), ("--key", site.key("foreign-client.key"))];
    let foreign: Vec<_> = foreign.iter().map(|(name, path)| (*name, path.as_str())).collect();
    let told = failed(&site.ocelctl(&["cmd", "dock-3", "ping"], &foreign));
    assert!(told.contains("--cert"), "{told}");
}
