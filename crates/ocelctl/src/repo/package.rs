//! Packages in a repository: canonical tar, content-defined chunks, and what `releases` signs about both.

use fastcdc::v2020::FastCDC;
use ocelli::model::{Package, Sha256};
use ocelli_protocol::VERSION;
use ocelli_protocol::repository::{
    Chunk, ChunkIndex, Digest, IndexFile, MAX_CHUNK_BYTES, Release, release_path,
};
use ocelli_tuf::schema::TargetFile;
use ocelli_tuf::{Json, TargetPath};
use std::path::Path;

use crate::files::Place;
use crate::{Failure, files};

use super::Repository;

/// Smallest, aimed-at and largest chunk, bytes. The same bytes always give the same chunks.
const CHUNK_SIZES: (usize, usize, usize) = (16 * 1024, 32 * 1024, MAX_CHUNK_BYTES);

/// Bytes that the broker must hold, by digest.
pub(crate) type Content = std::collections::BTreeMap<Digest, Vec<u8>>;

/// A package, ready to be signed.
pub(super) struct Packed {
    pub(super) path: TargetPath,
    pub(super) file: TargetFile,
    pub(super) title: String,
}

/// Digest as in topics.
pub(super) fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::of(bytes).0)
}

fn index(tar: &[u8]) -> ChunkIndex {
    let (least, aim, most) = CHUNK_SIZES;
    let cut = |chunk: fastcdc::v2020::Chunk| Chunk {
        // At most MAX_CHUNK_BYTES.
        length: chunk.length as u32,
        sha256: digest(&tar[chunk.offset..chunk.offset + chunk.length]),
    };
    let chunks = FastCDC::new(tar, least, aim, most).map(cut).collect();
    ChunkIndex { v: VERSION, length: tar.len() as u64, chunks }
}

impl Repository {
    /// Puts a package folder or tar into the repository, not yet signed.
    pub(super) fn pack(&self, source: &Path) -> Result<Packed, Failure> {
        if !source.exists() {
            let whole = std::path::absolute(source).unwrap_or_else(|_| source.to_owned());
            return Err(Failure(format!(
                "{}: no such file or folder; expected a package, see docs/models.md",
                whole.display()
            )));
        }
        let package = Package::open(source).map_err(|error| Failure(error.to_string()))?;
        let mut tar = Vec::new();
        package.write_tar(&mut tar).map_err(|error| Failure(error.to_string()))?;
        let id = package.spec().id();
        let index = serde_json::to_vec(&index(&tar)).expect("an index is plain JSON");
        if index.len() > MAX_CHUNK_BYTES {
            return Err(Failure(format!("{}: too large to be cut in chunks", source.display())));
        }
        let model = id.name.parse().map_err(|error| Failure(format!("{error}")))?;
        let sha256 = digest(&index);
        let file = IndexFile { length: index.len() as u64, sha256 };
        let release = Release { model, version: id.version.clone(), index: file };
        let custom = serde_json::to_vec(&serde_json::json!({ "ocelli": release }));
        let custom = Json::parse(&custom.expect("a release is plain JSON"));
        let mut target = TargetFile::of(&tar);
        target.custom = Some(custom.map_err(|error| Failure(error.to_string()))?);
        let path = release_path(&id.name, &id.version);
        files::write(&self.target_path(&path, &digest(&tar)), &tar, Place::Public)?;
        files::write(&self.dir.join("chunks").join(sha256.to_string()), &index, Place::Public)?;
        let path: TargetPath = path.parse().map_err(|error| Failure(format!("{error}")))?;
        Ok(Packed { path, file: target, title: format!("{} {}", id.name, id.version) })
    }

    /// Where a target lies: its digest before its file name.
    pub(super) fn target_path(&self, path: &str, sha256: &Digest) -> std::path::PathBuf {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.dir.join("targets").join(folder).join(format!("{sha256}.{name}"))
    }

    /// Adds what one target needs on the broker to `content`: the chunks and the index of a package, or the document itself.
    pub(crate) fn content(
        &self,
        path: &str,
        target: &TargetFile,
        content: &mut Content,
    ) -> Result<(), Failure> {
        let sha256: Digest = target
            .hashes
            .get("sha256")
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Failure(format!("{path}: the metadata has no sha256 for it")))?;
        let file = self.target_path(path, &sha256);
        let bytes = read_part(&file)?;
        let damaged = |path: &Path| Failure(format!("{}: not what its name says", path.display()));
        if digest(&bytes) != sha256 {
            return Err(damaged(&file));
        }
        let custom = target.custom.as_ref().and_then(|custom| custom.get("ocelli"));
        let release = custom.and_then(|custom| serde_json::to_value(custom).ok());
        let Some(release) = release.and_then(|value| serde_json::from_value::<Release>(value).ok())
        else {
            content.insert(sha256, bytes);
            return Ok(());
        };
        let index_file = self.dir.join("chunks").join(release.index.sha256.to_string());
        let index_bytes = read_part(&index_file)?;
        if digest(&index_bytes) != release.index.sha256 {
            return Err(damaged(&index_file));
        }
        let index = ChunkIndex::parse(&index_bytes).map_err(|error| Failure(error.to_string()))?;
        if index.length != bytes.len() as u64 {
            return Err(damaged(&index_file));
        }
        for (offset, chunk) in index.places() {
            let from = usize::try_from(offset).expect("a package is in memory");
            content.insert(chunk.sha256, bytes[from..from + chunk.length as usize].to_vec());
        }
        content.insert(release.index.sha256, index_bytes);
        Ok(())
    }
}

/// A file that the metadata names.
fn read_part(path: &Path) -> Result<Vec<u8>, Failure> {
    files::read(path).map_err(|failure| {
        Failure(format!(
            "{failure}; this copy of the repository is not whole, see docs/operations.md, Two copies"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_give_the_same_chunks_and_an_insertion_changes_few() {
        let mut state = 1_u64;
        let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(2_000_000)
        .collect();
        let before = index(&bytes);
        assert_eq!(before, index(&bytes));
        assert!(before.chunks.len() > 20);
        bytes.splice(1_000_000..1_000_000, *b"inserted");
        let known: Vec<_> = before.chunks.iter().map(|chunk| chunk.sha256).collect();
        let after = index(&bytes);
        let changed = after.chunks.iter().filter(|chunk| !known.contains(&chunk.sha256)).count();
        assert!((1..=3).contains(&changed), "{changed} of {}", after.chunks.len());
    }
}
