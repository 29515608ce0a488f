//! Runs the agent as systemd would: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, restart with back-off. Feeds the hardware watchdog only
//! while the agent says `WATCHDOG=1`, and confirms the boot when it has been ready and alive for a while.
//!
//! [`watch::Watch`] decides, here is the I/O. The agent's output goes where the supervisor's goes.

pub mod watch;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use self::watch::{Act, Event, Limits, Watch};
use crate::clock;

/// What to run, and how.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The agent and its arguments.
    pub command: Vec<String>,
    /// User and group that it runs as.
    pub user: Option<(u32, u32)>,
    /// The hardware watchdog, if the board has one.
    pub watchdog: Option<PathBuf>,
    /// Folder for the socket, the process id and the file `stop`, which asks for no restart while the board shuts down.
    pub run: PathBuf,
    /// Times.
    pub limits: Limits,
}

/// What the supervisor needs done by others.
pub trait Host {
    /// The boot has proved itself.
    ///
    /// # Errors
    /// What went wrong; it is asked again.
    fn confirm(&mut self) -> Result<(), String>;
    /// Starts the board anew.
    fn reboot(&mut self, reason: &str);
    /// One line for the log.
    fn log(&mut self, line: &str);
}

/// Supervises until the agent has ended after the file `stop` was made.
///
/// # Errors
/// When the socket cannot be made. Everything later is logged and lived with.
pub fn run(settings: &Settings, host: &mut dyn Host) -> io::Result<()> {
    let path = settings.run.join("notify");
    let socket = listen(&path, settings.user)?;
    let mut dog = settings.watchdog.as_deref().and_then(|path| open_watchdog(path, host));
    let mut watch = Watch::new(Limits { hardware: dog.is_some(), ..settings.limits }, clock::now());
    let mut agent: Option<Child> = None;
    let mut buffer = [0; 4096];
    loop {
        // An error is the time-out that paces this loop.
        if let Ok(length) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            watch.handle(&Event::Said(text), clock::now());
        }
        if let Some(child) = &mut agent
            && let Ok(Some(status)) = child.try_wait()
        {
            host.log(&format!("the agent ended: {status}"));
            agent = None;
            watch.handle(&Event::Ended, clock::now());
        }
        let stopping = settings.run.join("stop").exists();
        if stopping && agent.is_none() {
            close_watchdog(dog);
            return Ok(());
        }
        for act in watch.decide(clock::now()) {
            match act {
                Act::Start if stopping => {}
                Act::Start => match start(settings, &path) {
                    Ok(child) => {
                        host.log(&format!("the agent starts as process {}", child.id()));
                        agent = Some(child);
                    }
                    Err(error) => {
                        let command = settings.command.join(" ");
                        host.log(&format!("the agent cannot be started: {command}: {error}"));
                        watch.handle(&Event::Ended, clock::now());
                    }
                },
                Act::Feed => feed(dog.as_mut()),
                Act::Starve(reason) => {
                    host.log(&format!("the hardware watchdog is no longer fed: {reason}"));
                }
                Act::Kill(reason) => {
                    host.log(&format!("the agent is killed: {reason}"));
                    // It may have ended by itself in between.
                    let _ = agent.as_mut().map(Child::kill);
                }
                Act::Confirm => match host.confirm() {
                    Ok(()) => watch.handle(&Event::Confirmed, clock::now()),
                    Err(reason) => host.log(&format!("the boot cannot be confirmed: {reason}")),
                },
                Act::Reboot(reason) => host.reboot(reason),
            }
        }
    }
}

fn listen(path: &Path, user: Option<(u32, u32)>) -> io::Result<UnixDatagram> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket = UnixDatagram::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    if let Some((user, group)) = user {
        chown(path, Some(user), Some(group))?;
    }
    socket.set_read_timeout(Some(Duration::from_millis(250)))?;
    Ok(socket)
}

fn start(settings: &Settings, socket: &Path) -> io::Result<Child> {
    let (program, arguments) = settings.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).env("NOTIFY_SOCKET", socket);
    command.env("WATCHDOG_USEC", settings.limits.silence.as_micros().to_string());
    if let Some((user, group)) = settings.user {
        command.uid(user).gid(group);
    }
    let child = command.spawn()?;
    // For the shutdown script, which asks the agent to end in order.
    fs::write(settings.run.join("agent.pid"), child.id().to_string())?;
    Ok(child)
}

fn open_watchdog(path: &Path, host: &mut dyn Host) -> Option<File> {
    match OpenOptions::new().write(true).open(path) {
        Ok(file) => Some(file),
        Err(error) => {
            let path = path.display();
            host.log(&format!("no hardware watchdog: {path}: {error}; a hung agent is killed"));
            None
        }
    }
}

fn feed(dog: Option<&mut File>) {
    if let Some(dog) = dog {
        // A watchdog that takes no food resets the board, which is what it is for.
        let _ = dog.write_all(b"1");
    }
}

/// The letter that tells most drivers to stop the watchdog: an orderly end is not a hang.
fn close_watchdog(dog: Option<File>) {
    if let Some(mut dog) = dog {
        // Drivers built without it keep running, and the shutdown is bounded by them.
        let _ = dog.write_all(b"V");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;

    #[derive(Default)]
    struct Recorder {
        log: Vec<String>,
        confirmed: usize,
        stop: PathBuf,
    }

    impl Host for Recorder {
        fn confirm(&mut self) -> Result<(), String> {
            self.confirmed += 1;
            fs::write(&self.stop, "").map_err(|error| error.to_string())
        }
        fn reboot(&mut self, reason: &str) {
            self.log.push(format!("reboot: {reason}"));
            fs::write(&self.stop, "").unwrap();
        }
        fn log(&mut self, line: &str) {
            self.log.push(line.to_owned());
        }
    }

    fn settings(folder: &Path, script: &str) -> Settings {
        let program = folder.join("agent");
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o755).open(&program).unwrap();
        file.write_all(format!("#!/bin/sh\ncd \"$(dirname \"$0\")\"\n{script}\n").as_bytes())
            .unwrap();
        drop(file);
        let limits = Limits {
            silence: Duration::from_secs(2),
            proof: Duration::from_millis(300),
            back_off: Duration::from_millis(20),
            ..Limits::default()
        };
        Settings {
            command: vec![program.display().to_string()],
            user: None,
            watchdog: Some(folder.join("watchdog")),
            run: folder.to_owned(),
            limits,
        }
    }

    #[test]
    fn an_agent_that_is_ready_and_alive_confirms_the_boot_and_feeds_the_watchdog() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("watchdog"), "").unwrap();
        let settings =
            settings(folder.path(), "test \"$WATCHDOG_USEC\" = 2000000 || exit 1\nexec sleep 2");
        let (stop, said) = (folder.path().join("stop"), folder.path().join("notify"));
        let speaking = std::thread::spawn(move || {
            let sender = UnixDatagram::unbound().unwrap();
            while !stop.exists() {
                std::thread::sleep(Duration::from_millis(50));
                // The socket is not there at first.
                let _ = sender.send_to(b"READY=1\nWATCHDOG=1\n", &said);
            }
        });
        let mut host = Recorder { stop: folder.path().join("stop"), ..Recorder::default() };
        run(&settings, &mut host).unwrap();
        speaking.join().unwrap();
        assert_eq!(host.confirmed, 1, "{:?}", host.log);
        let food = fs::read_to_string(folder.path().join("watchdog")).unwrap();
        assert!(food.starts_with('1') && food.ends_with('V'), "{food}");
    }

    #[test]
    fn an_agent_that_ends_is_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(
            folder.path(),
            "echo x >>starts\ntest $(wc -l <starts) -lt 3 || touch stop\nexit 3",
        );
        let mut host = Recorder { stop: folder.path().join("stop"), ..Recorder::default() };
        run(&settings, &mut host).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("starts")).unwrap(), "x\nx\nx\n");
        assert!(host.log.iter().any(|line| line.contains("exit status: 3")), "{:?}", host.log);
        assert!(
            host.log.iter().any(|line| line.contains("no hardware watchdog")),
            "{:?}",
            host.log
        );
    }
}
