//! The shipped binary as a process: its configuration, its log, signals, its end.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::{now, program, wait_until};

/// Longer than anything here takes.
pub const LONG: Duration = Duration::from_secs(60);

/// A file of the project, wherever the test's package lies in it.
pub fn project(path: &str) -> PathBuf {
    let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let root = folders.find(|folder| folder.join("Cargo.lock").is_file());
    root.expect("the workspace has a lock file").join(path)
}

/// What is written into the configuration file.
pub struct Setup {
    /// `device.id`.
    pub id: String,
    /// Folder of the configuration, its log and, unless `store` says otherwise, the store.
    pub folder: PathBuf,
    /// Host and port of the broker; `None`: JSON lines.
    pub broker: Option<(String, u16)>,
    /// Further lines of `[mqtt]`.
    pub mqtt: String,
    /// `outbox.durability`.
    pub durability: &'static str,
    /// Stream names and cameras, in a loop.
    pub cameras: Vec<(&'static str, PathBuf)>,
    /// Frames a second of each.
    pub fps: f32,
    /// The package.
    pub model: PathBuf,
    /// `store.dir`.
    pub store: PathBuf,
    /// Further lines of `[model]`.
    pub model_lines: String,
    /// Further sections.
    pub sections: String,
}

impl Setup {
    /// Device `dock-3` with the tiny classifier, one stream `front` with its golden picture at 20 frames a second.
    pub fn new(folder: &Path, port: u16) -> Self {
        let model = project("tests/fixtures/tiny-classifier");
        Self {
            id: "dock-3".to_owned(),
            folder: folder.to_owned(),
            broker: Some(("127.0.0.1".to_owned(), port)),
            mqtt: String::new(),
            durability: "spill",
            cameras: vec![("front", model.join("golden/shapes.jpg"))],
            fps: 20.0,
            model,
            store: folder.join("store"),
            model_lines: String::new(),
            sections: String::new(),
        }
    }

    /// The configuration's path.
    pub fn write(&self) -> PathBuf {
        let mut text = format!(
            "[device]\nid = {:?}\n\n[model]\npath = {:?}\n{}\n\n[store]\ndir = {:?}\n\n\
             [outbox]\ndurability = \"{}\"\n\n[health]\ninterval = \"1s\"\n{}\n",
            self.id, self.model, self.model_lines, self.store, self.durability, self.sections
        );
        if let Some((host, port)) = &self.broker {
            let further = &self.mqtt;
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "\n[mqtt]\nhost = \"{host}\"\nport = {port}\nkeep_alive = \"5s\"\nretry_max = \"1s\"\n{further}\n"
            );
        }
        for (name, camera) in &self.cameras {
            let fps = self.fps;
            let _ = write!(
                text,
                "\n[[stream]]\nname = \"{name}\"\ncamera = {camera:?}\nloop = true\nfps = {fps:.1}\n"
            );
        }
        let path = self.folder.join("ocelli.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Starts `ocelli run --config`, its log going to `agent.log` in the folder.
    pub fn start(&self) -> Agent {
        let config = self.write();
        let log = self.folder.join("agent.log");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut command = program::ocelli();
        command.arg("run").arg("--config").arg(config).stdout(Stdio::null()).stderr(file);
        Agent::start(&mut command, log)
    }
}

/// The agent's process. Killed on drop.
pub struct Agent {
    /// The process.
    pub child: Child,
    log: PathBuf,
}

impl Agent {
    /// Starts a command whose standard error goes to `log`.
    pub fn start(command: &mut Command, log: PathBuf) -> Self {
        command.stdin(Stdio::null()).env_remove("OCELLI_LOG").env_remove("NOTIFY_SOCKET");
        let child = command.spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}; build the binary"));
        Self { child, log }
    }

    /// Starts a command as a service manager with this socket and watchdog time does.
    pub fn start_notifying(command: &mut Command, socket: &Path, watchdog: Duration) -> Self {
        command.stdin(Stdio::null()).env_remove("OCELLI_LOG").env_remove("WATCHDOG_PID");
        command.env("NOTIFY_SOCKET", socket);
        command.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        Self { child: command.spawn().unwrap(), log: PathBuf::new() }
    }

    /// Sends a signal by name, as `TERM`.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &id]).status();
        assert!(sent.unwrap().success());
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end.
    pub fn end(&mut self) -> ExitStatus {
        let ended = wait_until(LONG, || self.child.try_wait().unwrap().is_some());
        assert!(ended, "the agent does not end; its log:\n{}", self.log());
        self.child.wait().unwrap()
    }

    /// SIGTERM and an orderly end; how long it took.
    pub fn terminate(mut self) -> Duration {
        let asked = now();
        self.signal("TERM");
        let status = self.end();
        assert_eq!(status.code(), Some(0), "{}", self.log());
        now() - asked
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the log holds a text.
    pub fn wait_logged(&self, text: &str) {
        let logged = wait_until(LONG, || self.log().contains(text));
        assert!(logged, "{text:?} is not in the log:\n{}", self.log());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
