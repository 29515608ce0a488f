//! What the boards need around them: a broker, somebody who listens there, a file server, and patience.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::console::PATIENCE;

/// Time for tests.
pub fn now() -> Instant {
    ocelli_slot::clock::now()
}

/// Waits until `done`, at most `limit`; says whether it came to pass.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = now() + limit;
    while !done() {
        if now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// A file of the project.
pub fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap().join(path)
}

/// A new folder for what a test leaves behind: `target/tmp/firmware/<name>`.
pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("firmware").join(name);
    // A run before may have left one.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Runs a program that must succeed; what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new(program).args(arguments).env("PATH", path).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A mosquitto on this machine, and a client of it that writes down what arrives.
pub struct Broker {
    children: Vec<Child>,
    /// Its port on 127.0.0.1, which boards reach at 10.0.2.2.
    pub port: u16,
    heard: PathBuf,
}

impl Broker {
    /// Starts both.
    pub fn start(folder: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let heard = folder.join("heard");
        let text = port.to_string();
        let mut mosquitto = ["/usr/sbin/mosquitto", "mosquitto"].into_iter();
        let mosquitto = mosquitto.find(|path| Path::new(path).exists()).unwrap_or("mosquitto");
        let broker = Command::new(mosquitto)
            .args(["-p", &text])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto is installed");
        let up = wait_until(PATIENCE, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        assert!(up, "the broker does not start");
        let listener = Command::new("mosquitto_sub")
            .args(["-p", &text, "-q", "1", "-t", "ocelli/#", "-F", "%t %p"])
            .stdout(File::create(&heard).unwrap())
            .spawn()
            .expect("mosquitto-clients is installed");
        Self { children: vec![broker, listener], port, heard }
    }

    /// Results so far, in order of arrival.
    pub fn results(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.heard).unwrap();
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        let result = |line: &str| {
            let (topic, payload) = line.split_once(' ')?;
            topic.contains("/result/").then(|| serde_json::from_str(payload).expect("JSON"))
        };
        whole.lines().filter_map(result).collect()
    }

    /// Waits for `more` results beside the first `known`; all of them.
    pub fn wait_results(&self, known: usize, more: usize) -> Vec<Value> {
        let came = wait_until(PATIENCE, || self.results().len() >= known + more);
        assert!(came, "{} results came, {} expected", self.results().len(), known + more);
        self.results()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Serves one file over HTTP to whoever asks, until the process ends; its port.
pub fn serve(file: &Path) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let bytes = fs::read(file).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut request = [0; 4096];
            // The board may go away at any time: its power is cut in tests.
            let answered = client.read(&mut request).and_then(|_| {
                write!(client, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len())?;
                client.write_all(&bytes)
            });
            drop(answered);
        }
    });
    port
}
