//! The demonstration's second half: keys, a repository, a signed second version that takes over while frames go on, and one
//! of a stranger that is refused. Every step is a command of this very program.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ocelli_protocol::model_state::{ModelState, Trust, UpdateOutcome, UpdatePhase};
use ocelli_protocol::topic::{DEFAULT_ROOT, DeviceTopic, parse_device_topic};
use tokio::time::Instant;

use super::{MODEL, Received, say};
use crate::connection::{Link, nonce};
use crate::files::Place;
use crate::{Failure, files, keys};

const ROLES: [&str; 6] = ["root", "targets", "releases", "rollout", "snapshot", "timestamp"];
const REPOSITORY: &str = "demo";
/// The second version, and the stranger's.
const VERSIONS: [&str; 2] = ["1.1.0", "6.6.6"];

/// A folder with keys and a repository.
pub(super) struct Publisher {
    folder: PathBuf,
    passphrase: String,
}

impl Publisher {
    /// Makes keys and an empty repository.
    pub(super) async fn new(folder: PathBuf) -> Result<Self, Failure> {
        let publisher = Self { folder, passphrase: format!("{:016x}{:016x}", nonce(), nonce()) };
        let readme = publisher.folder.join("README");
        files::write(&readme, b"Keys of a demonstration.\n", Place::Public)?;
        for role in ROLES {
            publisher.run(&["keys", "new", &format!("keys/{role}")]).await?;
        }
        let mut words: Vec<String> = ["repo", "init", "--id", REPOSITORY].map(str::to_owned).into();
        for role in ROLES {
            words.extend([format!("--{role}"), format!("keys/{role}.pub")]);
            words.extend(["--key".to_owned(), format!("keys/{role}.key")]);
        }
        publisher.run(&words.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        Ok(publisher)
    }

    /// `[update]` of a device that trusts this repository.
    pub(super) fn section(&self) -> String {
        let root = self.folder.join("repo/metadata/1.root.json");
        let root = root.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
        format!(
            "\n[update]\nrepo = \"{REPOSITORY}\"\nmodel = \"{MODEL}\"\nroot = \"{root}\"\n\
             probation = \"3s\"\nprobation_frames = 5\n"
        )
    }

    /// Signs the model at `package` under another version, rolls it out and pushes it.
    async fn publish(&self, package: &Path, version: &str, port: u16) -> Result<String, Failure> {
        let folder = self.folder.join(format!("{MODEL}-{version}"));
        copy_as(package, &folder, version)?;
        let package = folder.to_string_lossy().into_owned();
        self.run(&["repo", "add", &package, "--key", "keys/releases.key"]).await?;
        let rollout = ["repo", "rollout", MODEL, version, "--key", "keys/rollout.key"];
        let online = ["--key", "keys/snapshot.key", "--key", "keys/timestamp.key"];
        self.run(&[&rollout[..], &online].concat()).await?;
        let told = self.run(&["push", "--port", &port.to_string()]).await?;
        Ok(told.lines().last().unwrap_or_default().to_owned())
    }

    /// Changes the newest snapshot on its way to the broker: one digit of its end, as somebody would who wants to keep devices on it.
    async fn tamper(&self, port: u16) -> Result<(), Failure> {
        let online = ["--key", "keys/snapshot.key", "--key", "keys/timestamp.key"];
        let rollout = ["repo", "rollout", MODEL, VERSIONS[0], "--attempt", "2", "--key"];
        self.run(&[&rollout[..], &["keys/rollout.key"], &online].concat()).await?;
        let folder = self.folder.join("repo/metadata");
        let version = |name: &str| name.strip_suffix(".snapshot.json")?.parse::<u64>().ok();
        let names = std::fs::read_dir(&folder)
            .map_err(|error| Failure(format!("{}: {error}", folder.display())))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let newest = names.filter_map(|name| version(&name)).max().unwrap_or_default();
        let path = folder.join(format!("{newest}.snapshot.json"));
        let signed = files::read(&path)?;
        let text =
            String::from_utf8_lossy(&signed).replacen("\"expires\":\"20", "\"expires\":\"30", 1);
        files::write(&path, text.as_bytes(), Place::Public)?;
        self.run(&["push", "--port", &port.to_string()]).await?;
        files::write(&path, &signed, Place::Public)
    }

    /// Runs a command of this program in the folder.
    async fn run(&self, words: &[&str]) -> Result<String, Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure(format!("where is this program? {error}")))?;
        let output = tokio::process::Command::new(program)
            .args(words)
            .current_dir(&self.folder)
            .env(keys::PASSPHRASE, &self.passphrase)
            .stdin(std::process::Stdio::null())
            .output()
            .await;
        let output =
            output.map_err(|error| Failure(format!("ocelctl {}: {error}", words.join(" "))))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Failure(format!("ocelctl {}: {why}", words.join(" "))))
    }
}

/// Shows an update that is taken and two that are refused, while results go on.
pub(super) async fn show(
    publisher: &Publisher,
    package: &Path,
    port: u16,
    (link, received): (&mut Link, &mut Received),
    patience: Duration,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let [second, forged] = VERSIONS;
    say(
        out,
        &format!(
            "5. update        keys and repository made; {MODEL} {second} signed and rolled out"
        ),
    )?;
    let told = publisher.publish(package, second, port).await?;
    say(out, &format!("                 {told}"))?;
    let before = received.sequence.totals.results;
    follow(link, received, patience, out, |model| {
        model.running.version == second && model.running.state == Trust::Confirmed
    })
    .await?;
    let meanwhile = received.sequence.totals.results - before;
    say(
        out,
        &format!(
            "                 {meanwhile} results came meanwhile; the old model looked at frames until the new one did"
        ),
    )?;

    say(out, "6. tampering     the next metadata is pushed with one digit changed after signing")?;
    publisher.tamper(port).await?;
    follow(link, received, patience, out, |model| {
        model.update.reason.as_ref().is_some_and(|why| why.contains("snapshot.json"))
    })
    .await?;
    say(out, &format!("                 refused; {MODEL} {second} goes on"))?;

    say(
        out,
        &format!(
            "   forgery       {MODEL} {forged} signed with keys of a stranger, pushed to the same repository"
        ),
    )?;
    let stranger = Publisher::new(publisher.folder.join("stranger")).await?;
    stranger.publish(package, forged, port).await?;
    follow(link, received, patience, out, |model| {
        model.update.reason.as_ref().is_some_and(|why| why.contains("valid signatures"))
    })
    .await?;
    say(out, &format!("                 refused; {MODEL} {second} goes on"))
}

/// Receives, tells each step of the update, and ends when `done`.
async fn follow(
    link: &mut Link,
    received: &mut Received,
    patience: Duration,
    out: &mut dyn Write,
    done: impl Fn(&ModelState) -> bool,
) -> Result<(), Failure> {
    let deadline = Instant::now() + patience;
    let mut told = String::new();
    loop {
        let message = tokio::time::timeout_at(deadline, link.next(|_| ())).await;
        let message = message.map_err(|_| {
            Failure(format!("the update did not come to its end; the last word was: {told}"))
        })??;
        received.note(&message);
        let topic = parse_device_topic(DEFAULT_ROOT, &message.topic);
        if !matches!(topic, Some((_, DeviceTopic::Model))) {
            continue;
        }
        let Ok(model) = serde_json::from_slice::<ModelState>(&message.payload) else { continue };
        let line = describe(&model);
        if line != told {
            say(out, &format!("                 {line}"))?;
            told = line;
        }
        if done(&model) {
            return Ok(());
        }
        if let Some(last) = &model.update.last
            && last.outcome != UpdateOutcome::Confirmed
        {
            return Err(Failure(format!("{} is {told}", last.target)));
        }
    }
}

/// The model that runs and how its update stands, on one line.
pub(crate) fn describe(model: &ModelState) -> String {
    let running = &model.running;
    let state = match running.state {
        Trust::Trial => "on trial",
        Trust::Confirmed => "confirmed",
    };
    let mut line = format!("{} {} {state}", running.name, running.version);
    let update = &model.update;
    let step = match update.state {
        UpdatePhase::Off => "no updates",
        UpdatePhase::Idle => "idle",
        UpdatePhase::Checking => "verifying metadata",
        UpdatePhase::Fetching => "fetching",
        UpdatePhase::Trial => "trying in a child process",
        UpdatePhase::Probation => "watching",
        _ => "other",
    };
    line.push_str(&format!("; update {step}"));
    if let Some(target) = &update.target {
        line.push_str(&format!(" {target}"));
    }
    if let Some(progress) = update.progress {
        let percent = (progress.bytes * 100).checked_div(progress.of).unwrap_or(100);
        line.push_str(&format!(" {percent} %"));
    }
    if let Some(reason) = &update.reason {
        line.push_str(&format!(": {reason}"));
    }
    if let Some(last) = &update.last {
        let outcome = serde_json::to_value(last.outcome).unwrap_or_default();
        let outcome = outcome.as_str().unwrap_or_default().to_owned();
        line.push_str(&format!("; last {} {outcome}: {}", last.target, last.reason));
    }
    line
}

/// The same package under another version.
fn copy_as(from: &Path, to: &Path, version: &str) -> Result<(), Failure> {
    let package = ocelli::model::Package::open(from).map_err(|error| Failure(error.to_string()))?;
    let old = format!("version = \"{}\"", package.spec().id().version);
    for (name, bytes) in package.files() {
        let bytes = match name {
            "manifest.toml" => {
                let text = String::from_utf8_lossy(bytes);
                text.replacen(&old, &format!("version = \"{version}\""), 1).into_bytes()
            }
            _ => bytes.to_vec(),
        };
        files::write(&to.join(name), &bytes, Place::Public)?;
    }
    Ok(())
}
