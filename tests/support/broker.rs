//! Mosquitto with persistence, started, stopped and killed at will.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::{free_port, wait_until};

/// A broker process. Killed on drop.
pub struct Broker {
    child: Option<Child>,
    dir: TempDir,
    /// Its port on 127.0.0.1.
    pub port: u16,
}

impl Broker {
    /// A broker that keeps sessions on disk (saved on an orderly end, or when told) and lets everybody in.
    pub fn start() -> Self {
        Self::start_with(|_| "allow_anonymous true\n".to_owned())
    }

    /// A broker with further settings; they may name files that the closure puts into the folder.
    pub fn start_with(settings: impl FnOnce(&Path) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let further = settings(dir.path());
        let config = format!(
            "listener {port} 127.0.0.1\nuser root\npersistence true\npersistence_location {}/\n\
             autosave_interval 1800\nmax_queued_messages 0\nset_tcp_nodelay true\n{further}",
            dir.path().display()
        );
        std::fs::write(dir.path().join("mosquitto.conf"), config).unwrap();
        let mut broker = Self { child: None, dir, port };
        broker.resume();
        broker
    }

    /// Starts the process again, with what it has on disk.
    pub fn resume(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let child = Command::new(mosquitto())
            .arg("-c")
            .arg(self.dir.path().join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("mosquitto is installed (apt-get install mosquitto)");
        self.child = Some(child);
        let up = wait_until(Duration::from_secs(10), || {
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
        assert!(
            up,
            "the broker does not start: {}",
            std::fs::read_to_string(self.dir.path().join("log")).unwrap()
        );
    }

    /// Orderly end: the broker saves its state.
    pub fn terminate(&mut self) {
        self.signal("TERM");
        self.reap();
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.signal("KILL");
        self.reap();
    }

    /// Makes the broker write its state now.
    pub fn save(&self) {
        self.signal("USR1");
    }

    fn signal(&self, signal: &str) {
        let Some(child) = &self.child else { return };
        let sent =
            Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status();
        assert!(sent.unwrap().success());
    }

    fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn mosquitto() -> &'static str {
    if Path::new("/usr/sbin/mosquitto").exists() { "/usr/sbin/mosquitto" } else { "mosquitto" }
}
