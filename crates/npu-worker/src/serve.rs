//! The worker's loop: one request, one reply, until the agent is gone.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::thread;

use ocelli_delegate::link::{Link, Received, memory};
use ocelli_delegate::wire::{self, Compile, Failed, Open, Opened, Packet, Reply, Request, VERSION};

use crate::fence::{close_standard_input, fence, leave};
use crate::host::{Executable, Io, Mapping, Plugin, part};

/// Why the worker ended other than by the agent's wish.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Standard input is no socket, or broke.
    #[error("standard input: {0}")]
    Socket(#[from] io::Error),
    /// The agent sent something else than a request.
    #[error(transparent)]
    Malformed(#[from] wire::Malformed),
}

/// Serves the agent behind standard input until it is gone.
///
/// # Errors
/// [`ServeError`]
pub fn serve_standard_input() -> Result<(), ServeError> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    close_standard_input()?;
    let link = Link::from_fd(socket);
    let mut worker = Worker::default();
    let mut buffer = vec![0; wire::MAX_PACKET];
    loop {
        let Received::Packet(length, file) = link.receive(&mut buffer, None)? else {
            return Ok(());
        };
        match wire::parse::<Request>(&buffer[..length])? {
            Packet::Run { seq, timeout_ns } => match worker.run(timeout_ns) {
                Ok(()) => link.send(&wire::done(seq, 0), None)?,
                Err(failed) => link.send(&wire::json(&Reply::Failed(failed)), None)?,
            },
            Packet::Json(request) => {
                let (reply, file) = match worker.answer(request, file, &link) {
                    Ok(answer) => answer,
                    Err(failed) => (Reply::Failed(failed), None),
                };
                link.send(&wire::json(&reply), file.as_ref().map(AsFd::as_fd))?;
            }
            Packet::Done { .. } => {}
        }
    }
}

/// A plug-in that hangs must not outlive the agent: a thread waits for the end of the socket.
fn end_with_agent(link: &Link) -> io::Result<()> {
    let watched = link.as_fd().try_clone_to_owned()?;
    thread::Builder::new().name("agent-watch".to_owned()).stack_size(64 << 10).spawn(
        move || {
            ocelli_delegate::link::wait_for_end(&watched);
            leave();
        },
    )?;
    Ok(())
}

#[derive(Default)]
struct Worker {
    plugin: Option<&'static Plugin>,
    cache_dir: Option<String>,
    executable: Option<Executable<'static>>,
    io: Io,
    memory: Option<Mapping>,
}

type Answer = Result<(Reply, Option<File>), Failed>;

impl Worker {
    fn answer(&mut self, request: Request, file: Option<File>, link: &Link) -> Answer {
        let reply = match request {
            Request::Open(open) => self.open(open, link)?,
            Request::Supports { device, graph } => {
                let file = mapped(file)?;
                let graph = graph_in(file.bytes(), graph)?;
                Reply::Accepts(self.plugin()?.supports(device, &graph, file.bytes())?)
            }
            Request::Compile(what) => self.compile(&what, mapped(file)?)?,
            Request::Buffers => {
                self.memory = Some(mapped(file)?);
                Reply::Mapped
            }
            Request::Stats { device } => {
                let mut stats = self.plugin()?.stats(device).unwrap_or_default();
                stats.worker_rss_bytes = resident_bytes().unwrap_or(0);
                Reply::Stats(stats)
            }
            Request::Export => return self.export(),
        };
        Ok((reply, None))
    }

    fn open(&mut self, open: Open, link: &Link) -> Result<Reply, Failed> {
        if open.version != VERSION {
            let reason = format!("worker speaks version {VERSION}, the agent {}", open.version);
            return Err(own(reason + "; install both from one release"));
        }
        if self.plugin.is_some() {
            return Err(own("a plug-in is loaded already".to_owned()));
        }
        let unfenced = fence(open.sandbox, open.memory_bytes, open.cache_dir.as_deref());
        // Before any code of the plug-in, which may hang while it is loaded.
        end_with_agent(link).map_err(|error| own(format!("cannot watch the agent: {error}")))?;
        // One plug-in for the life of the process.
        let plugin: &'static Plugin =
            Box::leak(Box::new(Plugin::open(&open.plugin, &open.options)?));
        let (name, plugin_version) = plugin.identity();
        let devices = plugin.devices()?;
        self.plugin = Some(plugin);
        self.cache_dir = open.cache_dir;
        let opened = Opened { version: VERSION, plugin: name, plugin_version, devices, unfenced };
        Ok(Reply::Opened(opened))
    }

    fn compile(&mut self, what: &Compile, file: Mapping) -> Result<Reply, Failed> {
        let plugin = self.plugin()?;
        let graph = what.graph.map(|part| graph_in(file.bytes(), part)).transpose()?;
        self.executable = None;
        let executable = plugin.compile(what, graph.as_ref(), self.cache_dir.as_deref(), file)?;
        let [inputs, outputs] = executable.io()?;
        self.io = Io::of(&inputs, &outputs).0;
        self.executable = Some(executable);
        let device = plugin.devices()?.into_iter().nth(what.device as usize);
        Ok(Reply::Compiled { inputs, outputs, device })
    }

    fn run(&mut self, timeout_ns: u64) -> Result<(), Failed> {
        let ready = self.executable.as_ref().zip(self.memory.as_ref());
        let (executable, memory) =
            ready.ok_or_else(|| own("nothing is compiled, or there are no buffers".to_owned()))?;
        executable.run(memory, &self.io, timeout_ns)
    }

    fn export(&self) -> Answer {
        let executable = self.executable.as_ref();
        let executable = executable.ok_or_else(|| own("nothing is compiled".to_owned()))?;
        let Some(blob) = executable.export()? else {
            return Err(Failed { status: 1, reason: "the plug-in exports nothing".to_owned() });
        };
        let file = memory(blob.len() as u64).and_then(|mut file| {
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&blob).map(|()| file)
        });
        let file = file.map_err(|error| own(error.to_string()))?;
        Ok((Reply::Blob { n_bytes: blob.len() as u64 }, Some(file)))
    }

    fn plugin(&self) -> Result<&'static Plugin, Failed> {
        self.plugin.ok_or_else(|| own("no plug-in is loaded".to_owned()))
    }
}

fn own(reason: String) -> Failed {
    Failed { status: 11, reason }
}

fn mapped(file: Option<File>) -> Result<Mapping, Failed> {
    let file = file.ok_or_else(|| own("no file came with the request".to_owned()))?;
    Mapping::new(file).map_err(|error| own(format!("memory file: {error}")))
}

fn graph_in(file: &[u8], place: wire::Part) -> Result<wire::Graph, Failed> {
    let json = part(file, place).ok_or_else(|| own("the graph is not in the file".to_owned()))?;
    serde_json::from_slice(json).map_err(|error| own(format!("graph: {error}")))
}

/// `statm` of proc(5): pages, the second number is resident.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * wire::ALIGNMENT as u64)
}
