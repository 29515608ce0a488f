//! A model, ready to be loaded: what remains of a package once every check has passed.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;

use ocelli_protocol::manifest::{self, BoardBudget, Head, Input, Manifest, Task};
use ocelli_protocol::message::ModelId;

use super::archive::Files;
use super::check::Check;
use super::{GoldenSample, PackageError};

/// A model, ready to be loaded. Only [`super::Package`] makes one, after every check.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    id: ModelId,
    task: Task,
    license: String,
    input: Input,
    head: Head,
    labels: Arc<[String]>,
    onnx: Arc<[u8]>,
    golden: Vec<GoldenSample>,
    budget: manifest::Budget,
    delegates: Vec<DelegateFile>,
    sha256: Sha256,
}

/// A vendor's compiled form of the model, its digest checked.
#[derive(Debug, Clone)]
pub struct DelegateFile {
    /// What the manifest says of it.
    pub entry: manifest::DelegateBlob,
    /// The file.
    pub bytes: Arc<[u8]>,
}

impl ModelSpec {
    /// Name and version.
    #[must_use]
    pub fn id(&self) -> &ModelId {
        &self.id
    }

    /// What the model does.
    #[must_use]
    pub fn task(&self) -> Task {
        self.task
    }

    /// SPDX expression of the weights' licence.
    #[must_use]
    pub fn license(&self) -> &str {
        &self.license
    }

    /// How a picture becomes the input tensor.
    #[must_use]
    pub fn input(&self) -> &Input {
        &self.input
    }

    /// How output tensors become findings.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Label of each class, by index; at least one.
    #[must_use]
    pub fn labels(&self) -> &Arc<[String]> {
        &self.labels
    }

    /// The ONNX file, not looked into.
    #[must_use]
    pub fn onnx(&self) -> &[u8] {
        &self.onnx
    }

    /// The ONNX file, given away: [`ModelSpec::onnx`] is empty afterwards.
    #[must_use]
    pub fn take_onnx(&mut self) -> Arc<[u8]> {
        std::mem::take(&mut self.onnx)
    }

    /// Pictures with known answers.
    #[must_use]
    pub fn golden(&self) -> &[GoldenSample] {
        &self.golden
    }

    /// Compiled forms for NPUs.
    #[must_use]
    pub fn delegates(&self) -> &[DelegateFile] {
        &self.delegates
    }

    /// Limits on a board with these labels. A limit of the first label that the manifest knows stands in place of the
    /// general one; without it the general one holds.
    #[must_use]
    pub fn budget(&self, board_labels: &[String]) -> BoardBudget {
        let board = board_labels.iter().find_map(|label| self.budget.boards.get(label));
        let board = board.cloned().unwrap_or_default();
        BoardBudget {
            latency_p90_ms: board.latency_p90_ms.or(self.budget.latency_p90_ms),
            memory_mib: board.memory_mib.or(self.budget.memory_mib),
        }
    }

    /// Digest of the package's canonical tar; the same for a folder and for its tar.
    #[must_use]
    pub fn sha256(&self) -> Sha256 {
        self.sha256
    }

    pub(super) fn new(manifest: &Manifest, files: &Files) -> Result<Self, PackageError> {
        let check = Check { files };
        let id = check.identity(manifest)?;
        check.listed(manifest)?;
        check.input(&manifest.input)?;
        check.head(&manifest.head, manifest.task)?;
        check.budget(manifest.budget.as_ref())?;
        let labels = check.labels(&manifest.labels)?;
        let golden = check.golden(manifest, &labels)?;
        let delegates = check.delegates(&manifest.delegate)?;
        let mut hasher = Hasher(ring::digest::Context::new(&ring::digest::SHA256));
        files.write_tar(&mut hasher).expect("hashing memory cannot fail");
        Ok(Self {
            id,
            task: manifest.task,
            license: manifest.license.clone(),
            input: manifest.input.clone(),
            head: manifest.head.clone(),
            labels: labels.into(),
            onnx: check.file(&manifest.model).clone(),
            golden,
            budget: manifest.budget.clone().unwrap_or_default(),
            delegates,
            sha256: hasher.finish(),
        })
    }
}

/// A SHA-256 digest; shown as 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha256(pub [u8; 32]);

impl Sha256 {
    /// Digest of bytes in memory.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher(ring::digest::Context::new(&ring::digest::SHA256));
        hasher.0.update(bytes);
        hasher.finish()
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

struct Hasher(ring::digest::Context);

impl Hasher {
    fn finish(self) -> Sha256 {
        let mut digest = [0; 32];
        digest.copy_from_slice(self.0.finish().as_ref());
        Sha256(digest)
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
