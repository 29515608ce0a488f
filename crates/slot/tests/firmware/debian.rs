//! The package on a Debian system as a board has one, with systemd as init: from `apt install` to the first result, with an accelerator's
//! plug-in and a camera behind the service's fence, over an upgrade and a hung agent, to `apt purge`.
//!
//! `firmware/tests/debian/system.sh` makes the system, `firmware/tests/debian/steps.sh` checks each step on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::console::{Console, PATIENCE};
use crate::machine::Machine;
use crate::support::{Broker, folder, project, run, wait_until};

/// Where `firmware/test.sh` put the system, both packages and the plug-in.
fn made(name: &str) -> PathBuf {
    let images = std::env::var_os("OCELLI_FIRMWARE_IMAGES");
    let images = images.expect("OCELLI_FIRMWARE_IMAGES is not set: run firmware/test.sh");
    PathBuf::from(images).join("debian").join(name)
}

/// A disk with what is installed and what the configuration names.
fn packages(folder: &Path, port: u16) -> PathBuf {
    let (tree, disk) = (folder.join("packages"), folder.join("packages.img"));
    fs::create_dir_all(&tree).unwrap();
    fs::copy(made("older-arm64.deb"), tree.join("older.deb")).unwrap();
    fs::copy(made("newer-arm64.deb"), tree.join("newer.deb")).unwrap();
    fs::copy(made("ref.so"), tree.join("ref.so")).unwrap();
    fs::copy(project("firmware/tests/debian/steps.sh"), tree.join("steps.sh")).unwrap();
    let model = project("tests/fixtures/tiny-classifier");
    run("cp", &["-R", model.to_str().unwrap(), tree.join("model").to_str().unwrap()]);
    let config = format!(
        "[device]\nid = \"dock-3\"\n[[stream]]\nname = \"front\"\ncamera = \"/dev/video0\"\nfps = 2\n\
         [model]\npath = \"/packages/model\"\ndelegates = [\"ref\", \"int8\"]\n\
         [[plugin]]\nname = \"ref\"\nlibrary = \"/packages/ref.so\"\n\
         [mqtt]\nhost = \"10.0.2.2\"\nport = {port}\nretry_max = \"2s\"\n"
    );
    fs::write(tree.join("ocelli.toml"), config).unwrap();
    let (tree, path) = (tree.to_str().unwrap(), disk.to_str().unwrap());
    run("mke2fs", &["-q", "-t", "ext4", "-E", "root_owner=0:0", "-d", tree, path, "128M"]);
    disk
}

fn boot(folder: &Path, packages: &Path) -> Machine {
    let system = folder.join("system.img");
    run("cp", &["--sparse=always", made("system.img").to_str().unwrap(), system.to_str().unwrap()]);
    let mut command = Command::new("qemu-system-aarch64");
    command.args(["-M", "virt", "-cpu", "cortex-a72", "-m", "512"]);
    command.arg("-kernel").arg(made("kernel")).arg("-initrd").arg(made("initramfs.debian"));
    command.args(["-append", "console=ttyAMA0 panic=-1 quiet systemd.show_status=no"]);
    for (id, disk) in [("system", &*system), ("packages", packages)] {
        let drive = format!("file={},if=none,id={id},format=raw,cache=unsafe", disk.display());
        command.args(["-drive", &drive, "-device", &format!("virtio-blk-pci,drive={id}")]);
    }
    command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
    let mut machine = Machine::launch(command, folder);
    machine.console.wait_for(0, "serve: ready");
    machine.console.ask("mount /dev/vdb /packages");
    machine
}

/// Waits for a result of an agent's run that was not seen before.
fn wait_new_run(broker: &Broker, what: &str, known: &[Value]) -> Value {
    let is_new = |result: &&Value| known.iter().all(|run| *run != result["boot_id"]);
    let fresh = || broker.results().iter().find(is_new).cloned();
    assert!(wait_until(PATIENCE, || fresh().is_some()), "no results after {what}");
    fresh().unwrap()
}

/// A step of `steps.sh`, which must find everything as it should be.
fn step(console: &mut Console, words: &str) {
    console.ask(&format!("sh /packages/steps.sh {words}"));
}

#[test]
#[ignore = "boots a board: firmware/test.sh"]
fn a_debian_board_installs_runs_upgrades_and_removes_the_package() {
    let folder = folder("debian");
    let broker = Broker::start(&folder);
    let mut machine = boot(&folder, &packages(&folder, broker.port));
    let console = &mut machine.console;
    step(console, "install /packages/older.deb");
    // Without a configuration it waits, and is no failed service.
    assert_eq!(console.run("systemctl is-active ocelli").text, "inactive");
    assert_eq!(console.run("systemctl is-failed ocelli").text, "inactive");

    step(console, "configure");
    console.ask("cp /packages/ocelli.toml /etc/ocelli/ocelli.toml && systemctl restart ocelli");
    let first = wait_new_run(&broker, "installation", &[]);
    assert_eq!((&first["device"], &first["backend"]), (&json!("dock-3"), &json!(["ref"])));
    for program in ["ocelli", "ocelli-npu-worker"] {
        let status = format!("/proc/$(pidof {program})/status");
        let user = console.ask(&format!("stat -c %U /proc/$(pidof {program})"));
        assert_eq!(user, "ocelli", "{program}");
        let fence =
            console.ask(&format!("awk '/^(NoNewPrivs|Seccomp|CapEff):/ {{ print $2 }}' {status}"));
        assert_eq!(fence, "0000000000000000\n1\n2", "{program}");
    }
    // The worker's own fence has all that the kernel offers, in spite of the one around the service.
    let log = console.ask("journalctl --no-pager -u ocelli");
    assert!(!log.to_lowercase().contains("landlock"), "{log}");

    step(console, "upgrade /packages/newer.deb");
    let second = wait_new_run(&broker, "the upgrade", &[first["boot_id"].clone()]);
    assert!(second["seq"].as_u64() > first["seq"].as_u64(), "{first} {second}");

    // Hung: systemd ends it after 30 seconds, and starts it anew.
    console.ask("kill -STOP $(pidof ocelli)");
    let known = [&first, &second].map(|result| result["boot_id"].clone());
    let third = wait_new_run(&broker, "the watchdog", &known);
    assert!(third["seq"].as_u64() > second["seq"].as_u64(), "{second} {third}");

    step(console, "keep-off /packages/newer.deb");
    step(console, "remove");
    assert_ne!(console.run("pidof ocelli ocelli-npu-worker").status, 0, "it still runs");
    step(console, "return /packages/newer.deb");
    let known = [&first, &second, &third].map(|result| result["boot_id"].clone());
    wait_new_run(&broker, "removal and return", &known);
    step(console, "purge");
    machine.cut_power();
}

#[test]
#[ignore = "makes a Debian root folder from apt's mirror: firmware/test.sh"]
fn a_debian_root_folder_takes_and_gives_back_the_package_for_amd64() {
    let packages = ["older-amd64.deb", "newer-amd64.deb"].map(made);
    let packages = packages.each_ref().map(|path| path.to_str().unwrap());
    let told = run(project("firmware/tests/debian/install.sh").to_str().unwrap(), &packages);
    assert!(told.contains("steps.sh: purge: as it should be"), "{told}");
}
