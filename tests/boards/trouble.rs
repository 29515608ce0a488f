//! What goes wrong on a board beside power: no network, no camera, no time of day, no space, a damaged database. Each time the agent
//! says what is the matter and goes on; when the cause is gone, so is the trouble.

use crate::machine::AARCH64;
use crate::scene::Scene;
use crate::site::{CAMERA, Site, tiny};
use crate::support::broker::Broker;
use crate::support::free_port;
use crate::support::keys::keys;

const REPLAY: &str =
    "[[stream]]\nname = \"front\"\ncamera = \"shapes.jpg\"\nloop = true\nfps = 5\n";

/// Takes all space of the data partition, to the last block.
const FILL: &str = "dd if=/dev/zero of=/data/ballast bs=1M; dd if=/dev/zero of=/data/grains bs=512";

/// A site whose stream is one picture again and again.
fn replaying(name: &str) -> Site {
    let mut site = Site::new(name);
    site.put("shapes.jpg", std::fs::read(tiny().1).unwrap());
    site.configure(REPLAY);
    site
}

#[test]
#[ignore = "boots an emulated board: make test-boards"]
fn a_board_that_boots_without_network_delivers_everything_later() {
    let site = replaying("no-network");
    let disk = site.disk(&tiny().0, "service start\n");
    let mut start = site.start(AARCH64, &disk);
    start.words = "board.net=off";
    let mut machine = crate::machine::Machine::boot(&start);
    machine.console.wait_for(0, "10.0.2.2:");
    machine.console.ask("sleep 10");
    assert!(site.subscriber.results().is_empty(), "results without a network");
    machine.console.ask("ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && ip route add default via 10.0.2.2");
    let results = site.wait_results(0, 30);
    assert_eq!(results[0]["seq"], 1, "the first result of the boot comes first");
    machine.console.ask("service stop");
    site.subscriber.settled().assert_complete();
}

#[test]
#[ignore = "boots an emulated board: make test-boards"]
fn a_board_without_a_camera_says_so_and_takes_one_that_comes() {
    let mut site = Site::new("no-camera");
    site.show(&[Scene::new("coffee.jpg")]);
    site.configure("[[stream]]\nname = \"front\"\ncamera = \"/dev/video0\"\nfps = 5\n");
    let disk = site.disk(&tiny().0, "service start\n");
    let mut machine = site.boot(AARCH64, &disk);
    let health = site.wait_health("the missing camera", |health| {
        health["streams"][0]["camera"] == "unavailable"
    });
    let reason = health["streams"][0]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("/dev/video0") && reason.contains("no such device"), "{reason}");
    machine.console.ask(&CAMERA.trim_end().replace("&\n", "& ").replace('\n', "; "));
    site.wait_results(0, 3);
    site.wait_health("the camera", |health| health["streams"][0]["camera"] == "streaming");
}

#[test]
#[ignore = "boots an emulated board: make test-boards"]
fn a_clock_at_1970_is_named_until_it_is_set() {
    let keys = keys();
    let secure = free_port();
    let broker = Broker::start_with(|_| {
        let path = |name: &str| keys.path().join(name).display().to_string();
        format!(
            "allow_anonymous true\nlistener {secure} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\n",
            path("ca.pem"),
            path("good.pem"),
            path("good.key")
        )
    });
    let mut site = Site::with_broker("clock", broker);
    site.put("shapes.jpg", std::fs::read(tiny().1).unwrap());
    site.put("ca.pem", std::fs::read(keys.path().join("ca.pem")).unwrap());
    site.configure(REPLAY).configure_mqtt(format!(
        "host = \"10.0.2.2\"\nport = {secure}\nretry_max = \"2s\"\ntls = {{ ca = \"ca.pem\" }}"
    ));
    let disk = site.disk(&tiny().0, "service start\n");
    let mut start = site.start(AARCH64, &disk);
    start.arguments = &["-rtc", "base=1970-01-01T00:00:30"];
    let mut machine = crate::machine::Machine::boot(&start);
    machine.console.wait_for(0, "is not valid yet: this device's clock says 1970-01-01T00:0");
    machine.console.wait_for(0, "set the clock");
    assert!(site.subscriber.results().is_empty(), "results over a link that cannot be trusted");

    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    machine.console.ask(&format!("date -s @{now}"));
    let results = site.wait_results(0, 30);
    assert_eq!(results[0]["seq"], 1);
    let year =
        |at: usize| results[at]["captured_at"].as_str().unwrap()[..4].parse::<u32>().unwrap();
    assert_eq!(year(0), 1970, "a result keeps the time that the board knew");
    let newest = site.wait_health("the new time", |health| {
        !health["at"].as_str().unwrap_or("1970").starts_with("1970")
    });
    assert_eq!(newest["clock"], "unverified", "nobody vouched for it");
    machine.console.ask("service stop");
    site.subscriber.settled().assert_complete();
}

#[test]
#[ignore = "boots an emulated board: make test-boards"]
fn a_full_disk_stops_nothing() {
    let mut site = replaying("full-disk");
    site.configure("[outbox]\ndurability = \"results\"\n");
    let disk = site.disk(&tiny().0, "service start\n");
    let mut machine = site.boot(AARCH64, &disk);
    site.wait_results(0, 10);
    machine.console.run(FILL);
    site.wait_health("a disk that takes no writes", |health| health["outbox"]["degraded"] == true);
    let known = site.subscriber.results().len();
    site.wait_results(known, 20);
    machine.console.wait_for(0, "store: it takes no writes");
    machine.console.ask("rm /data/ballast /data/grains");
    site.wait_health("a disk that takes writes again", |health| {
        health["outbox"]["degraded"] == false
    });
    machine.console.ask("service stop");
    site.subscriber.settled().assert_holes_announced();

    // An agent that starts on a full disk cannot open its database: numbers go on from the clock, far above.
    let before = site.subscriber.received().known.last().copied();
    machine.console.run(FILL);
    let known = site.subscriber.results().len();
    machine.console.ask("service start");
    let results = site.wait_results(known, 10);
    assert!(results[known]["seq"].as_u64() > before);
    machine.console.ask("rm /data/ballast /data/grains; service stop");

    // With space again, the next start finds its database, and no number comes twice.
    let known = site.subscriber.settled().first.len();
    machine.console.ask("service start");
    site.wait_results(known, 10);
    let health = site.wait_health("a store", |health| !health["audit"].is_null());
    assert_eq!(health["outbox"]["degraded"], false);
    machine.console.ask("service stop");
    site.subscriber.settled().assert_ordered();
}

#[test]
#[ignore = "boots an emulated board: make test-boards"]
fn a_damaged_database_is_set_aside_and_numbers_go_on() {
    let mut site = replaying("damaged-database");
    site.configure("[outbox]\ndurability = \"results\"\n");
    let disk = site.disk(&tiny().0, "service start\n");
    let mut machine = site.boot(AARCH64, &disk);
    site.wait_results(0, 10);
    machine.console.ask("service stop");
    let before = site.subscriber.settled();
    // The first pages, header included, are noise.
    machine.console.ask(
        "dd if=/dev/urandom of=/data/store/ocelli.db bs=4096 count=3 conv=notrunc; service start",
    );
    let known = site.subscriber.results().len();
    let results = site.wait_results(known, 10);
    assert!(
        results[known]["seq"].as_u64() > before.known.last().copied(),
        "a number was given twice"
    );
    let files = machine.console.ask("ls /data/store");
    assert!(files.contains("ocelli.db.damaged-1"), "{files}");
    let log = machine.console.ask("grep damaged /run/agent.log");
    assert!(log.contains("ocelli.db"), "{log}");
    machine.console.ask("service stop");
    site.subscriber.settled().assert_holes_announced();
}
