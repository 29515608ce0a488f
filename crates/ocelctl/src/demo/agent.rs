//! The agent as a child process: its configuration, its log, its orderly end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::Picture;
use crate::Failure;

/// Lines of the agent's log shown when it fails.
const SHOWN_LINES: usize = 8;

/// A running agent. Killed when dropped.
pub(super) struct Agent {
    child: Child,
    log: PathBuf,
}

/// The configuration of the demonstration's device: one stream a picture, in a loop.
pub(super) fn config(port: u16, model: &Path, store: &Path, pictures: &[Picture]) -> String {
    let text = |path: &Path| toml_text(&path.to_string_lossy());
    let mut config = format!(
        "[device]\nid = \"{}\"\nlabels = [\"demo\"]\n\n[mqtt]\nhost = \"127.0.0.1\"\nport = {port}\n\n\
         [model]\npath = {}\n\n[store]\ndir = {}\n\n[health]\ninterval = \"5s\"\n",
        super::DEVICE,
        text(model),
        text(store)
    );
    for picture in pictures {
        config.push_str(&format!(
            "\n[[stream]]\nname = \"{}\"\ncamera = {}\nloop = true\nfps = 2\n",
            picture.stream,
            text(&picture.path)
        ));
    }
    config
}

/// A TOML basic string.
fn toml_text(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

impl Agent {
    /// Starts `program run --config FILE`, its log going to a file beside the configuration.
    pub(super) fn start(program: &Path, config: &Path) -> Result<Self, Failure> {
        let log = config.with_file_name("agent.log");
        let file =
            File::create(&log).map_err(|error| Failure(format!("{}: {error}", log.display())))?;
        let child = Command::new(program)
            .arg("run")
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                let program = program.display();
                Failure(format!("cannot start the agent {program}: {error}; build it with cargo build, or see --agent"))
            })?;
        Ok(Self { child, log })
    }

    /// Waits for an end that nobody asked for, and says why it came.
    pub(super) async fn unexpected_end(&mut self) -> Failure {
        let status = self.child.wait().await;
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        Failure(format!(
            "the agent ended by itself ({status}); its last words:\n{}",
            self.last_words()
        ))
    }

    /// SIGTERM, then waits for the end.
    pub(super) async fn stop(&mut self, patience: Duration) -> Result<(), Failure> {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        let id = id.ok_or_else(|| Failure::new("the agent had already ended"))?;
        kill(Pid::from_raw(id), Signal::SIGTERM)
            .map_err(|error| Failure(format!("cannot send SIGTERM to the agent: {error}")))?;
        match tokio::time::timeout(patience, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(Failure(format!(
                "the agent ended with {status} after SIGTERM; its last words:\n{}",
                self.last_words()
            ))),
            Ok(Err(error)) => Err(Failure(format!("cannot wait for the agent: {error}"))),
            Err(_) => Err(Failure(format!(
                "the agent still runs {} after SIGTERM; its last words:\n{}",
                humantime::format_duration(patience),
                self.last_words()
            ))),
        }
    }

    /// The end of the log.
    pub(super) fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let from = lines.len().saturating_sub(SHOWN_LINES);
        lines[from..].join("\n")
    }
}
