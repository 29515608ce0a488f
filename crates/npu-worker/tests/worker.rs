//! The worker's process, driven as the agent drives it: it runs the reference plug-in on tensors in shared memory, and what
//! vendors' code can do to it shows on the socket at once. Plug-ins are compiled from C here.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ocelli_delegate::link::{self, Link, Received, memory};
use ocelli_delegate::wire::{self, Compile, Graph, Node, Open, Packet, Part, Reply, Request};

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

fn plugin(name: &str, folder: &Path) -> PathBuf {
    let delegate = Path::new(env!("CARGO_MANIFEST_DIR")).join("../delegate");
    let library = folder.join(name).with_extension("so");
    let compiled = Command::new("cc")
        .args(["-std=c11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-I"])
        .arg(delegate.join("include"))
        .arg(delegate.join("plugins").join(name).with_extension("c"))
        .arg("-o")
        .arg(&library)
        .args(["-lm", "-ldl"])
        .status();
    assert!(compiled.expect("cc is there").success());
    library
}

struct Worker {
    child: Child,
    link: Link,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        self.child.wait().expect("the system gives it");
    }
}

impl Worker {
    fn start() -> Self {
        let (link, socket) = link::pair().expect("the system gives it");
        let child = Command::new(env!("CARGO_BIN_EXE_ocelli-npu-worker"))
            .stdin(socket)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self { child: child.expect("the system gives it"), link }
    }

    fn next(&self, limit: Duration) -> Option<Packet<Reply>> {
        let mut buffer = vec![0; wire::MAX_PACKET];
        match self.link.receive(&mut buffer, Some(limit)).expect("the system gives it") {
            Received::Packet(length, _) => {
                Some(wire::parse(&buffer[..length]).expect("the system gives it"))
            }
            Received::Closed => None,
            Received::TimedOut => panic!("no answer within {limit:?}"),
        }
    }

    fn ask(&self, request: &Request, file: Option<&File>) -> Reply {
        self.link.send(&wire::json(request), file.map(AsFd::as_fd)).expect("the system gives it");
        match self.next(LONG) {
            Some(Packet::Json(reply)) => reply,
            other => panic!("{other:?} to {request:?}"),
        }
    }

    /// With a plug-in, a Relu of six floats compiled, and its memory.
    fn ready(plugin: &Path, options: &[(&str, &str)]) -> (Self, File) {
        let worker = Self::start();
        let opened = worker.ask(&Request::Open(open(plugin, options)), None);
        assert!(matches!(opened, Reply::Opened(_)), "{opened:?}");
        let (file, graph, model) = relu();
        let supports = Request::Supports { device: 0, graph };
        assert_eq!(worker.ask(&supports, Some(&file)), Reply::Accepts(vec![1]));
        let what = Compile { device: 0, blob: false, model, graph: Some(graph), toolchain: None };
        match worker.ask(&Request::Compile(Box::new(what)), Some(&file)) {
            Reply::Compiled { inputs, outputs, .. } => {
                assert_eq!((&*inputs[0].name, &*outputs[0].name), ("x", "y"));
                assert_eq!((inputs[0].n_bytes, outputs[0].n_bytes), (24, 24));
            }
            other => panic!("{other:?}"),
        }
        let memory = memory(wire::places([24, 24]).1).expect("the system gives it");
        assert_eq!(worker.ask(&Request::Buffers, Some(&memory)), Reply::Mapped);
        (worker, memory)
    }

    fn run(&self, seq: u64) -> Option<Packet<Reply>> {
        self.link.send(&wire::run(seq, u64::MAX), None).expect("the system gives it");
        self.next(LONG)
    }
}

fn open(plugin: &Path, options: &[(&str, &str)]) -> Open {
    let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Open {
        version: wire::VERSION,
        plugin: plugin.to_string_lossy().into_owned(),
        options: options.collect::<BTreeMap<_, _>>(),
        sandbox: wire::Sandbox::Strict,
        memory_bytes: 512 << 20,
        cache_dir: None,
    }
}

fn relu() -> (File, Part, Part) {
    let tensor = |name: &str| wire::Tensor {
        name: name.to_owned(),
        dtype: 1,
        dims: vec![1, 6],
        n_bytes: 24,
        ..wire::Tensor::default()
    };
    let node = Node {
        op: "Relu".to_owned(),
        name: "relu".to_owned(),
        quantised: false,
        inputs: vec![0],
        outputs: vec![1],
        attributes: Vec::new(),
        clip: (None, None),
        macs: 0,
    };
    let graph = Graph {
        opset: 13,
        tensors: vec![tensor("x"), tensor("y")],
        nodes: vec![node],
        inputs: vec![0],
        outputs: vec![1],
    };
    let json = serde_json::to_vec(&graph).expect("the system gives it");
    let file = memory(4096).expect("the system gives it");
    file.write_all_at(&json, 64).expect("the system gives it");
    (file, Part { at: 64, n_bytes: json.len() as u64 }, Part { at: 0, n_bytes: 0 })
}

fn bytes(values: [f32; 6]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn both_plugins_run_a_relu_in_shared_memory() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["relu", "ref"] {
        let (worker, memory) = Worker::ready(&plugin(name, folder.path()), &[]);
        for seq in 1..=3 {
            memory.write_all_at(&bytes([-2.0, -0.5, 0.0, 0.5, 1.0, seq as f32]), 0).unwrap();
            assert_eq!(worker.run(seq), Some(Packet::Done { seq, status: 0 }), "{name}");
            let mut found = vec![0; 24];
            memory.read_exact_at(&mut found, 4096).unwrap();
            assert_eq!(found, bytes([0.0, 0.0, 0.0, 0.5, 1.0, seq as f32]), "{name}");
        }
    }
}

#[test]
fn faults_show_on_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let reference = plugin("ref", folder.path());
    for fault in ["segv", "abort", "exit", "hog"] {
        let (worker, _memory) = Worker::ready(&reference, &[("fault", fault), ("after", "1")]);
        assert!(worker.run(1).is_some(), "{fault}");
        assert_eq!(worker.run(2), None, "{fault}: the process is gone");
    }
    for (fault, status) in [("lost", 9), ("error", 11)] {
        let (worker, _memory) = Worker::ready(&reference, &[("fault", fault)]);
        match worker.run(1) {
            Some(Packet::Json(Reply::Failed(failed))) => {
                assert_eq!(failed.status, status);
                assert!(failed.reason.starts_with("asked to"), "{failed:?}");
            }
            other => panic!("{fault}: {other:?}"),
        }
    }
}

#[test]
fn a_hung_worker_ends_with_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let (worker, _memory) = Worker::ready(&plugin("ref", folder.path()), &[("fault", "hang")]);
    worker.link.send(&wire::run(1, u64::MAX), None).unwrap();
    let mut buffer = vec![0; 64];
    let silence = worker.link.receive(&mut buffer, Some(Duration::from_millis(300))).unwrap();
    assert!(matches!(silence, Received::TimedOut), "{silence:?}");
    // The agent's end goes without a word, as when it is killed.
    let (other, _) = link::pair().unwrap();
    let mut worker = worker;
    drop(std::mem::replace(&mut worker.link, other));
    let step = Duration::from_millis(20);
    let gone = (0..LONG.as_millis() / step.as_millis()).any(|_| {
        std::thread::sleep(step);
        worker.child.try_wait().unwrap().is_some()
    });
    assert!(gone, "it outlives the agent");
}

#[test]
fn what_is_no_plugin_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let reference = plugin("ref", folder.path());
    let text = folder.path().join("text.so");
    std::fs::write(
        &text,
        "not a library, but long enough to be looked at as one, if only for its first bytes",
    )
    .unwrap();
    let cases = [
        (open(&text, &[]), "invalid ELF header"),
        (open(Path::new("libm.so.6"), &[]), "does not export ocelli_delegate_get_api"),
        (open(Path::new("/nowhere/npu.so"), &[]), "No such file"),
        (open(&reference, &[("colour", "red")]), "unknown option colour"),
        (open(&reference, &[("fault", "no-device")]), "no device"),
        (Open { version: 99, ..open(&reference, &[]) }, "install both from one release"),
    ];
    for (request, expected) in cases {
        match Worker::start().ask(&Request::Open(request), None) {
            Reply::Failed(failed) => assert!(failed.reason.contains(expected), "{failed:?}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn requests_that_make_no_sense_are_answered_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let reference = plugin("ref", folder.path());
    let worker = Worker::start();
    let failed = |reply: Reply| match reply {
        Reply::Failed(failed) => failed.reason,
        other => panic!("{other:?}"),
    };
    let graph = Part { at: 0, n_bytes: 1 << 40 };
    let outside = Request::Supports { device: 0, graph };
    let file = memory(4096).unwrap();
    assert!(failed(worker.ask(&outside, Some(&file))).contains("not in the file"));
    let nothing = Request::Supports { device: 0, graph: Part::default() };
    assert!(failed(worker.ask(&nothing, None)).contains("no file came"));
    assert!(matches!(worker.run(1), Some(Packet::Json(Reply::Failed(_)))));
    assert!(matches!(worker.ask(&Request::Open(open(&reference, &[])), None), Reply::Opened(_)));
    assert!(failed(worker.ask(&Request::Export, None)).contains("nothing is compiled"));
}
