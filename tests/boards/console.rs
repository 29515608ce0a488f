//! The serial console of an emulated board: what it prints, and commands that `init.sh` carries out.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::support::{now, wait_until};

/// Longest time that a command or a boot takes on a busy host.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// What the board printed so far; more comes from a thread of its own.
#[derive(Default)]
struct Output {
    text: Mutex<String>,
    more: Condvar,
}

/// A connected console.
pub struct Console {
    to_board: UnixStream,
    output: Arc<Output>,
    commands: u32,
}

/// What came of a command.
#[derive(Debug)]
pub struct Answer {
    /// Exit status.
    pub status: i32,
    /// Standard output and standard error, without the newline at the end.
    pub text: String,
}

impl Console {
    /// Connects to the socket that QEMU waits at.
    pub fn connect(socket: &Path) -> Self {
        // The socket is there a moment before somebody listens at it.
        let mut connected = None;
        wait_until(PATIENCE, || {
            connected = UnixStream::connect(socket).ok();
            connected.is_some()
        });
        let to_board =
            connected.unwrap_or_else(|| panic!("QEMU makes no console at {}", socket.display()));
        let mut from_board = to_board.try_clone().unwrap();
        let output = Arc::new(Output::default());
        let sink = Arc::clone(&output);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from_board.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..count]).replace('\r', "");
                sink.text.lock().unwrap().push_str(&text);
                sink.more.notify_all();
            }
        });
        Self { to_board, output, commands: 0 }
    }

    /// Everything printed so far.
    pub fn text(&self) -> String {
        self.output.text.lock().unwrap().clone()
    }

    /// Where the next words will stand.
    pub fn position(&self) -> usize {
        self.output.text.lock().unwrap().len()
    }

    /// Waits until `words` are printed behind `from`, and gives the position behind them.
    pub fn wait_for(&self, from: usize, words: &str) -> usize {
        let end = now() + PATIENCE;
        let mut text = self.output.text.lock().unwrap();
        loop {
            if let Some(at) = text[from..].find(words) {
                return from + at + words.len();
            }
            let left = end.saturating_duration_since(now());
            if left.is_zero() {
                // A failed test shows the text.
                drop(text);
                panic!("the board does not print {words:?}");
            }
            text = self.output.more.wait_timeout(text, left).unwrap().0;
        }
    }

    /// Carries out a shell command on the board.
    pub fn run(&mut self, command: &str) -> Answer {
        assert!(!command.contains('\n') && command.len() < 1000, "one line, please");
        self.commands += 1;
        let (from, number) = (self.position(), self.commands);
        writeln!(self.to_board, "{number} {command}").unwrap();
        let begin = self.wait_for(from, &format!("\n<<{number} "));
        let end = format!("\n{number}>>\n");
        let behind = self.wait_for(begin - 1, &end);
        let text = self.text();
        let (status, rest) = text[begin..behind - end.len()].split_once('\n').unwrap_or_default();
        Answer { status: status.parse().unwrap(), text: rest.trim_end().to_owned() }
    }

    /// Carries out a command that must succeed; what it said.
    pub fn ask(&mut self, command: &str) -> String {
        let answer = self.run(command);
        assert_eq!(answer.status, 0, "{command}: {}", answer.text);
        answer.text
    }
}
