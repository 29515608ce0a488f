//! What a configuration accepts, and what it says when it refuses.

use super::*;

fn problems(text: &str) -> String {
    match Config::parse(text, Path::new("dir/ocelli.toml")) {
        Ok(_) => "accepted".to_owned(),
        Err(ConfigError::Invalid { problems, .. }) => {
            problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
        }
        Err(other) => other.to_string(),
    }
}

/// The example of the documentation's first page.
const EXAMPLE: &str = r#"
[device]
id = "dock-3"
labels = ["warehouse", "rk3588"]
[[stream]]
name = "front"
camera = "/dev/video0"
fps = 10
[model]
path = "models/nanodet-g-coco"
delegates = ["int8"]
threads = 1
[mqtt]
host = "broker.example"
port = 8883
tls = { ca = "ca.pem", cert = "device.pem", key = "device.key" }
username = "dock-3"
password_file = "password"
[outbox]
durability = "spill"
max_bytes = "64 MiB"
max_age = "7 days"
overflow = "drop-oldest"
[update]
repo = "factory-a"
model = "nanodet-g-coco"
channel = "stable"
root = "1.root.json"
require_clock = false
[store]
dir = "/var/lib/ocelli"
[board]
indicator = "gpiochip0:17"
power_meter = { bus = "/dev/i2c-1", address = 0x40, chip = "ina219", shunt_ohm = 0.1 }
"#;

#[test]
fn the_printed_defaults_parse_to_the_defaults() {
    let printed = Config::parse(DEFAULTS, Path::new("defaults.toml")).unwrap();
    let nothing = Config::parse("", Path::new("ocelli.toml")).unwrap();
    assert_eq!(printed, nothing);
    assert_eq!(Config::defaults(), nothing);
}

#[test]
fn every_default_stands_below_its_meaning() {
    let mut meaning = false;
    for (index, line) in DEFAULTS.lines().enumerate() {
        let key = line.contains(" = ") && !line.starts_with('#');
        assert!(!key || meaning || line.starts_with("height"), "line {}: {line}", index + 1);
        meaning = line.starts_with('#');
    }
}

#[test]
fn reads_the_documented_example_with_paths_beside_the_file() {
    let config = Config::parse(EXAMPLE, Path::new("/etc/ocelli/ocelli.toml")).unwrap();
    assert_eq!(config.device.id.as_str(), "dock-3");
    assert_eq!(config.streams[0].camera.as_deref(), Some(Path::new("/dev/video0")));
    assert_eq!(config.model.path.as_deref(), Some(Path::new("/etc/ocelli/models/nanodet-g-coco")));
    let mqtt = config.mqtt.unwrap();
    assert_eq!(mqtt.client_id, "dock-3");
    let tls = mqtt.tls.unwrap();
    assert_eq!(tls.ca, Path::new("/etc/ocelli/ca.pem"));
    assert_eq!(tls.identity.unwrap().1, Path::new("/etc/ocelli/device.key"));
    assert_eq!(config.outbox.max_bytes, 64 * 1024 * 1024);
    assert_eq!(config.outbox.max_age, Duration::from_secs(7 * 86_400));
    assert_eq!(config.board.indicator.unwrap().line, 17);
    assert_eq!(config.board.power_meter.unwrap().address, 0x40);
    assert_eq!(config.update.unwrap().repo.as_str(), "factory-a");
}

#[test]
fn tls_moves_the_default_port() {
    let text = "[device]\nid = \"a\"\n[mqtt]\nhost = \"b\"\ntls = { ca = \"ca.pem\" }";
    assert_eq!(Config::parse(text, Path::new("x")).unwrap().mqtt.unwrap().port, 8883);
    let plain = "[device]\nid = \"a\"\n[mqtt]\nhost = \"b\"";
    assert_eq!(Config::parse(plain, Path::new("x")).unwrap().mqtt.unwrap().port, 1883);
}

#[test]
fn a_refusal_names_line_key_and_what_was_expected() {
    const BROKER: &str = "[device]\nid = \"a\"\n[mqtt]\nhost = \"b\"\n";
    let with_broker = |text: &str| format!("{BROKER}{text}");
    let cases: Vec<(String, &[&str])> = vec![
        ("[mqtt\nhost = 1".into(), &["line 1", "not valid TOML"]),
        ("a = 1\na = 2".into(), &["line 2", "duplicate"]),
        ("[mqt]".into(), &["line 1: mqt:", "did you mean \"mqtt\""]),
        ("[device]\n\nid2 = \"a\"".into(), &["line 3: device.id2:", "did you mean \"id\""]),
        (with_broker("prot = 1884"), &["line 5: mqtt.prot:", "did you mean \"port\""]),
        (with_broker("password = \"x\""), &["did you mean \"password_file\""]),
        (with_broker("shunt_ohm = 1"), &["mqtt.shunt_ohm", "known here: ", "port"]),
        ("[model]\nhost = \"b\"".into(), &["belongs to the section [mqtt]"]),
        ("[[stream]]\nframes = 1".into(), &["stream.frames", "known here", "fps"]),
        ("[stream]\nname = \"a\"".into(), &["line 1: stream", "two brackets"]),
        ("mqtt = 5".into(), &["expected a section [mqtt], found 5"]),
        ("[device]\nid = \"Dock 3\"".into(), &["line 2: device.id", "a-z, 0-9", "\"Dock 3\""]),
        ("[device]\nid = 3".into(), &["device.id", "found 3"]),
        ("[device]\nlabels = \"a\"".into(), &["a list of identifiers"]),
        ("[mqtt]\nhost = \"b\"".into(), &["device.id: missing", "name of its own"]),
        ("[mqtt]\nhost = \"mqtt://b\"".into(), &["mqtt.host", "without scheme"]),
        (with_broker("port = 0"), &["mqtt.port", "from 1 to 65535, found 0"]),
        (with_broker("port = \"1883\""), &["a whole number", "found \"1883\""]),
        (with_broker("root = \"a/#\""), &["mqtt.root", "topic prefix"]),
        (with_broker("keep_alive = 30"), &["mqtt.keep_alive", "a time such as", "found 30"]),
        (with_broker("keep_alive = \"1s\""), &["from 5s to 18h, found \"1s\""]),
        (with_broker("tls = { cert = \"c\" }"), &["mqtt.tls.cert", "go together"]),
        (with_broker("tls = { cert = \"c\", key = \"k\" }"), &["mqtt.tls.ca: missing"]),
        (with_broker("tls = true"), &["expected a section [tls], found true"]),
        (with_broker("password_file = \"p\""), &["set username too"]),
        ("[outbox]\nmax_bytes = \"64 MiBs\"".into(), &["a size such as \"64 MiB\""]),
        ("[outbox]\nmax_bytes = 64".into(), &["a size such as", "found 64"]),
        ("[outbox]\nmax_bytes = \"1 KiB\"".into(), &["from 1.0 MiB"]),
        ("[outbox]\nmax_age = \"7 dys\"".into(), &["a time such as", "found \"7 dys\""]),
        ("[outbox]\ndurability = \"disk\"".into(), &["\"spill\" or \"results\", found \"disk\""]),
        ("[outbox]\noverflow = \"drop\"".into(), &["\"drop-oldest\" or \"block\""]),
        ("[[stream]]\nfps = 0".into(), &["stream.fps", "a number from 0.01 to 1000"]),
        ("[[stream]]\nfps = nan".into(), &["stream.fps", "found nan"]),
        ("[[stream]]\nwidth = 640".into(), &["set both or none"]),
        ("[[stream]]\nloop = \"yes\"".into(), &["true or false, found \"yes\""]),
        ("[[stream]]\ntrigger = true".into(), &["set board.trigger"]),
        ("[[stream]]\nname = \"a\"\n[[stream]]\nname = \"a\"".into(), &["line 4", "used twice"]),
        ("[model]\nthreads = 0".into(), &["from 1 to 64"]),
        ("[model]\ncores = [4, -1]".into(), &["core numbers from 0 to 1023"]),
        ("[model]\nthreads = 2\ncores = [4]".into(), &["1 for 2 threads", "a core for each"]),
        ("[model]\nthreads = 1.5".into(), &["a whole number", "found 1.5"]),
        ("[model]\ndelegates = [\"tract\", \"int8\"]".into(), &["can only stand last"]),
        ("[model]\ndelegates = \"fast\"".into(), &["model.delegates", "\"auto\", or a list"]),
        (
            "[update]\nrepo = \"r\"".into(),
            &["update.model: missing", "update.root: missing", "mqtt.host"],
        ),
        (
            "[model]\ndelegates = [\"itn8\"]".into(),
            &["model.delegates", "\"itn8\" is no known delegate", "int8"],
        ),
        ("[board]\nindicator = \"17\"".into(), &["\"gpiochip0:17\""]),
        ("[board]\nindicator = \"gpiochipA:1\"".into(), &["board.indicator"]),
        ("[board]\nrequired = [\"indicator\"]".into(), &["board.indicator is not set"]),
        ("[board]\nrequired = [\"led\"]".into(), &["a list of \"indicator\"", "[\"led\"]"]),
        (
            "[board]\npower_meter = { address = 0x99 }".into(),
            &["from 64 to 79", "power_meter.bus: missing"],
        ),
        ("[store]\ndir = \"\"".into(), &["store.dir"]),
        ("[health]\ninterval = \"0s\"".into(), &["health.interval", "from 1s"]),
        ("[log]\nlevel = \"loud\"".into(), &["\"error\" or \"warn\""]),
    ];
    let mut wrong = Vec::new();
    for (text, parts) in &cases {
        let said = problems(text);
        for part in parts.iter().filter(|part| !said.contains(**part)) {
            wrong.push(format!("{text:?}\n  lacks {part:?} in: {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn all_problems_are_named_and_the_message_fits_one_line() {
    let text = "[mqtt]\nport = 0\nkeep_alive = 1\n[modle]";
    let error = Config::parse(text, Path::new("ocelli.toml")).unwrap_err();
    let ConfigError::Invalid { problems, .. } = &error else { panic!("{error}") };
    assert_eq!(problems.iter().map(|problem| problem.line).collect::<Vec<_>>(), [2, 3, 4]);
    let said = error.to_string();
    assert!(said.starts_with("ocelli.toml: line 2: mqtt.port: "), "{said}");
    assert!(said.ends_with("(and 2 more: ocelli check ocelli.toml)"), "{said}");
    assert!(!said.contains('\n'), "{said}");
}

#[test]
fn refuses_a_file_that_is_absent_or_no_text() {
    let folder = tempfile::tempdir().unwrap();
    let absent = Config::load(&folder.path().join("absent.toml")).unwrap_err();
    assert!(matches!(absent, ConfigError::Unreadable { .. }), "{absent}");
    let binary = folder.path().join("binary.toml");
    std::fs::write(&binary, [0xff, 0xfe]).unwrap();
    assert!(Config::load(&binary).unwrap_err().to_string().contains("not UTF-8"));
    let huge = folder.path().join("huge.toml");
    std::fs::write(&huge, vec![b'#'; MAX_CONFIG_BYTES as usize + 1]).unwrap();
    assert!(Config::load(&huge).unwrap_err().to_string().contains("256 KiB"));
}

#[test]
fn a_password_is_the_first_line_and_loose_permissions_are_told() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "s3cret\nrest").unwrap();
    assert_eq!(read_password(&file).unwrap(), "s3cret");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(readable_by_others(&file).unwrap().contains("chmod 600"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(readable_by_others(&file), None);
    std::fs::write(&file, "\n").unwrap();
    assert!(matches!(read_password(&file), Err(SecretError::Malformed { .. })));
    let absent = folder.path().join("absent");
    assert!(matches!(read_password(&absent), Err(SecretError::Unreadable { .. })));
}
