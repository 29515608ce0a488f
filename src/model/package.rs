//! Opens a model package and packs it: the one way from files to a [`ModelSpec`].

use std::fs;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use ocelli_protocol::manifest::{MAX_PACKAGE_BYTES, Manifest};

use super::archive::Files;
use super::{ModelSpec, PackageError, manifest};
use crate::file::open_regular;

/// A model package that passed every check, with its files in memory.
#[derive(Debug, Clone)]
pub struct Package {
    manifest: Manifest,
    files: Files,
    spec: ModelSpec,
}

impl Package {
    /// Opens a folder or a ustar tar.
    ///
    /// ```no_run
    /// let package = ocelli::model::Package::open("models/nanodet-g-coco".as_ref())?;
    /// println!("{} {}", package.spec().id().name, package.spec().sha256());
    /// # Ok::<(), ocelli::model::PackageError>(())
    /// ```
    ///
    /// # Errors
    /// [`PackageError`] names the file, the key and what was expected.
    pub fn open(path: &Path) -> Result<Self, PackageError> {
        let unreadable = |error| PackageError::Read { file: path.display().to_string(), error };
        let metadata = fs::metadata(path).map_err(unreadable)?;
        if metadata.is_dir() {
            return Self::check(Files::read_folder(path)?);
        }
        if metadata.len() > MAX_PACKAGE_BYTES {
            let file = path.display().to_string();
            return Err(PackageError::TooLarge { file, limit: MAX_PACKAGE_BYTES });
        }
        let file = open_regular(path).map_err(unreadable)?;
        Self::read_tar(BufReader::new(file), &path.display().to_string())
    }

    /// Reads a ustar tar from memory or a stream; `source` names it in messages.
    ///
    /// # Errors
    /// As [`Package::open`].
    pub fn read_tar(reader: impl Read, source: &str) -> Result<Self, PackageError> {
        Self::check(Files::read_tar(reader, source.to_owned())?)
    }

    /// What the model is and needs.
    #[must_use]
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The same, without the package around it.
    #[must_use]
    pub fn into_spec(self) -> ModelSpec {
        self.spec
    }

    /// The manifest as written.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Name (relative, portable, `/` between levels) and bytes of every file, by name.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter()
    }

    /// File name of the package's tar: `<name>-<version>.tar`.
    #[must_use]
    pub fn tar_name(&self) -> String {
        format!("{}-{}.tar", self.manifest.name, self.manifest.version)
    }

    /// Writes the canonical tar, the same bytes for the same files: `manifest.toml` first, the rest by name, mode
    /// 0644, time 0, no owners. [`ModelSpec::sha256`] is its digest.
    ///
    /// # Errors
    /// Whatever `out` reports.
    pub fn write_tar(&self, out: &mut dyn Write) -> io::Result<()> {
        self.files.write_tar(out)
    }

    fn check(files: Files) -> Result<Self, PackageError> {
        let manifest = manifest::parse(&files)?;
        let spec = ModelSpec::new(&manifest, &files)?;
        Ok(Self { manifest, files, spec })
    }
}

#[cfg(test)]
mod tests;
