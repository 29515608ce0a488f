//! The command line: words to calls, results to text and exit codes (0 done, 1 failed, 2 wrong use).

mod options;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lexopt::prelude::*;
use ocelli_slot::files::Files;
use ocelli_slot::image::{self, Contents, Keys};
use ocelli_slot::install::{self, Board};
use ocelli_slot::provision::{self, Outcome};
use ocelli_slot::state::{self, Slot};
use ocelli_slot::supervise::watch::Limits;
use ocelli_slot::supervise::{self, Host};
use ocelli_slot::{clock, disk, layout, sntp};
use ring::signature::{Ed25519KeyPair, KeyPair};

use self::options::Options;

const HELP: &str = include_str!("help.txt");

/// Why a command ends.
enum Failure {
    Usage(String),
    Failed(String),
}

fn failed(what: impl std::fmt::Display) -> Failure {
    Failure::Failed(what.to_string())
}

fn at<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> Failure + '_ {
    move |error| failed(format!("{}: {error}", path.display()))
}

type Done = Result<(), Failure>;

/// Runs the program; the exit code.
pub(crate) fn main(mut arguments: lexopt::Parser) -> u8 {
    let result = match arguments.next() {
        Ok(Some(Value(verb))) => command(&verb.to_string_lossy(), arguments),
        Ok(Some(Long("help") | Short('h'))) => print(HELP),
        Ok(Some(Long("version"))) => {
            print(concat!("ocelli-slot ", env!("CARGO_PKG_VERSION"), "\n"))
        }
        Ok(Some(other)) => Err(Failure::Usage(other.unexpected().to_string())),
        Ok(None) => Err(Failure::Usage("what to do?".to_owned())),
        Err(error) => Err(Failure::Usage(error.to_string())),
    };
    match result {
        Ok(()) => 0,
        Err(Failure::Failed(reason)) => {
            log(&reason);
            1
        }
        Err(Failure::Usage(reason)) => {
            log(&format!("{reason}; see ocelli-slot --help"));
            2
        }
    }
}

fn command(verb: &str, arguments: lexopt::Parser) -> Done {
    let options = Options::parse(arguments)?;
    match verb {
        "supervise" => supervise(&options),
        "status" => status(&options),
        "confirm" => confirm(&options),
        "install" => install(&options),
        "verify" => verify(&options),
        "damaged" => damaged(&options),
        "provision" => provision(&options),
        "clock" => set_clock(&options),
        "find-disk" => find_disk(&options),
        "grow" => grow(&options),
        "pack" => pack(&options),
        "state" => factory_state(&options),
        "keygen" => keygen(&options),
        "layout" => print(&layout::as_shell()),
        _ => Err(Failure::Usage(format!("unknown command {verb:?}"))),
    }
}

fn read(path: &str) -> Result<String, Failure> {
    let text = fs::read_to_string(path);
    text.map(|text| text.trim().to_owned()).map_err(|error| {
        failed(format!("{path}: {error}; is this a board that runs this firmware?"))
    })
}

#[expect(clippy::print_stdout, reason = "the command line's answer")]
fn print(text: &str) -> Done {
    print!("{text}");
    io::stdout().flush().map_err(failed)
}

#[expect(clippy::print_stderr, reason = "the command line's log")]
fn log(line: &str) {
    eprintln!("ocelli-slot: {line}");
}

fn status(options: &Options) -> Done {
    let disk = options.disk(false)?;
    let state = state::load(&disk).map_err(failed)?;
    let running = options.running().ok();
    let slots = [Slot::A, Slot::B].map(|slot| {
        let found = image::read_manifest(&disk, layout::slot_offset(slot), &Keys::default());
        (slot, state.standing(slot), found.map(|found| found.version))
    });
    if options.json {
        let slots: serde_json::Map<_, _> = slots
            .iter()
            .map(|(slot, standing, version)| {
                let version = version.as_ref().ok();
                (slot.to_string(), serde_json::json!({"standing": standing, "version": version}))
            })
            .collect();
        let all = serde_json::json!({"v": 1, "running": running, "next": state.active, "tries": state.tries, "slots": slots});
        return print(&format!("{all}\n"));
    }
    let mut text = String::new();
    for (slot, standing, version) in &slots {
        let version = version.as_ref().map_or_else(|error| format!("({error})"), Clone::clone);
        let word = format!("{standing:?}").to_lowercase();
        let here = if running == Some(*slot) { ", running" } else { "" };
        let next = if state.active == *slot { ", boots next" } else { "" };
        let tries = if next.is_empty() || state.tries == 0 {
            String::new()
        } else {
            format!(", {} tries left", state.tries)
        };
        text.push_str(&format!("slot {slot}: {version}, {word}{here}{next}{tries}\n"));
    }
    print(&text)
}

fn confirm(options: &Options) -> Done {
    let (disk, running) = (options.disk(true)?, options.running()?);
    let changed = install::confirm(&disk, running).map_err(failed)?;
    print(&format!("slot {running} is {}confirmed\n", if changed { "" } else { "already " }))
}

fn install(options: &Options) -> Done {
    let path = PathBuf::from(options.only("the firmware file to install")?);
    let name = match options.value("board") {
        Some(name) => name.to_owned(),
        None => read("/etc/ocelli-firmware/board")?,
    };
    let board = Board { name, running: options.running()?, keys: options.keys()? };
    let image = File::open(&path).map_err(at(&path))?;
    let disk = options.disk(true)?;
    let (slot, manifest) = install::install(&image, &disk, &board).map_err(at(&path))?;
    let version = manifest.version;
    print(&format!(
        "version {version} is in slot {slot}, verified; `reboot` tries it, {} boots to be confirmed in\n",
        state::TRIES
    ))
}

fn verify(options: &Options) -> Done {
    let path = PathBuf::from(options.only("a firmware file, or a slot's partition")?);
    let disk = File::open(&path).map_err(at(&path))?;
    let manifest = image::verify(&disk, 0, &options.keys()?).map_err(at(&path))?;
    print(&format!(
        "{} {} for {}, built {}: whole\n",
        path.display(),
        manifest.version,
        manifest.board,
        manifest.built
    ))
}

/// For the initramfs: the slot that it found damaged is marked, the other one is next.
fn damaged(options: &Options) -> Done {
    let (disk, running) = (options.disk(true)?, options.running()?);
    let state = state::load(&disk).map_err(failed)?.damaged(running);
    state::save(&disk, &state).map_err(failed)?;
    print(&format!("slot {running} is marked bad, slot {} is next\n", state.active))
}

fn provision(options: &Options) -> Done {
    let (fat, data) = (PathBuf::from(options.need("fat")?), PathBuf::from(options.need("data")?));
    let files = Files::owned_by(options.user()?);
    let program = options.value("check").unwrap_or("/usr/bin/ocelli").to_owned();
    let check = move |config: &Path| {
        let output = Command::new(&program).arg("check").arg(config).output();
        let output = output.map_err(|error| format!("{program}: {error}"))?;
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    };
    let outcome = provision::provision(&files, &fat, &data, &check).map_err(failed)?;
    provision::tell(&Files::default(), &fat, &outcome).map_err(failed)?;
    match outcome {
        Outcome::Nothing => Ok(()),
        Outcome::Taken(names) => print(&format!("provisioning: taken over {}\n", names.join(", "))),
        Outcome::Refused(reason) => Err(failed(format!(
            "provisioning refused, the configuration before it stays: {}",
            reason.trim()
        ))),
    }
}

/// Sets the clock to the floor, and with servers keeps it near theirs for ever.
fn set_clock(options: &Options) -> Done {
    let floor = Duration::from_secs(options.number("floor", 0)?);
    if sntp::raise_to_floor(floor).map_err(failed)? {
        log("the clock stood before the build of this firmware and is set to it");
    }
    let mark = options.path("run", "/run").join("systemd/timesync/synchronized");
    let mut pause = Duration::from_secs(4);
    let mut told = String::new();
    while !options.plain.is_empty() {
        let mut failures = String::new();
        for server in &options.plain {
            match sntp::ask(server).and_then(|time| step(time, floor)) {
                Ok(()) => {
                    // The agent looks for the mark that systemd-timesyncd leaves.
                    let made = mark
                        .parent()
                        .map_or(Ok(()), fs::create_dir_all)
                        .and_then(|()| fs::write(&mark, ""));
                    made.map_err(at(&mark))?;
                    pause = Duration::from_secs(1024);
                    break;
                }
                Err(error) => failures += &format!(" {server}: {error};"),
            }
        }
        // A board without network asks for ever: the same answer is told once.
        if failures != told && !failures.is_empty() {
            log(&format!("no time from any server, asking again:{failures}"));
        }
        told = failures;
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(1024));
    }
    Ok(())
}

fn step(time: Duration, floor: Duration) -> io::Result<()> {
    if time < floor {
        return Err(io::Error::other("its time is before the build of this firmware"));
    }
    if time.abs_diff(clock::wall()) > sntp::NEAR {
        clock::set_wall(time)?;
    }
    Ok(())
}

fn find_disk(options: &Options) -> Done {
    let text = options.only("the signature of a partition table, hexadecimal")?;
    let wanted = u32::from_str_radix(text, 16)
        .map_err(|_| Failure::Usage(format!("{text:?} is no hexadecimal number")))?;
    let mut names: Vec<_> = fs::read_dir("/sys/block")
        .map_err(failed)?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    names.sort();
    for name in names {
        let path = Path::new("/dev").join(&name);
        let found = File::open(&path).and_then(|disk| disk::signature(&disk));
        if matches!(found, Ok(Some(signature)) if signature == wanted) {
            return print(&format!("{}\n", path.display()));
        }
    }
    Err(failed(format!("no disk with the signature {text}")))
}

fn grow(options: &Options) -> Done {
    let mut disk = options.disk(true)?;
    let size = io::Seek::seek(&mut disk, io::SeekFrom::End(0)).map_err(failed)?;
    let grown = disk::grow(&disk, size).map_err(failed)?;
    print(if grown { "grown\n" } else { "" })
}

fn pack(options: &Options) -> Done {
    let mut parts = Vec::new();
    for (name, ..) in layout::PARTS {
        if let Some(path) = options.value(name) {
            parts.push((name.to_owned(), fs::read(path).map_err(at(Path::new(path)))?));
        }
    }
    let contents = Contents {
        board: options.need("board")?.to_owned(),
        version: options.need("version-name")?.to_owned(),
        built: options.number("built", 0)?,
        parts,
    };
    let key = options.value("key").map(|path| signing_key(Path::new(path))).transpose()?;
    let out = PathBuf::from(options.need("out")?);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&out)
        .map_err(at(&out))?;
    image::pack(&contents, key.as_ref(), &file).map_err(at(&out))?;
    Ok(())
}

fn signing_key(path: &Path) -> Result<Ed25519KeyPair, Failure> {
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(4096).read_to_end(&mut bytes)).map_err(at(path))?;
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(&bytes).map_err(at(path))
}

/// For the image: the two copies of the factory's state, into a file of a disk.
fn factory_state(options: &Options) -> Done {
    let disk = options.disk(true)?;
    for _ in layout::STATE {
        state::save(&disk, &state::BootState::FACTORY).map_err(failed)?;
    }
    Ok(())
}

fn keygen(options: &Options) -> Done {
    use std::os::unix::fs::OpenOptionsExt;
    let path = PathBuf::from(options.only("the file for the new key")?);
    let random = ring::rand::SystemRandom::new();
    let document = Ed25519KeyPair::generate_pkcs8(&random).map_err(failed)?;
    let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).map_err(failed)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(at(&path))?;
    file.write_all(document.as_ref()).map_err(at(&path))?;
    let public = PathBuf::from(format!("{}.pub", path.display()));
    fs::write(&public, image::hex(pair.public_key().as_ref()) + "\n").map_err(at(&public))?;
    print(&format!(
        "{}: keep it secret; {}: put it on boards as slot.pub\n",
        path.display(),
        public.display()
    ))
}

fn supervise(options: &Options) -> Done {
    if options.rest.is_empty() {
        return Err(Failure::Usage("--command PROGRAM ARGUMENTS… is missing".to_owned()));
    }
    let seconds = |name: &str, default: Duration| {
        options.number(name, default.as_secs()).map(Duration::from_secs)
    };
    let usual = Limits::default();
    let settings = supervise::Settings {
        command: options.rest.clone(),
        user: options.user()?,
        watchdog: options.value("watchdog").map(PathBuf::from),
        run: options.path("run", "/run/ocelli"),
        limits: Limits {
            silence: seconds("silence", usual.silence)?,
            proof: seconds("confirm-after", usual.proof)?,
            patience: seconds("patience", usual.patience)?,
            ..usual
        },
    };
    supervise::run(&settings, &mut BoardHost { options }).map_err(at(&settings.run))
}

struct BoardHost<'a> {
    options: &'a Options,
}

impl Host for BoardHost<'_> {
    fn confirm(&mut self) -> Result<(), String> {
        // Outside a board, under another supervisor, there is nothing to confirm.
        if self.options.value("disk").is_none() && !Path::new("/run/ocelli/disk").exists() {
            return Ok(());
        }
        let changed = self.options.disk(true).and_then(|disk| {
            let running = self.options.running()?;
            Ok((running, install::confirm(&disk, running).map_err(failed)?))
        });
        match changed {
            Ok((running, true)) => {
                self.log(&format!("slot {running} has proved itself: confirmed"))
            }
            Ok((running, false)) => {
                self.log(&format!("slot {running} serves; it was confirmed before"))
            }
            Err(Failure::Usage(reason) | Failure::Failed(reason)) => return Err(reason),
        }
        Ok(())
    }

    fn reboot(&mut self, reason: &str) {
        self.log(&format!("the board starts anew: {reason}"));
        if let Err(error) = Command::new("reboot").status() {
            self.log(&format!("reboot: {error}"));
        }
    }

    fn log(&mut self, line: &str) {
        log(line);
    }
}
