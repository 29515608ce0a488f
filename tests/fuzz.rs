//! Runs the fuzz targets over their corpora, and over mutations of them from a fixed seed. `OCELLI_FUZZ_SECONDS` lets each target
//! go on for that long.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "tests may panic, and so may what only they use"
)]

#[path = "../fuzz/src/targets.rs"]
mod targets;

use std::path::Path;
use std::time::Duration;

use ocelli::clock::{Clock, SystemClock};

/// Mutations of each file of a corpus in `make test`.
const MUTATIONS: usize = 400;

/// A small generator with a fixed seed (Knuth's MMIX constants).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}

fn mutate(bytes: &mut Vec<u8>, others: &[Vec<u8>], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let (from, to) = (random.below(bytes.len() + 1), random.below(bytes.len() + 1));
        let (from, to) = (from.min(to), from.max(to));
        match random.below(6) {
            0 if from < bytes.len() => bytes[from] ^= 1 << random.below(8),
            1 if from < bytes.len() => bytes[from] = b"\0\xff\"{}[]0-9,:./"[random.below(14)],
            2 => drop(bytes.drain(from..to.min(from + 64))),
            3 => {
                let part = bytes[from..to.min(from + 64)].to_vec();
                bytes.splice(to..to, part);
            }
            4 => {
                let other = &others[random.below(others.len())];
                let at = random.below(other.len());
                let part = other[at..other.len().min(at + 32)].to_vec();
                bytes.splice(from..from, part);
            }
            _ => bytes.truncate(to),
        }
    }
}

fn fuzz(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let corpus: Vec<Vec<u8>> = files.map(|path| std::fs::read(path).unwrap()).collect();
    assert!(corpus.len() >= 3, "{} holds {} files", folder.display(), corpus.len());
    corpus.iter().for_each(|bytes| target(bytes));
    let seconds = std::env::var("OCELLI_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = seconds.map(|seconds| SystemClock.now() + Duration::from_secs(seconds));
    let mut random = Random(0x0ce1);
    let mut rounds = 0;
    loop {
        for bytes in &corpus {
            let mut changed = bytes.clone();
            mutate(&mut changed, &corpus, &mut random);
            target(&changed);
        }
        rounds += 1;
        let over = end.map_or(rounds >= MUTATIONS, |end| SystemClock.now() >= end);
        if over {
            break;
        }
    }
    #[expect(clippy::print_stdout, reason = "the figure of the run, shown with --nocapture")]
    {
        println!("{name}: {} inputs", rounds * corpus.len());
    }
}

#[test]
fn metadata() {
    fuzz("metadata", targets::metadata);
}

#[test]
fn manifest() {
    fuzz("manifest", targets::manifest);
}

#[test]
fn documents() {
    fuzz("documents", targets::documents);
}

#[test]
fn tar() {
    fuzz("tar", targets::tar);
}

#[test]
fn messages() {
    fuzz("messages", targets::messages);
}
