//! Emulated boards: which machine of QEMU each is, and one that runs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::console::Console;
use crate::disk::Disk;
use crate::qmp::Qmp;
use crate::support::{now, wait_until};

/// A board that QEMU emulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Board {
    /// In file names and tables.
    pub name: &'static str,
    architecture: Architecture,
    machine: &'static str,
    cpu: &'static str,
    /// Terminal of the kernel's console.
    terminal: &'static str,
    memory_mib: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Architecture {
    Aarch64,
    Armv7,
}

/// 64-bit Arm as in a Raspberry Pi 4.
pub const AARCH64: Board = Board {
    name: "aarch64-a72",
    architecture: Architecture::Aarch64,
    machine: "virt",
    cpu: "cortex-a72",
    terminal: "ttyAMA0",
    memory_mib: 512,
};

/// 64-bit Arm with every extension that QEMU knows (dot product, int8 matrices); its own pointer authentication is slow.
pub const AARCH64_MAX: Board = Board { name: "aarch64-max", cpu: "max,pauth-impdef=on", ..AARCH64 };

/// 32-bit Arm. Debian's kernel without LPAE reaches PCI only below 4 GiB.
pub const ARMV7: Board = Board {
    name: "armv7-a15",
    architecture: Architecture::Armv7,
    machine: "virt,highmem=off",
    cpu: "cortex-a15",
    ..AARCH64
};

/// A whole SoC with GPIO and I2C controllers, two Cortex-A7.
pub const AST2600: Board = Board {
    name: "ast2600-evb",
    architecture: Architecture::Armv7,
    machine: "ast2600-evb",
    cpu: "",
    terminal: "ttyS4",
    memory_mib: 1024,
};

impl Board {
    /// A file that `run.sh` made, by the environment variable that names it.
    fn made(&self, what: &str) -> PathBuf {
        let architecture = match self.architecture {
            Architecture::Aarch64 => "AARCH64",
            Architecture::Armv7 => "ARMV7",
        };
        let variable = format!("OCELLI_{architecture}_{what}");
        let path = std::env::var_os(&variable);
        path.unwrap_or_else(|| panic!("{variable} is not set: run make test-boards")).into()
    }

    /// The agent for this board.
    fn agent(&self) -> PathBuf {
        self.made("AGENT")
    }

    /// Folder with kernel and initramfs.
    fn image(&self) -> PathBuf {
        self.made("IMAGE")
    }

    fn has_pci(&self) -> bool {
        self.machine.starts_with("virt")
    }
}

/// How a machine is started.
pub struct Start<'a> {
    /// Which.
    pub board: Board,
    /// For sockets, initramfs and the log of the console.
    pub folder: &'a Path,
    /// Data partition.
    pub disk: &'a Disk,
    /// Further words of the kernel's command line.
    pub words: &'a str,
    /// Further arguments of QEMU.
    pub arguments: &'a [&'a str],
}

/// A machine that runs. Killed on drop; then its console is shown if a test failed.
pub struct Machine {
    child: Child,
    /// Its serial console.
    pub console: Console,
    /// QEMU itself.
    pub qmp: Qmp,
    log: PathBuf,
}

impl Machine {
    /// Switches a board on.
    pub fn start(start: &Start<'_>) -> Self {
        let Start { board, folder, .. } = *start;
        let (console, qmp) = (folder.join("console.socket"), folder.join("qmp.socket"));
        for socket in [&console, &qmp] {
            // Left by the boot before.
            let _ = std::fs::remove_file(socket);
        }
        let log = folder.join("console.log");
        let image = board.image();
        let initramfs = initramfs(board, folder);
        let mut command = Command::new(match board.architecture {
            Architecture::Aarch64 => "qemu-system-aarch64",
            Architecture::Armv7 => "qemu-system-arm",
        });
        command.args(["-M", board.machine, "-m", &board.memory_mib.to_string()]);
        if !board.cpu.is_empty() {
            command.args(["-cpu", board.cpu]);
        }
        command.args(["-display", "none", "-monitor", "none", "-nodefaults"]);
        let chardev = |id: &str, socket: &Path, wait: &str| {
            format!("socket,id={id},path={},server=on,wait={wait}", socket.display())
        };
        // QEMU starts the machine when somebody listens to its console.
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
        command.arg("-kernel").arg(image.join("kernel")).arg("-initrd").arg(initramfs);
        command
            .arg("-append")
            .arg(format!("console={} panic=-1 quiet loglevel=4 {}", board.terminal, start.words));
        if board.has_pci() {
            command.args([
                "-netdev",
                "user,id=net",
                "-device",
                "virtio-net-pci,netdev=net,romfile=,id=card",
            ]);
            command.args(["-drive", &format!("{},if=none,id=data", start.disk.drive())]);
            command.args(["-device", "virtio-blk-pci,drive=data"]);
        } else {
            command.arg("-dtb").arg(image.join("ast2600.dtb"));
            command.args([
                "-nic",
                "user",
                "-drive",
                &format!("{},if=sd,index=2", start.disk.drive()),
            ]);
        }
        command.args(start.arguments);
        let errors = std::fs::File::create(folder.join("qemu.log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn();
        let child = child.expect("qemu-system-arm is installed: run make test-boards");
        // The monitor's socket is made before the console's is waited at.
        let console = Console::connect(&console);
        Self { child, console, qmp: Qmp::connect(&qmp), log }
    }

    /// Switches a board on and waits until it serves commands.
    pub fn boot(start: &Start<'_>) -> Self {
        let machine = Self::start(start);
        machine.wait_ready(0);
        machine
    }

    /// Waits until the board behind `from` has started, and gives the position behind that.
    pub fn wait_ready(&self, from: usize) -> usize {
        self.console.wait_for(from, "board: ready after ")
    }

    /// Seconds since the board's kernel started, on its own clock.
    pub fn uptime(&mut self) -> f64 {
        self.console.ask("cut -d' ' -f1 /proc/uptime").parse().unwrap()
    }

    /// A value of the agent's `/proc/<pid>/status`, KiB.
    pub fn agent_memory(&mut self, key: &str) -> u64 {
        let line = self.console.ask(&format!("grep {key}: /proc/$(pidof ocelli)/status"));
        let number = line.split_whitespace().nth(1);
        number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{line}"))
    }

    /// Pulls the plug: nothing on the board gets another instruction.
    pub fn cut_power(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends QEMU by its monitor, which writes out everything that the machine gave to the disk.
    pub fn quit(mut self) {
        self.qmp.execute("quit", json!({}));
        let ended =
            wait_until(Duration::from_secs(30), || self.child.try_wait().unwrap().is_some());
        assert!(ended, "QEMU does not quit");
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

/// The image's initramfs with the agent appended as a second archive; the kernel unpacks both.
fn initramfs(board: Board, folder: &Path) -> PathBuf {
    let whole = folder.join("initramfs");
    if whole.exists() {
        return whole;
    }
    let mut bytes = std::fs::read(board.image().join("initramfs")).unwrap();
    let agent = board.agent();
    let program =
        std::fs::read(&agent).unwrap_or_else(|error| panic!("{}: {error}", agent.display()));
    append(&mut bytes, "bin/ocelli", 0o100_755, &program);
    append(&mut bytes, "TRAILER!!!", 0, &[]);
    std::fs::write(&whole, bytes).unwrap();
    whole
}

/// A file in the format "newc" of cpio (kernel, Documentation/driver-api/early-userspace/buffer-format.rst).
fn append(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let length = u32::try_from(content.len()).unwrap();
    let name_length = u32::try_from(name.len() + 1).unwrap();
    archive.extend(b"070701");
    for field in [0, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0] {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// How long it takes, by the host's clock.
pub fn timed<T>(action: impl FnOnce() -> T) -> (T, Duration) {
    let start = now();
    let done = action();
    (done, now() - start)
}
