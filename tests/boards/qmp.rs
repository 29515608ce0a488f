//! QEMU's machine protocol: JSON lines on a socket (QEMU, docs/interop/qmp-spec.txt).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::console::PATIENCE;
use crate::support::wait_until;

/// A connection in command mode.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    /// Names of events seen while answers were waited for.
    pub events: Vec<String>,
}

impl Qmp {
    /// Connects and leaves the negotiation mode.
    pub fn connect(socket: &Path) -> Self {
        let mut stream = None;
        let there = wait_until(PATIENCE, || {
            stream = UnixStream::connect(socket).ok();
            stream.is_some()
        });
        assert!(there, "QEMU makes no monitor at {}", socket.display());
        let stream = stream.expect("waited for");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut qmp = Self { reader: BufReader::new(stream), events: Vec::new() };
        let greeting = qmp.read();
        assert!(greeting.get("QMP").is_some(), "{greeting}");
        qmp.execute("qmp_capabilities", json!({}));
        qmp
    }

    /// Executes a command that must succeed.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.reader.get_mut(), "{request}").unwrap();
        loop {
            let mut line = self.read();
            if let Some(event) = line.get("event").and_then(Value::as_str) {
                self.events.push(event.to_owned());
                continue;
            }
            assert!(line.get("error").is_none(), "{request}: {line}");
            return line["return"].take();
        }
    }

    /// A property of an emulated device.
    pub fn property(&mut self, path: &str, property: &str) -> Value {
        self.execute("qom-get", json!({ "path": path, "property": property }))
    }

    /// Sets a property of an emulated device.
    pub fn set_property(&mut self, path: &str, property: &str, value: impl Into<Value>) {
        let value: Value = value.into();
        self.execute("qom-set", json!({ "path": path, "property": property, "value": value }));
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }
}
