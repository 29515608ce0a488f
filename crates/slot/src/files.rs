//! The few things that provisioning does to files, each of them durable when it returns; in tests the power goes before any of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, chown, symlink};
use std::path::Path;

/// File operations that count: in tests the power is gone, or the disk full, when their budget is used up.
#[derive(Debug, Default)]
pub struct Files {
    /// User and group that new files belong to; `None`: whoever runs this.
    pub owner: Option<(u32, u32)>,
    budget: Option<(std::cell::Cell<usize>, End)>,
}

/// What a budget ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests cut the power"))]
    PowerCut,
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests pretend that the disk is full"))]
    DiskFull,
}

impl Files {
    /// Files that belong to this user and group.
    #[must_use]
    pub fn owned_by(owner: Option<(u32, u32)>) -> Self {
        Self { owner, budget: None }
    }

    #[cfg(test)]
    pub(crate) fn cut_after(operations: usize) -> Self {
        Self { owner: None, budget: Some((operations.into(), End::PowerCut)) }
    }

    #[cfg(test)]
    pub(crate) fn full_after(operations: usize) -> Self {
        Self { owner: None, budget: Some((operations.into(), End::DiskFull)) }
    }

    /// Before an operation that takes space.
    fn spend(&self) -> io::Result<()> {
        let Some((budget, end)) = &self.budget else { return Ok(()) };
        let left = budget.get().checked_sub(1);
        budget.set(left.ok_or_else(|| match end {
            End::PowerCut => io::Error::other("the power is gone"),
            End::DiskFull => io::ErrorKind::StorageFull.into(),
        })?);
        Ok(())
    }

    /// Before an operation that frees space.
    fn spend_freeing(&self) -> io::Result<()> {
        if matches!(self.budget, Some((_, End::DiskFull))) { Ok(()) } else { self.spend() }
    }

    /// Makes a folder that only the owner enters, empty also if it was there.
    pub(crate) fn fresh_folder(&self, path: &Path) -> io::Result<()> {
        self.spend()?;
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
        fs::create_dir(path)?;
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        self.own(path)
    }

    /// Writes a new file that only the owner reads.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.spend()?;
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        self.own(path)
    }

    fn own(&self, path: &Path) -> io::Result<()> {
        self.owner.map_or(Ok(()), |(user, group)| chown(path, Some(user), Some(group)))
    }

    /// Makes `link` name `target`, in one step: afterwards it names either the old one or the new one.
    pub(crate) fn point(&self, link: &Path, target: &str) -> io::Result<()> {
        let new = link.with_extension("new");
        self.spend()?;
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        symlink(target, &new)?;
        self.spend()?;
        fs::rename(&new, link)?;
        self.sync_folder(link.parent().unwrap_or(Path::new(".")))
    }

    pub(crate) fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    /// Removes a folder, if it is there.
    pub(crate) fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.spend_freeing()?;
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Overwrites a file in place with zeros, then deletes it.
    pub(crate) fn wipe(&self, path: &Path) -> io::Result<()> {
        self.spend_freeing()?;
        let length = usize::try_from(fs::metadata(path)?.len()).unwrap_or(0);
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.write_all(&vec![0; length])?;
        file.sync_all()?;
        self.spend_freeing()?;
        fs::remove_file(path)?;
        self.sync_folder(path.parent().unwrap_or(Path::new(".")))
    }
}
