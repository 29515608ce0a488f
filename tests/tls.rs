//! Refused, and told why: wrong password, wrong CA, expired and future certificates, wrong host name, no client
//! certificate, no TLS, nobody there, a black hole. Against a real broker.

#![allow(clippy::unwrap_used, reason = "tests may panic, and so may what only they use")]

mod support;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ocelli::clock::SystemClock;
use ocelli::mqtt::{
    self, BackoffSettings, ClientCertificate, Incoming, Refusal, RefusalKind, TlsSettings,
};
use support::broker::Broker;
use support::keys::keys;
use support::{free_port, now};

fn tls_broker(keys: &Path, server: &str, further: &str) -> Broker {
    Broker::start_with(|_| {
        let path = |name: String| keys.join(name).display().to_string();
        format!(
            "allow_anonymous true\ncafile {}\ncertfile {}\nkeyfile {}\n{further}\n",
            path("ca.pem".into()),
            path(format!("{server}.pem")),
            path(format!("{server}.key"))
        )
    })
}

fn settings(port: u16) -> mqtt::Settings {
    let mut settings = mqtt::Settings::new("dock-3", "localhost", port);
    settings.timeout = Duration::from_secs(2);
    settings.keep_alive = Duration::from_secs(1);
    settings.backoff = BackoffSettings {
        first: Duration::from_millis(50),
        max: Duration::from_millis(200),
        stable_after: Duration::from_secs(5),
    };
    settings
}

fn with_tls(port: u16, ca: PathBuf, client: Option<&Path>) -> mqtt::Settings {
    let client = client.map(|base| ClientCertificate {
        chain: base.with_extension("pem"),
        key: base.with_extension("key"),
    });
    mqtt::Settings { tls: Some(TlsSettings { ca, client }), ..settings(port) }
}

/// The first thing that becomes of a connection.
fn attempt(settings: mqtt::Settings) -> Result<(), Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut port, link) = mqtt::client::start(settings, Arc::new(SystemClock));
        let link = tokio::spawn(link);
        let told = tokio::time::timeout(Duration::from_secs(10), port.incoming.recv()).await;
        link.abort();
        match told.expect("an answer in time").expect("the connection's task lives") {
            Incoming::Connected(_) => Ok(()),
            Incoming::Disconnected(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    })
}

#[test]
fn mutual_tls_connects() {
    let keys = keys();
    let broker = tls_broker(keys.path(), "good", "require_certificate true");
    let client = keys.path().join("client");
    assert_eq!(attempt(with_tls(broker.port, keys.path().join("ca.pem"), Some(&client))), Ok(()));
}

#[test]
fn a_bad_broker_certificate_is_refused_and_named() {
    let keys = keys();
    let cases = [
        ("good", "ca.pem", None),
        ("good", "other-ca.pem", Some((RefusalKind::UnknownIssuer, "mqtt.tls.ca"))),
        (
            "expired",
            "ca.pem",
            Some((RefusalKind::CertificateExpired, "renew the broker's certificate")),
        ),
        ("future", "ca.pem", Some((RefusalKind::CertificateNotYetValid, "set the clock"))),
        ("elsewhere", "ca.pem", Some((RefusalKind::WrongHostName, "mqtt.host"))),
    ];
    let mut wrong = Vec::new();
    for (server, ca, expected) in cases {
        let broker = tls_broker(keys.path(), server, "");
        let found = attempt(with_tls(broker.port, keys.path().join(ca), None));
        println!("{server}, {ca}: {found:?}");
        let fits = match (&found, expected) {
            (Ok(()), None) => true,
            (Err(refusal), Some((kind, cure))) => {
                refusal.kind == kind && refusal.message.contains(cure)
            }
            _ => false,
        };
        if !fits {
            wrong.push((server, ca, found));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_missing_or_foreign_client_certificate_is_named() {
    let keys = keys();
    let broker = tls_broker(keys.path(), "good", "require_certificate true");
    let foreign = keys.path().join("foreign-client");
    for client in [None, Some(foreign.as_path())] {
        let refusal =
            attempt(with_tls(broker.port, keys.path().join("ca.pem"), client)).unwrap_err();
        println!("{refusal}");
        assert_eq!(refusal.kind, RefusalKind::ClientCertificate, "{client:?}: {refusal}");
        assert!(refusal.message.contains("mqtt.tls.cert"), "{refusal}");
    }
}

#[test]
fn bad_tls_files_are_named() {
    let keys = keys();
    let path = keys.path();
    std::fs::write(path.join("empty.pem"), "nothing here\n").unwrap();
    std::fs::copy(path.join("client.pem"), path.join("mixed.pem")).unwrap();
    std::fs::copy(path.join("good.key"), path.join("mixed.key")).unwrap();
    let mixed = path.join("mixed");
    let cases = [
        ("absent.pem", None, "absent.pem"),
        ("empty.pem", None, "empty.pem"),
        ("ca.pem", Some(mixed.as_path()), "mixed.key"),
    ];
    for (ca, client, named) in cases {
        let refusal = attempt(with_tls(1, path.join(ca), client)).unwrap_err();
        println!("{refusal}");
        assert_eq!(refusal.kind, RefusalKind::Settings, "{refusal}");
        assert!(refusal.message.contains(named), "{named}: {refusal}");
    }
}

#[test]
fn a_wrong_password_is_refused_and_the_right_one_is_not() {
    let broker = Broker::start_with(|dir| {
        let file = dir.join("passwords");
        let made = Command::new("mosquitto_passwd")
            .arg("-b")
            .arg("-c")
            .arg(&file)
            .args(["dock-3", "secret"])
            .status();
        assert!(made.unwrap().success());
        format!("allow_anonymous false\npassword_file {}\n", file.display())
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    for (password, expected) in [("secret\n", None), ("wrong\n", Some(RefusalKind::NotAuthorized))]
    {
        std::fs::write(&file, password).unwrap();
        let mut settings = settings(broker.port);
        settings.username = Some("dock-3".into());
        settings.password_file = Some(file.clone());
        let found = attempt(settings);
        println!("{found:?}");
        assert_eq!(found.as_ref().err().map(|refusal| refusal.kind), expected, "{password:?}");
        assert!(found.err().is_none_or(|refusal| refusal.message.contains("password_file")));
    }
    let mut settings = settings(broker.port);
    settings.username = Some("dock-3".into());
    settings.password_file = Some(dir.path().join("absent"));
    let refusal = attempt(settings).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Settings, "{refusal}");
}

#[test]
fn a_broker_that_is_not_there_is_named() {
    let keys = keys();
    let plain = Broker::start();
    // A black hole: the port accepts and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let secure = tls_broker(keys.path(), "good", "");
    let mut nameless = settings(1883);
    nameless.host = "no-such-host.invalid".into();
    let mut hole = settings(silent_port);
    hole.host = "127.0.0.1".into();
    let cases = [
        ("nothing listens", settings(free_port()), RefusalKind::Unreachable),
        ("no such name", nameless, RefusalKind::UnknownHost),
        ("black hole", hole, RefusalKind::Timeout),
        (
            "TLS to a plain port",
            with_tls(plain.port, keys.path().join("ca.pem"), None),
            RefusalKind::Broken,
        ),
        ("plain to a TLS port", settings(secure.port), RefusalKind::Broken),
    ];
    for (case, settings, kind) in cases {
        let limit = settings.timeout + Duration::from_secs(2);
        let start = now();
        let refusal = attempt(settings).unwrap_err();
        println!("{case}: {refusal}");
        assert_eq!(refusal.kind, kind, "{case}: {refusal}");
        assert!(now() - start < limit, "{case} took {:?}", now() - start);
    }
}
