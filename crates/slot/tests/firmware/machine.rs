//! The boards whose images QEMU boots, and one that runs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::card::Card;
use crate::console::{Console, PATIENCE};
use crate::qmp::Qmp;
use crate::support::{now, wait_until};

/// A board of `firmware/boards/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Board {
    /// `virt` with a Cortex-A72.
    QemuArm64,
    /// `virt,highmem=off` with a Cortex-A15.
    QemuArmv7,
    /// The SD card image of an Allwinner H3 board, in `orangepi-pc`, which has the same SoC.
    NanopiNeo,
}

impl Board {
    /// Its file in `firmware/boards/`.
    pub fn name(self) -> &'static str {
        match self {
            Self::QemuArm64 => "qemu-arm64",
            Self::QemuArmv7 => "qemu-armv7",
            Self::NanopiNeo => "nanopi-neo",
        }
    }

    /// The image that `firmware/test.sh` built.
    pub fn image(self) -> PathBuf {
        let folder = std::env::var_os("OCELLI_FIRMWARE_IMAGES");
        let folder = folder.expect("OCELLI_FIRMWARE_IMAGES is not set: run firmware/test.sh");
        PathBuf::from(folder).join(format!("{}.img", self.name()))
    }

    /// Whether QEMU has what the board restarts itself with; QEMU 7.2 lacks the watchdog of the Allwinner H3.
    pub fn restarts_itself(self) -> bool {
        self != Self::NanopiNeo
    }

    fn command(self, card: &Path) -> Command {
        let mut command = Command::new(match self {
            Self::QemuArm64 => "qemu-system-aarch64",
            Self::QemuArmv7 | Self::NanopiNeo => "qemu-system-arm",
        });
        let virt = match self {
            Self::QemuArm64 => Some(["virt", "cortex-a72", "qemu_arm64"]),
            Self::QemuArmv7 => Some(["virt,highmem=off", "cortex-a15", "qemu_arm"]),
            Self::NanopiNeo => None,
        };
        if let Some([machine, cpu, loader]) = virt {
            command.args(["-M", machine, "-cpu", cpu, "-m", "512"]);
            command.args(["-bios", &format!("/usr/lib/u-boot/{loader}/u-boot.bin")]);
            let drive = format!("file={},if=virtio,format=raw,cache=writeback", card.display());
            command.args(["-drive", &drive]);
            command.args(["-device", "i6300esb", "-watchdog-action", "reset"]);
        } else {
            // Four processors that wait for each other cost more than they bring on a host with fewer.
            command.args(["-M", "orangepi-pc", "-accel", "tcg,thread=single"]);
            command.args(["-drive", &format!("file={},if=sd,format=raw", card.display())]);
        }
        command
    }

    fn network(self) -> &'static [&'static str] {
        match self {
            Self::NanopiNeo => &["-nic", "user,model=allwinner-sun8i-emac"],
            _ => {
                &["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=,id=card"]
            }
        }
    }
}

/// Whether the board is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// DHCP and the way to this machine.
    Up,
    /// No cable.
    None,
}

/// A machine that runs. Killed on drop; then its console is shown if a test failed.
pub struct Machine {
    child: Child,
    /// Its serial console, U-Boot's first word included.
    pub console: Console,
    /// QEMU itself.
    pub qmp: Qmp,
    log: PathBuf,
}

impl Machine {
    /// Switches a board on with this card in it.
    pub fn start(board: Board, card: &Card, network: Network, more: &[&str]) -> Self {
        let mut command = board.command(&card.path);
        match network {
            Network::Up => command.args(board.network()),
            Network::None => command.args(["-nic", "none"]),
        };
        command.args(more);
        Self::launch(command, card.path.parent().unwrap())
    }

    /// Starts QEMU with its console and its monitor at sockets in a folder.
    pub fn launch(mut command: Command, folder: &Path) -> Self {
        let (console, qmp) = (folder.join("console.socket"), folder.join("qmp.socket"));
        for socket in [&console, &qmp] {
            // Left by the boot before.
            let _ = std::fs::remove_file(socket);
        }
        let log = folder.join("console.log");
        command.args(["-display", "none", "-monitor", "none"]);
        let chardev = |id: &str, socket: &Path, wait: &str| {
            format!("socket,id={id},path={},server=on,wait={wait}", socket.display())
        };
        let serial = format!(
            "{},logfile={},logappend=on",
            chardev("console", &console, "on"),
            log.display()
        );
        command.args(["-chardev", &serial, "-serial", "chardev:console"]);
        command.args([
            "-chardev",
            &chardev("qmp", &qmp, "off"),
            "-mon",
            "chardev=qmp,mode=control",
        ]);
        let errors = File::create(folder.join("qemu.log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let child = child.spawn().expect("qemu-system-arm is installed: run firmware/test.sh");
        let console = Console::connect(&console);
        Self { child, console, qmp: Qmp::connect(&qmp), log }
    }

    /// Waits until the board that was started behind `from` serves commands; its slot, and the position behind that.
    pub fn wait_up(&self, from: usize) -> (String, usize) {
        let at = self.console.wait_for(from, ", up after ");
        let text = self.console.text();
        let line = text[..at].rfind("ocelli: slot ").expect("the line begins so");
        let slot = text[line..].split([' ', ',']).nth(2).unwrap().to_owned();
        (slot, self.console.wait_for(at, "serve: ready"))
    }

    /// Reboots in order; the slot that came up.
    pub fn reboot(&mut self) -> String {
        let from = self.console.position();
        self.console.ask("reboot");
        self.wait_up(from).0
    }

    /// Presses the reset button.
    pub fn reset(&mut self) {
        self.qmp.execute("system_reset", json!({}));
    }

    /// Pulls the plug.
    pub fn cut_power(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Switches off in order; what the card holds then is complete. Boards that cannot switch themselves off are not asked to.
    pub fn power_off(mut self) {
        self.console.ask("poweroff");
        let ended = wait_until(PATIENCE, || self.child.try_wait().unwrap().is_some());
        assert!(ended, "the board does not switch itself off");
    }
}

impl Drop for Machine {
    #[expect(clippy::print_stderr, reason = "the console explains a failed test")]
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let text = self.console.text();
            let tail: Vec<_> = text.lines().rev().take(40).collect();
            let tail: Vec<_> = tail.into_iter().rev().collect();
            eprintln!("the console's end, whole in {}:\n{}", self.log.display(), tail.join("\n"));
        }
    }
}

/// How long it takes, by the host's clock.
pub fn timed<T>(action: impl FnOnce() -> T) -> (T, Duration) {
    let start = now();
    let done = action();
    (done, now() - start)
}
