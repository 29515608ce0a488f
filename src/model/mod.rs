//! Model packages: a folder or tar that holds an ONNX file, how to feed it, how to read it, and known answers.
//!
//! Stands between disk or network and everything that runs a model. [`Package::open`] checks all that can be checked
//! without running the model: container, names, digests, values, labels, golden expectations. Never runs a model,
//! never decodes a picture.

mod archive;
mod check;
pub mod disk;
pub mod golden;
mod manifest;
pub mod package;
#[cfg(test)]
pub(crate) mod power_cut;
pub mod slots;
mod spec;

use std::io;

pub use golden::GoldenSample;
pub(crate) use golden::iou;
pub use package::Package;
pub use spec::{DelegateFile, ModelSpec, Sha256};

/// Most files in a package.
pub const MAX_FILES: usize = 256;
/// Largest label file accepted, bytes.
pub const MAX_LABELS_BYTES: u64 = 1024 * 1024;

/// Why a package is refused. `file` is a path as the caller gave it, or `<tar>:<name in the tar>`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackageError {
    /// The system could not read it; trying again may help.
    #[error("cannot read {file}: {error}")]
    Read {
        /// What was read.
        file: String,
        /// What the system said.
        error: io::Error,
    },
    /// Larger than ever accepted.
    #[error("{file} is larger than the {limit} bytes accepted")]
    TooLarge {
        /// The file, or the package when its sum is too large.
        file: String,
        /// Largest size, bytes.
        limit: u64,
    },
    /// More files than ever accepted.
    #[error("{package} holds more than {limit} files")]
    TooManyFiles {
        /// The package.
        package: String,
        /// Largest number.
        limit: usize,
    },
    /// A file or tar entry that has no place in a package.
    #[error("{file}: {fault}")]
    Entry {
        /// The file or entry.
        file: String,
        /// What is wrong with it.
        fault: EntryFault,
    },
    /// A file that the manifest names, or the manifest itself, is not there.
    #[error("{file} is missing; {named_by}")]
    MissingFile {
        /// The file.
        file: String,
        /// Who says that it should be there.
        named_by: String,
    },
    /// The manifest, a label file or a golden expectation is not what its format says.
    #[error("{file}, line {line}: {detail}")]
    Syntax {
        /// The file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What the parser said.
        detail: String,
    },
    /// A key that the format does not know.
    #[error("{file}, line {line}: unknown key `{key}`; {hint}")]
    UnknownKey {
        /// The manifest.
        file: String,
        /// Line of the key or of its section, from 1.
        line: usize,
        /// The key.
        key: String,
        /// The nearest known key, or all known ones.
        hint: String,
    },
    /// A key that must be there.
    #[error("{file}: key `{key}` is missing")]
    MissingKey {
        /// The manifest.
        file: String,
        /// The key, with its section.
        key: String,
    },
    /// A value that does not fit its key, another value, or another file.
    #[error("{file}: {key} = {value}: expected {expected}")]
    Value {
        /// The file that holds the value.
        file: String,
        /// The key, with its section.
        key: String,
        /// The value as found.
        value: String,
        /// What was expected.
        expected: String,
    },
}

/// What is wrong with a file or tar entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryFault {
    /// Absolute, climbing, hidden, too long, too deep, or with letters outside the portable set.
    #[error(
        "names in a package are relative, at most 100 bytes and 4 levels, of letters, digits and `._+-`, \
         no part beginning with a dot"
    )]
    UnsafePath,
    /// A symbolic or hard link.
    #[error("links are refused; put the file itself into the package")]
    Link,
    /// A device, pipe, socket or other thing that is not a regular file.
    #[error("only regular files are accepted")]
    NotRegular,
    /// A GNU or PAX extension.
    #[error("tar extensions (GNU, PAX, sparse) are refused; write it with --format=ustar")]
    Extension,
    /// A name that came before.
    #[error("the name occurs twice")]
    Duplicate,
    /// Not named by the manifest.
    #[error("the manifest does not name this file; remove it or name it")]
    Unlisted,
    /// The tar ends inside a file or is no tar at all.
    #[error("damaged tar: {0}")]
    Damaged(String),
}
