//! Section by section, from TOML to validated values: ranges, alphabets, and which keys go together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ocelli_protocol::Id;
use toml::Spanned;
use toml::de::DeValue;

use super::section::Section;
use super::{
    Board, Config, Device, Durability, GpioLine, Model, Mqtt, Npu, Outbox, Overflow, Part, Plugin,
    PowerChip, PowerMeter, Stream, Tls, Update,
};
use crate::inference::Sandbox;
use crate::inference::session::Closeness;
use crate::processor::Processor;

/// Reads a whole file; problems go to the section's source.
pub(super) fn read(top: Section<'_>) -> Config {
    let mqtt = top.section("mqtt");
    let host =
        mqtt.read("host", "a host name or address without scheme, port or spaces", |value| {
            let plain =
                |text: &&str| !text.contains(|c: char| c.is_whitespace() || "/:@".contains(c));
            let address = |text: &&str| text.parse::<std::net::Ipv6Addr>().is_ok();
            value.as_str().filter(|text| plain(text) || address(text)).map(str::to_owned)
        });
    let connected = !host.is_empty();
    let device = read_device(top.section("device"), connected);
    let mqtt = read_mqtt(mqtt, host, &device.id);
    let board = read_board(top.section("board"));
    let plugins = read_plugins(&top);
    let config = Config {
        streams: read_streams(&top, &board),
        model: read_model(top.section("model"), &plugins),
        npu: read_npu(top.section("npu")),
        plugins,
        mqtt: connected.then_some(mqtt),
        outbox: read_outbox(top.section("outbox")),
        update: read_update(top.section("update"), connected),
        store: read_store(top.section("store")),
        health_interval: read_health(top.section("health")),
        log_level: read_log(top.section("log")),
        device,
        board,
    };
    top.finish();
    config
}

fn read_device(section: Section<'_>, connected: bool) -> Device {
    let id = section.optional_id("id");
    if id.is_none() && connected {
        section.report(
            "id",
            "missing: every device on a broker needs a name of its own, as id = \"dock-3\"",
        );
    }
    let id = id.unwrap_or_else(|| "local".parse().expect("a valid identifier"));
    let device = Device { id, labels: section.ids("labels") };
    section.finish();
    device
}

fn read_streams(top: &Section<'_>, board: &Board) -> Vec<Stream> {
    const MAX_STREAMS: usize = 16;
    let mut streams: Vec<Stream> = Vec::new();
    for section in top.sections("stream") {
        let stream = read_stream(&section);
        if streams.iter().any(|other| other.name == stream.name) {
            section.report(
                "name",
                format!("\"{}\" is used twice; give each stream its own name", stream.name),
            );
        }
        if stream.triggered && board.trigger.is_none() {
            section
                .report("trigger", "needs the input line: set board.trigger, as \"gpiochip0:17\"");
        }
        section.finish();
        streams.push(stream);
    }
    if streams.len() > MAX_STREAMS {
        top.report(
            "stream",
            format!("{} streams; at most {MAX_STREAMS} are possible", streams.len()),
        );
    }
    streams
}

fn read_stream(section: &Section<'_>) -> Stream {
    let width = section.integer("width", 0..=16_384) as usize;
    let height = section.integer("height", 0..=16_384) as usize;
    if (width == 0) != (height == 0) {
        section.report("width", "width and height go together: set both or none");
    }
    let camera =
        section.optional_path("camera", "a device, a picture or a folder, as \"/dev/video0\"");
    Stream {
        name: section.id("name"),
        repeat: section.boolean("loop") || camera.is_none(),
        camera,
        fps: section.number("fps", 0.01..=1000.0),
        size: (width > 0 && height > 0).then_some((width, height)),
        triggered: section.boolean("trigger"),
    }
}

/// Delegates that a configuration may name, whether this build has them or not. tract is always there, last.
const DELEGATES: &[&str] = &["int8"];

fn read_model(section: Section<'_>, plugins: &[Plugin]) -> Model {
    let expected =
        "\"auto\", or a list of identifiers such as [\"int8\"] (1 to 63 of a-z, 0-9, '-')";
    // None: by measurement.
    let listed: Option<Vec<Id>> =
        section.read("delegates", expected, |value| match value.as_str() {
            Some("auto") => Some(None),
            Some(_) => None,
            None => {
                let items = value.as_array()?.iter();
                let ids = items.map(|item| item.get_ref().as_str()?.parse().ok());
                Some(Some(ids.collect::<Option<_>>()?))
            }
        });
    let by_measurement = listed.is_none();
    let mut delegates = listed.unwrap_or_else(|| {
        let inside = DELEGATES.iter().filter_map(|name| name.parse().ok());
        plugins.iter().map(|plugin| plugin.name.clone()).chain(inside).collect()
    });
    if delegates.last().is_some_and(|last| last.as_str() == "tract") {
        delegates.pop();
    }
    if delegates.iter().any(|name| name.as_str() == "tract") {
        section.report("delegates", "tract takes what the others leave: it can only stand last");
    }
    for name in delegates.iter().filter(|name| name.as_str() != "tract") {
        let plugin = plugins.iter().any(|plugin| plugin.name == *name);
        if !plugin && !DELEGATES.contains(&name.as_str()) {
            let names = plugins.iter().map(|plugin| plugin.name.as_str());
            let known = DELEGATES.iter().copied().chain(names).collect::<Vec<_>>().join(", ");
            section.report(
                "delegates",
                format!(
                    "\"{name}\" is no known delegate; known are {known} and tract; a [[plugin]] adds one"
                ),
            );
        }
    }
    let processor = Processor {
        threads: section.integer("threads", 1..=64) as usize,
        cores: section.read("cores", "a list of core numbers from 0 to 1023, as [4, 5]", |value| {
            let number = |core: &Spanned<DeValue<'_>>| {
                let given = core.get_ref().as_integer()?;
                let core = usize::from_str_radix(given.as_str(), given.radix()).ok()?;
                (core < 1024).then_some(core)
            };
            value.as_array()?.iter().map(number).collect()
        }),
    };
    if !processor.cores.is_empty() && processor.cores.len() < processor.threads {
        let (threads, cores) = (processor.threads, processor.cores.len());
        let detail = format!(
            "{cores} for {threads} threads: they would wait for each other; name a core for each, or none"
        );
        section.report("cores", detail);
    }
    let model = Model {
        path: section.optional_path("path", "a model package, as \"models/nanodet-g-coco\""),
        delegates,
        by_measurement,
        processor,
        deadline: section.duration("deadline", Duration::from_millis(1)..=Duration::from_secs(60)),
    };
    section.finish();
    model
}

fn read_npu(section: Section<'_>) -> Npu {
    let npu = Npu {
        worker: section.optional_path("worker", "the path of ocelli-npu-worker"),
        runner: section.read(
            "runner",
            "a list of words such as [\"qemu-aarch64-static\"]",
            |value| {
                let words = value.as_array()?.iter();
                words.map(|word| word.get_ref().as_str().map(str::to_owned)).collect()
            },
        ),
        shadow_every: section.integer("shadow_every", 0..=1_000_000_000) as u32,
        closeness: Closeness {
            steps: section.integer("max_steps", 0..=255) as u32,
            share: section.number("max_share", 0.0..=1.0),
        },
    };
    section.finish();
    npu
}

fn read_plugins(top: &Section<'_>) -> Vec<Plugin> {
    let mut plugins: Vec<Plugin> = Vec::new();
    for section in top.sections("plugin") {
        let name = section.optional_id("name");
        let library = section.optional_path("library", "the path of a plug-in");
        let options = section.read(
            "options",
            "a table of texts such as { library = \"/usr/lib/librknnrt.so\" }",
            |value| {
                let pairs = value.as_table()?.iter();
                let pair = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
                    let key: &std::borrow::Cow<'_, str> = key.get_ref();
                    Some((key.to_string(), value.get_ref().as_str()?.to_owned()))
                };
                pairs.map(pair).collect::<Option<BTreeMap<String, String>>>()
            },
        );
        let sandbox = section.choice(
            "sandbox",
            &[("strict", Sandbox::Strict), ("files", Sandbox::Files), ("off", Sandbox::Off)],
        );
        let memory = section.bytes("memory", 0..=1 << 40);
        let patience =
            section.duration("patience", Duration::from_secs(1)..=Duration::from_secs(3600));
        let cache = section.optional_path("cache", "a folder");
        match (name, library) {
            (Some(name), Some(library)) => {
                let taken = DELEGATES.contains(&name.as_str())
                    || name.as_str() == "tract"
                    || plugins.iter().any(|other| other.name == name);
                if taken {
                    section.report("name", format!("\"{name}\" is taken; give it its own name"));
                }
                plugins.push(Plugin { name, library, options, sandbox, memory, patience, cache });
            }
            (None, None) => {}
            (None, Some(_)) => section.report("name", "missing: model.delegates names it so"),
            (Some(_), None) => section.report("library", "missing: the plug-in's path"),
        }
        section.finish();
    }
    plugins
}

fn read_mqtt(section: Section<'_>, host: String, device: &Id) -> Mqtt {
    let tls = read_tls(section.section("tls"));
    let port = section.integer("port", 1..=65_535) as u16;
    let port = if tls.is_some() && !section.has("port") { 8883 } else { port };
    let username = section.optional_text("username", "a user name");
    let password_file = section.optional_path("password_file", "the path of a file");
    if password_file.is_some() && username.is_none() {
        section.report("password_file", "MQTT has no password without a user: set username too");
    }
    let client_id = section.read("client_id", "at most 128 characters of text", |value| {
        value.as_str().filter(|text| text.chars().count() <= 128).map(str::to_owned)
    });
    let root = section.read(
        "root",
        "a topic prefix such as \"ocelli\" without '+', '#' or outer '/'",
        |value| value.as_str().filter(|text| is_topic_root(text)).map(str::to_owned),
    );
    let longest = Duration::from_secs(18 * 3600);
    let mqtt = Mqtt {
        host,
        port,
        tls,
        username,
        password_file,
        client_id: if client_id.is_empty() { device.to_string() } else { client_id },
        root,
        keep_alive: section.duration("keep_alive", Duration::from_secs(5)..=longest),
        retry_max: section
            .duration("retry_max", Duration::from_secs(1)..=Duration::from_secs(3600)),
    };
    section.finish();
    mqtt
}

fn is_topic_root(text: &str) -> bool {
    let edges = text.is_empty() || text.starts_with(['/', '$']) || text.ends_with('/');
    !edges && text.len() <= 128 && !text.contains(|c: char| "+#".contains(c) || c.is_control())
}

fn read_tls(section: Section<'_>) -> Option<Tls> {
    let [ca, cert, key] =
        ["ca", "cert", "key"].map(|key| section.optional_path(key, "the path of a PEM file"));
    if cert.is_some() != key.is_some() {
        section.report(
            "cert",
            "a client certificate and its key go together: set cert and key, or none",
        );
    }
    if ca.is_none() && (cert.is_some() || key.is_some()) {
        section.report(
            "ca",
            "missing: the certificates that the broker's must come from, as a PEM file",
        );
    }
    section.finish();
    Some(Tls { ca: ca?, identity: cert.zip(key) })
}

fn read_outbox(section: Section<'_>) -> Outbox {
    let day = Duration::from_secs(24 * 3600);
    let outbox = Outbox {
        durability: section.choice(
            "durability",
            &[("spill", Durability::Spill), ("results", Durability::Results)],
        ),
        max_bytes: section.bytes("max_bytes", 1024 * 1024..=1024 * 1024 * 1024 * 1024),
        max_age: section.duration("max_age", Duration::from_secs(60)..=3650 * day),
        overflow: section.choice(
            "overflow",
            &[("drop-oldest", Overflow::DropOldest), ("block", Overflow::Block)],
        ),
    };
    section.finish();
    outbox
}

fn read_update(section: Section<'_>, connected: bool) -> Option<Update> {
    let [repo, model] = ["repo", "model"].map(|key| section.optional_id(key));
    let channel = section.id("channel");
    let root = section.optional_path("root", "the path of the repository's first root.json");
    let require_clock = section.boolean("require_clock");
    let [second, hour, day] = [1, 3600, 86_400].map(Duration::from_secs);
    let probation = section.duration("probation", second..=day);
    let probation_frames = section.integer("probation_frames", 1..=1_000_000);
    let trial_timeout = section.duration("trial_timeout", second..=hour);
    let runner =
        section.read("runner", "a list of words such as [\"qemu-aarch64-static\"]", |value| {
            value
                .as_array()?
                .iter()
                .map(|item| item.get_ref().as_str().map(str::to_owned))
                .collect()
        });
    if repo.is_some() {
        for (key, missing) in [("model", model.is_none()), ("root", root.is_none())] {
            if missing {
                section.report(
                    key,
                    "missing: a device that follows a repository needs repo, model and root",
                );
            }
        }
        if !connected {
            section.report("repo", "models come over MQTT: set mqtt.host");
        }
    }
    section.finish();
    Some(Update {
        repo: repo?,
        model: model?,
        channel,
        root: root?,
        require_clock,
        probation,
        probation_frames,
        trial_timeout,
        runner,
    })
}

fn read_store(section: Section<'_>) -> PathBuf {
    let dir = section.optional_path("dir", "the path of a folder");
    if dir.is_none() {
        section.report("dir", "expected the path of a folder, found \"\"");
    }
    section.finish();
    dir.unwrap_or_default()
}

fn read_board(section: Section<'_>) -> Board {
    let [indicator, trigger] = ["indicator", "trigger"].map(|key| read_line(&section, key));
    let power_meter = read_power_meter(section.section("power_meter"));
    let watchdog =
        section.optional_path("watchdog", "the path of a watchdog, as \"/dev/watchdog\"");
    let parts = [
        ("indicator", Part::Indicator, indicator.is_some()),
        ("trigger", Part::Trigger, trigger.is_some()),
        ("power_meter", Part::PowerMeter, power_meter.is_some()),
        ("watchdog", Part::Watchdog, watchdog.is_some()),
    ];
    let required = section.read(
        "required",
        "a list of \"indicator\", \"trigger\", \"power_meter\", \"watchdog\"",
        |value| {
            let part =
                |text: &str| parts.iter().find(|(name, ..)| *name == text).map(|part| part.1);
            value
                .as_array()?
                .iter()
                .map(|item| part(item.get_ref().as_str()?))
                .collect::<Option<Vec<_>>>()
        },
    );
    for (name, part, configured) in parts {
        if required.contains(&part) && !configured {
            section
                .report("required", format!("\"{name}\" is required but board.{name} is not set"));
        }
    }
    section.finish();
    Board { indicator, trigger, power_meter, watchdog, required }
}

fn read_line(section: &Section<'_>, key: &'static str) -> Option<GpioLine> {
    section.read(key, "a chip and line such as \"gpiochip0:17\"", |value| {
        let text = value.as_str()?;
        if text.is_empty() {
            return Some(None);
        }
        let (chip, line) = text.rsplit_once(':')?;
        let chip = chip.strip_prefix("/dev/").unwrap_or(chip);
        let known = chip.strip_prefix("gpiochip")?;
        let digits = !known.is_empty() && known.bytes().all(|byte| byte.is_ascii_digit());
        let line = line.parse().ok().filter(|_| digits)?;
        Some(Some(GpioLine { chip: Path::new("/dev").join(chip), line }))
    })
}

fn read_power_meter(section: Section<'_>) -> Option<PowerMeter> {
    let bus = section.optional_path("bus", "the path of an I2C bus, as \"/dev/i2c-1\"");
    let address = section.integer("address", 0x40..=0x4f) as u8;
    let chip =
        section.choice("chip", &[("ina219", PowerChip::Ina219), ("ina226", PowerChip::Ina226)]);
    let shunt_ohm = section.number("shunt_ohm", 0.0001..=100.0);
    if !section.has("bus") && ["address", "chip", "shunt_ohm"].iter().any(|key| section.has(key)) {
        section.report("bus", "missing: the I2C bus that the meter is on, as \"/dev/i2c-1\"");
    }
    section.finish();
    Some(PowerMeter { bus: bus?, address, chip, shunt_ohm })
}

fn read_health(section: Section<'_>) -> Duration {
    let interval =
        section.duration("interval", Duration::from_secs(1)..=Duration::from_secs(86_400));
    section.finish();
    interval
}

fn read_log(section: Section<'_>) -> log::LevelFilter {
    use log::LevelFilter::{Debug, Error, Info, Trace, Warn};
    let levels =
        [("error", Error), ("warn", Warn), ("info", Info), ("debug", Debug), ("trace", Trace)];
    let level = section.choice("level", &levels);
    section.finish();
    level
}
