//! What is wired to a board: lines and I2C devices that QEMU lets a test see and set, and the watchdog that resets it.

use std::time::Duration;

use crate::machine::{AARCH64, AST2600, Machine};
use crate::site::{Site, tiny};
use crate::support::{now, wait_until};

/// The AST2600's first GPIO controller: lines A0 to A7, B0 to B7, …. On this board those of A belong to Ethernet and I2C.
const GPIO: &str = "/machine/soc/gpio";
/// Every instruction of the same stream of pictures.
const REPLAY: &str = "[[stream]]\nname = \"front\"\ncamera = \"shapes.jpg\"\nloop = true\n";

fn put_picture(site: &Site) {
    site.put("shapes.jpg", std::fs::read(tiny().1).unwrap());
}

#[test]
#[ignore = "boots an emulated board: make test-boards"]
fn lines_and_sensors_of_a_board_reach_the_agent() {
    let mut site = Site::new("ast2600");
    put_picture(&site);
    site.configure(REPLAY).configure(
        "fps = 10\ntrigger = true\n[board]\ntrigger = \"gpiochip0:9\"\nindicator = \"gpiochip0:8\"\n\
         power_meter = { bus = \"/dev/i2c-0\", address = 0x49 }\n",
    );
    let rc = "echo lm75 0x48 >/sys/bus/i2c/devices/i2c-0/new_device\nservice start\n";
    let disk = site.disk(&tiny().0, rc);
    let mut start = site.start(AST2600, &disk);
    start.arguments = &[
        "-device",
        "tmp105,bus=aspeed.i2c.bus.0,address=0x48,id=sensor",
        "-device",
        "tmp105,bus=aspeed.i2c.bus.0,address=0x49,id=no-meter",
    ];
    let mut machine = Machine::boot(&start);

    // The thermometer, as the kernel's driver reads it over I2C.
    for millidegrees in [41_500, -12_000] {
        machine.qmp.set_property("/machine/peripheral/sensor", "temperature", millidegrees);
        site.wait_health("the temperature", |health| {
            let sensors = health["temperatures"].as_array().cloned().unwrap_or_default();
            let right = |celsius: f64| (celsius * 1000.0 - f64::from(millidegrees)).abs() < 100.0;
            sensors.iter().any(|one| one["celsius"].as_f64().is_some_and(right))
        });
    }
    // Something else answers where the power meter should be: said once, and the agent goes on.
    let log = machine.console.ask("cat /run/agent.log");
    assert_eq!(log.matches("ina219 at 0x49 on /dev/i2c-0: ").count(), 1, "{log}");
    assert!(log.contains("going on without it"), "{log}");

    // Nothing is looked at until the input rises; each rise is one result.
    assert_eq!(site.subscriber.results().len(), 0, "results without a trigger");
    for edge in 1..=5 {
        machine.qmp.set_property(GPIO, "gpioB1", true);
        site.wait_results(0, edge);
        machine.qmp.set_property(GPIO, "gpioB1", false);
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(site.subscriber.results().len(), 5, "a fall is no trigger");

    // One flash every two seconds: running, broker connected. Dark once the agent has ended.
    let end = now() + Duration::from_secs(20);
    let (mut rises, mut before) = (0, false);
    while now() < end {
        let lit = machine.qmp.property(GPIO, "gpioB0") == true;
        rises += u32::from(lit && !before);
        before = lit;
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!((3..=12).contains(&rises), "{rises} flashes in 20 s of the host");
    machine.console.ask("service stop");
    assert_eq!(machine.qmp.property(GPIO, "gpioB0"), false, "dark at the end");
}

/// A board whose agent feeds a watchdog that resets after ten seconds.
fn watched(name: &str) -> (Site, Machine) {
    let mut site = Site::new(name);
    put_picture(&site);
    site.configure(REPLAY)
        .configure("fps = 5\n[board]\nwatchdog = \"/dev/watchdog\"\nrequired = [\"watchdog\"]\n");
    let disk = site.disk(&tiny().0, "modprobe i6300esb heartbeat=10\nservice start\n");
    let mut start = site.start(AARCH64, &disk);
    start.arguments = &["-device", "i6300esb", "-action", "watchdog=reset"];
    let machine = Machine::boot(&start);
    site.wait_results(0, 5);
    (site, machine)
}

/// Waits for the reset, and for a run of the agent that goes on where the one before ended.
fn assert_reset(site: &Site, mut machine: Machine) {
    let runs = site.subscriber.received().boots.len();
    machine.wait_ready(machine.console.position());
    let again = wait_until(crate::console::PATIENCE, || {
        let boots = site.subscriber.received().boots;
        boots.len() > runs && boots.values().last().is_some_and(|results| results.len() > 5)
    });
    assert!(again, "no results after the reset");
    let uptime = machine.uptime();
    assert!(uptime < 120.0, "the machine was not reset: it runs for {uptime} s");
    // Events come with the next answer.
    machine.qmp.execute("query-status", serde_json::json!({}));
    assert!(machine.qmp.events.contains(&"WATCHDOG".to_owned()), "{:?}", machine.qmp.events);
    machine.console.ask("service stop");
    let received = site.subscriber.settled();
    received.assert_holes_announced();
    assert_eq!(received.status, "offline", "an orderly end");
    // The orderly end stopped the watchdog: the machine lives on.
    let position = machine.console.position();
    machine.console.ask("sleep 15");
    assert!(
        !machine.console.text()[position..].contains("board: ready"),
        "reset after an orderly end"
    );
}

#[test]
#[ignore = "boots an emulated board: make test-boards"]
fn a_stopped_agent_is_reset_by_the_hardware_watchdog() {
    let (site, mut machine) = watched("watchdog-agent");
    machine.console.ask("kill -STOP $(pidof ocelli)");
    assert_reset(&site, machine);
}

#[test]
#[ignore = "boots an emulated board: make test-boards"]
fn a_model_that_hangs_is_reset_by_the_hardware_watchdog() {
    let (site, mut machine) = watched("watchdog-model");
    // The freezer of control groups v1 takes single threads: everything but inference goes on.
    machine.console.ask(
        "mkdir -p /run/freezer && mount -t cgroup -o freezer none /run/freezer && mkdir /run/freezer/hung && \
         for task in /proc/$(pidof ocelli)/task/*; do grep -q ^inference $task/comm && echo ${task##*/} >/run/freezer/hung/tasks; done; \
         echo FROZEN >/run/freezer/hung/freezer.state",
    );
    machine.console.wait_for(0, "no progress part=inference");
    assert_reset(&site, machine);
}
