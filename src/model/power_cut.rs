//! A disk in memory whose power goes at the n-th operation: what was not synced is lost, kept or torn. Or that is full from then on.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use crate::model::disk::Disk;

/// What becomes of writes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Names and content are as of the last sync.
    All,
    /// Everything had reached the medium.
    Nothing,
    /// Names reached the medium, content as of the last sync.
    Content,
    /// Names reached the medium, half of each changed content did.
    HalfContent,
    /// Content reached the medium, names as of the last sync.
    Names,
}

pub(crate) const LOSSES: [Loss; 5] =
    [Loss::All, Loss::Nothing, Loss::Content, Loss::HalfContent, Loss::Names];

#[derive(Debug, Clone, Default)]
struct File {
    live: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Debug, Clone, Default)]
struct Medium {
    files: Vec<File>,
    live: BTreeMap<String, usize>,
    synced: BTreeMap<String, usize>,
    operations: usize,
    cut_at: Option<usize>,
    full_at: Option<usize>,
    off: bool,
}

/// A handle to the medium; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct PowerCut(Arc<Mutex<Medium>>);

impl PowerCut {
    /// A copy of its own, with full power.
    pub(crate) fn copy(&self) -> Self {
        let mut medium = self.0.lock().unwrap().clone();
        (medium.operations, medium.cut_at) = (0, None);
        Self(Arc::new(Mutex::new(medium)))
    }

    /// Cuts the power in the n-th operation from now, counted from 0.
    pub(crate) fn cut_at(&self, operation: usize) {
        let mut medium = self.0.lock().unwrap();
        (medium.operations, medium.cut_at) = (0, Some(operation));
    }

    /// From the n-th operation from now on there is no space for anything; `None`: there is again.
    pub(crate) fn full_at(&self, operation: Option<usize>) {
        let mut medium = self.0.lock().unwrap();
        (medium.operations, medium.full_at) = (0, operation);
    }

    pub(crate) fn is_off(&self) -> bool {
        self.0.lock().unwrap().off
    }

    /// Operations since the beginning, or since [`Self::cut_at`].
    pub(crate) fn operations(&self) -> usize {
        self.0.lock().unwrap().operations
    }

    /// Power again.
    pub(crate) fn restart(&self, loss: Loss) {
        let mut medium = self.0.lock().unwrap();
        for file in &mut medium.files {
            match loss {
                Loss::Nothing | Loss::Names => {}
                Loss::All | Loss::Content => file.live = file.synced.clone(),
                Loss::HalfContent => {
                    let half = file.live.len() / 2;
                    let rest = file.synced.get(half..).unwrap_or_default().to_vec();
                    if file.live != file.synced {
                        file.live.truncate(half);
                        file.live.extend(rest);
                    }
                }
            }
            file.synced = file.live.clone();
        }
        if matches!(loss, Loss::All | Loss::Names) {
            medium.live = medium.synced.clone();
        }
        medium.synced = medium.live.clone();
        (medium.off, medium.cut_at, medium.operations) = (false, None, 0);
    }

    fn operate(
        &self,
        torn: impl FnOnce(&mut Medium),
        whole: impl FnOnce(&mut Medium) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut medium = self.0.lock().unwrap();
        if medium.off {
            return Err(off());
        }
        if medium.cut_at == Some(medium.operations) {
            medium.off = true;
            torn(&mut medium);
            return Err(off());
        }
        medium.operations += 1;
        whole(&mut medium)
    }

    /// An operation that takes space: on a full disk it is done in part, as a write that is cut short.
    fn fill(
        &self,
        torn: impl FnOnce(&mut Medium),
        whole: impl FnOnce(&mut Medium) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut medium = self.0.lock().unwrap();
        if !medium.off && medium.full_at.is_some_and(|at| medium.operations >= at) {
            torn(&mut medium);
            return Err(io::ErrorKind::StorageFull.into());
        }
        drop(medium);
        self.operate(torn, whole)
    }
}

fn off() -> io::Error {
    io::Error::other("the power is off")
}

impl Medium {
    fn content(&mut self, file: &str) -> &mut Vec<u8> {
        let next = self.files.len();
        let at = *self.live.entry(file.to_owned()).or_insert(next);
        if at == next {
            self.files.push(File::default());
        }
        &mut self.files[at].live
    }

    fn write_at(&mut self, file: &str, offset: u64, bytes: &[u8]) {
        let content = self.content(file);
        let (from, to) = (offset as usize, offset as usize + bytes.len());
        content.resize(content.len().max(to), 0);
        content[from..to].copy_from_slice(bytes);
    }

    fn find(&self, file: &str) -> io::Result<&Vec<u8>> {
        let at = self.live.get(file).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(&self.files[*at].live)
    }
}

impl Disk for PowerCut {
    fn read(&self, file: &str, limit: u64) -> io::Result<Vec<u8>> {
        let medium = self.0.lock().unwrap();
        if medium.off {
            return Err(off());
        }
        let bytes = medium.find(file)?.clone();
        if bytes.len() as u64 > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
    }

    fn read_at(&self, file: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let bytes = self.read(file, u64::MAX)?;
        let range = offset as usize..offset as usize + length;
        let found = bytes.get(range).map(<[u8]>::to_vec);
        found.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn write(&mut self, file: &str, bytes: &[u8]) -> io::Result<()> {
        let replace = |medium: &mut Medium, bytes: &[u8]| *medium.content(file) = bytes.to_vec();
        self.fill(
            |medium| replace(medium, &bytes[..bytes.len() / 2]),
            |medium| {
                replace(medium, bytes);
                Ok(())
            },
        )
    }

    fn write_at(&mut self, file: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.fill(
            |medium| medium.write_at(file, offset, &bytes[..bytes.len() / 2]),
            |medium| {
                medium.write_at(file, offset, bytes);
                Ok(())
            },
        )
    }

    fn set_length(&mut self, file: &str, length: u64) -> io::Result<()> {
        let set = |medium: &mut Medium| {
            medium.content(file).resize(length as usize, 0);
            Ok(())
        };
        self.fill(|_| {}, set)
    }

    fn sync(&mut self, file: &str) -> io::Result<()> {
        let sync = |medium: &mut Medium| {
            medium.find(file)?;
            let at = medium.live[file];
            medium.files[at].synced = medium.files[at].live.clone();
            Ok(())
        };
        self.operate(|_| {}, sync)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let rename = |medium: &mut Medium| {
            let at = medium.live.remove(from);
            let at = at.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            medium.live.insert(to.to_owned(), at);
            Ok(())
        };
        self.operate(|_| {}, rename)
    }

    fn remove(&mut self, file: &str) -> io::Result<()> {
        let remove = |medium: &mut Medium| {
            medium.live.remove(file);
            Ok(())
        };
        self.operate(|_| {}, remove)
    }

    fn sync_folder(&mut self, folder: &str) -> io::Result<()> {
        let within = |file: &str| file.rsplit_once('/').map_or("", |(above, _)| above) == folder;
        let sync = |medium: &mut Medium| {
            medium.synced.retain(|file, _| !within(file));
            let names: Vec<_> = medium
                .live
                .iter()
                .filter(|(file, _)| within(file))
                .map(|(n, i)| (n.clone(), *i))
                .collect();
            medium.synced.extend(names);
            Ok(())
        };
        self.operate(|_| {}, sync)
    }
}
