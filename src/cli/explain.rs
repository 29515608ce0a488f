//! Plain words for what a configuration and a model package do.

use std::path::Path;

use ocelli_protocol::manifest::{Resize, Task};

use super::model::{DEFAULT_MODEL, PICTURES, zoo_path};
use crate::config::{
    Config, Durability, MAX_ROOT_BYTES, Mqtt, Overflow, Stream, read_password, readable_by_others,
};
use crate::model::{ModelSpec, Package};
use crate::update;

/// What is to be told of a configuration.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// What will happen.
    pub(super) lines: Vec<String>,
    /// What could be better.
    pub(super) hints: Vec<String>,
    /// What cannot work.
    pub(super) problems: Vec<String>,
}

/// Explains a configuration and looks at every file that it names.
pub(super) fn config(config: &Config) -> Told {
    let mut told = Told::default();
    let labels: Vec<_> = config.device.labels.iter().map(ToString::to_string).collect();
    let labels =
        if labels.is_empty() { String::new() } else { format!(", labels {}", labels.join(", ")) };
    told.lines.push(format!("Device: {}{labels}.", config.device.id));
    for stream in &config.streams {
        explain_stream(stream, &mut told);
    }
    explain_model(config, &mut told);
    match &config.mqtt {
        Some(mqtt) => explain_mqtt(mqtt, config, &mut told),
        None => {
            told.lines.push("Broker: none; results go to standard output as JSON lines.".to_owned())
        }
    }
    explain_rest(config, &mut told);
    told
}

fn explain_stream(stream: &Stream, told: &mut Told) {
    let when = if stream.triggered {
        "when the board's trigger fires".to_owned()
    } else {
        format!("at most {} times a second", stream.fps)
    };
    let Some(camera) = &stream.camera else {
        told.lines.push(format!("Stream {}: the sample pictures in a loop, {when}.", stream.name));
        if let Err(failure) = zoo_path(PICTURES) {
            told.problems.push(format!("stream.camera: {failure}"));
        }
        return;
    };
    let kind = if camera.starts_with("/dev") {
        "the camera"
    } else if camera.is_dir() {
        "the pictures in"
    } else {
        "the picture"
    };
    let again = if stream.repeat { ", in a loop" } else { "" };
    let camera_name = camera.display();
    told.lines
        .push(format!("Stream {}: {kind} {camera_name}{again}, looked at {when}.", stream.name));
    if camera.starts_with("/dev") {
        if !camera.exists() {
            told.hints.push(format!(
                "{camera_name} is not there now; the agent waits for it and goes on when it comes"
            ));
        }
    } else if !camera.exists() {
        told.problems.push(format!(
            "stream.camera: {camera_name} does not exist; give a device, a picture or a folder"
        ));
    }
}

fn explain_model(config: &Config, told: &mut Told) {
    let mut known = crate::inference::delegate_names();
    known.extend(config.plugins.iter().map(|plugin| plugin.name.to_string()));
    let asked: Vec<_> = config.model.delegates.iter().map(ToString::to_string).collect();
    for missing in asked.iter().filter(|name| !known.contains(name)) {
        told.hints.push(format!(
            "this build has no delegate {missing}; what it would run goes to the next one"
        ));
    }
    let mut order: Vec<_> = asked.into_iter().filter(|name| known.contains(name)).collect();
    order.push("tract".to_owned());
    for plugin in config.plugins.iter().filter(|plugin| !plugin.library.exists()) {
        let (name, library) = (&plugin.name, plugin.library.display());
        told.hints.push(format!(
            "plug-in {name}: {library} is not there; what it would run goes to the next one"
        ));
    }
    let path = match &config.model.path {
        Some(path) => path.clone(),
        None => match zoo_path(DEFAULT_MODEL) {
            Ok(path) => path,
            Err(failure) => {
                told.problems.push(format!("model.path: {failure}"));
                return;
            }
        },
    };
    match Package::open(&path) {
        Ok(package) => {
            let id = package.spec().id();
            told.lines.push(format!(
                "Model: {} {} from {}, run by {} on {} thread(s); a frame may take {}.",
                id.name,
                id.version,
                path.display(),
                match config.model.by_measurement {
                    true => format!("the fastest of {} by measurement", order.join(", ")),
                    false => order.join(", then "),
                },
                config.model.processor.threads,
                humantime::format_duration(config.model.deadline)
            ));
        }
        Err(error) => told.problems.push(format!("model.path: {error}")),
    }
}

fn explain_mqtt(mqtt: &Mqtt, config: &Config, told: &mut Told) {
    let how = match &mqtt.tls {
        None => "without encryption".to_owned(),
        Some(tls) if tls.identity.is_some() => {
            format!("over TLS, trusting {}, with a client certificate", tls.ca.display())
        }
        Some(tls) => format!("over TLS, trusting {}", tls.ca.display()),
    };
    let user = mqtt.username.as_ref().map_or(String::new(), |user| format!(", as user {user}"));
    told.lines.push(format!(
        "Broker: {}:{} {how}{user}; topics begin with {}/device/{}.",
        mqtt.host, mqtt.port, mqtt.root, config.device.id
    ));
    if mqtt.tls.is_none() && mqtt.username.is_some() {
        told.hints.push("the password travels unencrypted; set mqtt.tls.ca".to_owned());
    }
    if let Some(tls) = &mqtt.settings().tls
        && let Err(refusal) = tls.check()
    {
        told.problems.push(format!("mqtt.tls: {refusal}"));
    }
    if let Some((_, key)) = mqtt.tls.as_ref().and_then(|tls| tls.identity.as_ref()) {
        told.hints.extend(readable_by_others(key));
    }
    if let Some(file) = &mqtt.password_file {
        told.hints.extend(readable_by_others(file));
        if let Err(error) = read_password(file) {
            told.problems.push(format!("mqtt.password_file: {error}"));
        }
    }
    let outbox = &config.outbox;
    let when = match outbox.durability {
        Durability::Spill => {
            "kept in memory while the broker acknowledges them, on disk while it does not; a power cut can lose those in memory, and they are announced as a gap"
        }
        Durability::Results => "on disk before they count; a power cut loses none",
    };
    let full = match outbox.overflow {
        Overflow::DropOldest => "then the oldest give way, announced as a gap",
        Overflow::Block => "then new frames wait",
    };
    told.lines.push(format!(
        "Delivery: results are {when}. At most {} and {} are kept for the broker, {full}.",
        bytesize::ByteSize(outbox.max_bytes).display().iec(),
        humantime::format_duration(outbox.max_age)
    ));
    told.lines.push(format!("Store: {}.", config.store.display()));
    if let Some(problem) = not_writable(&config.store) {
        told.problems.push(format!("store.dir: {problem}"));
    }
}

/// Why a folder, or the nearest one above it that exists, cannot hold the store.
fn not_writable(folder: &Path) -> Option<String> {
    let existing = folder.ancestors().find(|path| path.exists())?;
    let metadata = existing.metadata().ok()?;
    if !metadata.is_dir() {
        return Some(format!("{} is not a folder", existing.display()));
    }
    metadata.permissions().readonly().then(|| {
        format!("{} is read-only; give the agent's user the right to write", existing.display())
    })
}

/// The root metadata that updates begin with must be there, and be root metadata.
fn trusted_root(path: &Path) -> Result<(), String> {
    let bytes =
        crate::file::read_regular(path, MAX_ROOT_BYTES).map_err(|error| error.to_string())?;
    update::verify_root(&bytes).map_err(|error| error.to_string())
}

fn explain_rest(config: &Config, told: &mut Told) {
    match &config.update {
        None => told.lines.push("Updates: none; the model changes only with this file.".to_owned()),
        Some(update) => {
            told.lines.push(format!(
                "Updates: model {} on channel {} of repository {}, trusting {}.",
                update.model,
                update.channel,
                update.repo,
                update.root.display()
            ));
            if let Err(why) = trusted_root(&update.root) {
                let path = update.root.display();
                told.problems.push(format!(
                    "update.root: {path}: {why}; copy the repository's 1.root.json there"
                ));
            }
        }
    }
    let board = &config.board;
    let mut parts = Vec::new();
    for (part, line) in [("indicator", &board.indicator), ("trigger", &board.trigger)] {
        if let Some(line) = line {
            parts.push(format!("{part} on {} line {}", line.chip.display(), line.line));
        }
    }
    if let Some(meter) = &board.power_meter {
        parts.push(format!(
            "power meter {:?} at 0x{:02x} on {}",
            meter.chip,
            meter.address,
            meter.bus.display()
        ));
    }
    if let Some(watchdog) = &board.watchdog {
        parts.push(format!("watchdog {}", watchdog.display()));
    }
    if !parts.is_empty() {
        told.lines.push(format!("Board: {}.", parts.join("; ")));
    }
    told.lines.push(format!(
        "Health: reported every {}.",
        humantime::format_duration(config.health_interval)
    ));
}

/// Explains a package.
pub(super) fn package(spec: &ModelSpec) -> Vec<String> {
    let id = spec.id();
    let task = match spec.task() {
        Task::Classification => "says what a whole picture shows",
        Task::Detection => "finds objects and where they are",
    };
    let input = spec.input();
    let fit = match input.resize {
        Resize::Letterbox => "the whole picture, shape kept, with a border",
        Resize::Crop => "the middle of the picture",
        Resize::Stretch => "the whole picture, stretched",
    };
    let labels = spec.labels();
    let some: Vec<_> = labels.iter().take(3).map(String::as_str).collect();
    vec![
        format!("{} {} {task}. Licence of the weights: {}.", id.name, id.version, spec.license()),
        format!("Input: {fit}, at {} x {} pixels.", input.width, input.height),
        format!("Labels: {} ({}, …).", labels.len(), some.join(", ")),
        format!(
            "ONNX file: {}. Digest of the package: {}.",
            bytesize::ByteSize(spec.onnx().len() as u64).display().iec(),
            spec.sha256()
        ),
    ]
}
