//! The options of the commands, and what they stand for when they are not given: what the initramfs left in `/run/ocelli`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::PathBuf;

use lexopt::prelude::*;
use ocelli_slot::image::Keys;
use ocelli_slot::state::Slot;

use super::{Failure, at, failed, read};

/// All options of all commands: they share most of them.
#[derive(Default)]
pub(super) struct Options {
    values: Vec<(String, String)>,
    pub(super) plain: Vec<String>,
    pub(super) json: bool,
    pub(super) rest: Vec<String>,
}

const NAMES: [&str; 21] = [
    "disk",
    "running",
    "board",
    "key",
    "user",
    "watchdog",
    "run",
    "confirm-after",
    "silence",
    "patience",
    "fat",
    "data",
    "check",
    "floor",
    "version-name",
    "built",
    "kernel",
    "initrd",
    "dtb",
    "root",
    "out",
];

impl Options {
    pub(super) fn parse(mut arguments: lexopt::Parser) -> Result<Self, Failure> {
        let usage = |error: lexopt::Error| Failure::Usage(error.to_string());
        let mut options = Self::default();
        while let Some(argument) = arguments.next().map_err(usage)? {
            match argument {
                Long("json") => options.json = true,
                Long("command") => {
                    let rest = arguments.raw_args().map_err(usage)?;
                    options.rest = rest.map(|word| word.to_string_lossy().into_owned()).collect();
                }
                Long(name) => {
                    let known = NAMES.iter().find(|known| **known == name);
                    let name =
                        known.ok_or_else(|| Failure::Usage(format!("unknown option --{name}")))?;
                    let value = arguments.value().map_err(usage)?.to_string_lossy().into_owned();
                    options.values.push(((*name).to_owned(), value));
                }
                Value(word) => options.plain.push(word.to_string_lossy().into_owned()),
                other => return Err(Failure::Usage(other.unexpected().to_string())),
            }
        }
        Ok(options)
    }

    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn need(&self, name: &str) -> Result<&str, Failure> {
        self.value(name).ok_or_else(|| Failure::Usage(format!("--{name} is missing")))
    }

    pub(super) fn path(&self, name: &str, default: &str) -> PathBuf {
        PathBuf::from(self.value(name).unwrap_or(default))
    }

    pub(super) fn number(&self, name: &str, default: u64) -> Result<u64, Failure> {
        let number = |text: &str| {
            text.parse().map_err(|_| Failure::Usage(format!("--{name}: {text:?} is no number")))
        };
        self.value(name).map_or(Ok(default), number)
    }

    pub(super) fn only(&self, what: &str) -> Result<&str, Failure> {
        match &self.plain[..] {
            [one] => Ok(one),
            _ => Err(Failure::Usage(format!("expected {what}"))),
        }
    }

    pub(super) fn user(&self) -> Result<Option<(u32, u32)>, Failure> {
        let parse = |text: &str| {
            text.split_once(':')
                .and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)))
        };
        self.value("user")
            .map(|text| {
                parse(text).ok_or_else(|| {
                    Failure::Usage(format!("--user: expected UID:GID, found {text:?}"))
                })
            })
            .transpose()
    }

    /// The disk that the board booted from; the initramfs leaves its name.
    pub(super) fn disk(&self, write: bool) -> Result<File, Failure> {
        let path = match self.value("disk") {
            Some(path) => PathBuf::from(path),
            None => PathBuf::from(read("/run/ocelli/disk")?),
        };
        OpenOptions::new().read(true).write(write).open(&path).map_err(at(&path))
    }

    pub(super) fn running(&self) -> Result<Slot, Failure> {
        let letter = match self.value("running") {
            Some(letter) => letter.to_owned(),
            None => read("/run/ocelli/slot")?,
        };
        Slot::from_letter(&letter)
            .ok_or_else(|| failed(format!("{letter:?} is no slot; slots are a and b")))
    }

    pub(super) fn keys(&self) -> Result<Keys, Failure> {
        let mut keys = Keys::default();
        let paths = match self.value("key") {
            Some(path) => vec![PathBuf::from(path)],
            None => {
                ["/etc/ocelli-firmware/slot.pub", "/data/config/slot.pub"].map(PathBuf::from).into()
            }
        };
        for path in paths {
            match fs::read_to_string(&path) {
                Ok(text) => keys = keys.and(Keys::parse(&text).map_err(at(&path))?),
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && self.value("key").is_none() => {}
                Err(error) => return Err(at(&path)(error)),
            }
        }
        Ok(keys)
    }
}
