//! Where a board stands: broker and subscriber on this machine, and what is on the board's data partition.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::console::PATIENCE;
use crate::disk::Disk;
use crate::machine::{Board, Machine, Start};
use crate::scene::Scene;
use crate::support::agent::project;
use crate::support::broker::Broker;
use crate::support::subscriber::Subscriber;
use crate::support::wait_until;

/// Loads the virtual camera and plays the scenes; the camera is `/dev/video0`.
pub const CAMERA: &str = "\
modprobe vivid n_devs=1 node_types=0x101 num_inputs=1 input_types=0x3 num_outputs=1 output_types=0x1
vivid play /dev/video1 /dev/video0 NV12 /data/scenes/* >/run/feeder 2>&1 &
until grep -q playing /run/feeder; do usleep 100000; done
";

/// Everything around one board.
pub struct Site {
    /// Logs, sockets and images; kept after the test.
    pub folder: PathBuf,
    /// The broker that the board reports to.
    pub broker: Broker,
    /// What arrives there.
    pub subscriber: Subscriber,
    /// Sections of the configuration beside device, mqtt and model.
    config: String,
    mqtt: String,
}

impl Site {
    /// A new folder `name`, a broker that lets everybody in.
    pub fn new(name: &str) -> Self {
        Self::with_broker(name, Broker::start())
    }

    /// The same with a broker of one's own.
    pub fn with_broker(name: &str, broker: Broker) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("boards").join(name);
        // A run before may have left one.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("data")).unwrap();
        let subscriber = Subscriber::start(broker.port);
        Self { folder, broker, subscriber, config: String::new(), mqtt: String::new() }
    }

    /// A file of the data partition.
    pub fn put(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.folder.join("data").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Adds sections to the configuration.
    pub fn configure(&mut self, sections: &str) -> &mut Self {
        self.config.push_str(sections);
        self
    }

    /// Replaces host and port of the broker and whatever else `[mqtt]` has.
    pub fn configure_mqtt(&mut self, lines: String) -> &mut Self {
        self.mqtt = lines;
        self
    }

    /// Two scenes for the virtual camera.
    pub fn show(&self, scenes: &[Scene]) {
        for (number, scene) in scenes.iter().enumerate() {
            self.put(&format!("scenes/{number}"), scene.nv12());
        }
    }

    /// The data partition with a model package, the configuration, and `rc`, which is run at every boot.
    pub fn disk(&self, package: &Path, rc: &str) -> Disk {
        let data = self.folder.join("data");
        copy(package, &data.join("model"));
        let mqtt = if self.mqtt.is_empty() {
            format!("host = \"10.0.2.2\"\nport = {}\nretry_max = \"2s\"", self.broker.port)
        } else {
            self.mqtt.clone()
        };
        let text = format!(
            "[device]\nid = \"dock-3\"\n[model]\npath = \"model\"\ndelegates = [\"int8\"]\n[store]\ndir = \"store\"\n\
             [mqtt]\n{mqtt}\n[health]\ninterval = \"1s\"\n{}",
            self.config
        );
        self.put("ocelli.toml", text);
        self.put("rc", rc);
        Disk::make(&self.folder.join("data.img"), &data, 64)
    }

    /// Switches a board on and waits until it serves commands.
    pub fn boot(&self, board: Board, disk: &Disk) -> Machine {
        Machine::boot(&self.start(board, disk))
    }

    /// How a board is started without further arguments.
    pub fn start<'a>(&'a self, board: Board, disk: &'a Disk) -> Start<'a> {
        Start { board, folder: &self.folder, disk, words: "", arguments: &[] }
    }

    /// Waits until `more` results came after the first `known` ones; all results so far.
    pub fn wait_results(&self, known: usize, more: usize) -> Vec<Value> {
        let mut results = Vec::new();
        let came = wait_until(PATIENCE, || {
            results = self.subscriber.results();
            results.len() >= known + more
        });
        assert!(came, "{} results came, {} expected", results.len(), known + more);
        results
    }

    /// Waits for a health report that `fits`.
    pub fn wait_health(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let came = wait_until(PATIENCE, || {
            last = self.subscriber.latest("/health").unwrap_or_default();
            !last.is_null() && fits(&last)
        });
        assert!(came, "no health report tells {what}; the last: {last:#}");
        last
    }
}

/// A package of the zoo.
pub fn zoo(name: &str) -> PathBuf {
    project("models").join(name)
}

/// The smallest package there is, and its picture.
pub fn tiny() -> (PathBuf, PathBuf) {
    let package = project("tests/fixtures/tiny-classifier");
    let picture = package.join("golden/shapes.jpg");
    (package, picture)
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
