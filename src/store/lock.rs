//! One agent a folder: numbers, slots and the audit log have one writer. The kernel gives the lock up with the process, however it ends.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::store::StoreError;

/// The folder is ours until this is dropped.
#[derive(Debug)]
#[must_use = "the lock ends with it"]
pub struct FolderLock {
    _folder: File,
}

impl FolderLock {
    /// Locks a folder, made when it is absent. `None` where there can be no lock, because there is no folder: whoever uses it says why.
    ///
    /// # Errors
    /// [`StoreError::InUse`]
    pub fn take(folder: &Path) -> Result<Option<Self>, StoreError> {
        let opened = fs::create_dir_all(folder).and_then(|()| File::open(folder));
        let Ok(opened) = opened else { return Ok(None) };
        match opened.try_lock() {
            Ok(()) => Ok(Some(Self { _folder: opened })),
            Err(TryLockError::WouldBlock) => {
                let holder = opened.metadata().ok().and_then(|folder| holder(folder.ino()));
                let holder = holder.map_or(String::new(), |id| format!(" (process {id})"));
                Err(StoreError::InUse { folder: folder.display().to_string(), holder })
            }
            Err(TryLockError::Error(error)) => {
                log::warn!("{} cannot be locked: {error}", folder.display());
                Ok(None)
            }
        }
    }
}

/// The process that holds the lock, as proc_locks(5) tells it.
fn holder(inode: u64) -> Option<String> {
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let end = format!(":{inode}");
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (kind, process, place) = (words.next()?, words.nth(2)?, words.next()?);
        (kind == "FLOCK" && place.ends_with(&end)).then(|| process.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_holder_who_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("store");
        let lock = FolderLock::take(&folder).unwrap().unwrap();
        let error = FolderLock::take(&folder).unwrap_err();
        let StoreError::InUse { holder, .. } = &error else { panic!("{error}") };
        let process = format!(" (process {})", std::process::id());
        assert!(holder.is_empty() || *holder == process, "{error}");
        drop(lock);
        assert!(FolderLock::take(&folder).unwrap().is_some());
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(FolderLock::take(&dir.path().join("file/store")).unwrap().is_none());
    }
}
