//! The sequence high-water mark a second time, in a file of its own: it outlives the database.
//!
//! Two slots are written in turn, in place, each with a checksum: a torn write leaves the other slot, and a full
//! disk does not matter because the space is taken from the start.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ring::digest::{SHA256, digest};

use crate::store::HighWater;

const MAGIC: &[u8; 8] = b"ocelseq1";
/// Distance of the slots: no sector or flash page of the usual sizes holds both.
const SLOT_BYTES: u64 = 4096;
const RECORD_BYTES: usize = 8 + 4 * 8 + 8;

/// The open file.
#[derive(Debug)]
pub(super) struct SequenceFile {
    file: File,
    generation: u64,
    current: Option<HighWater>,
}

impl SequenceFile {
    /// Opens or makes the file.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut newest: Option<(u64, HighWater)> = None;
        for slot in 0..2 {
            let mut record = [0; RECORD_BYTES];
            let read = file.read_exact_at(&mut record, slot * SLOT_BYTES);
            if read.is_ok()
                && let Some((generation, mark)) = decode(&record)
                && newest.is_none_or(|(known, _)| generation > known)
            {
                newest = Some((generation, mark));
            }
        }
        if file.metadata()?.len() < 2 * SLOT_BYTES {
            // Real blocks, not a hole: later writes must not need space.
            file.write_all_at(&[0; SLOT_BYTES as usize - RECORD_BYTES], RECORD_BYTES as u64)?;
            file.write_all_at(
                &[0; SLOT_BYTES as usize - RECORD_BYTES],
                SLOT_BYTES + RECORD_BYTES as u64,
            )?;
            file.sync_all()?;
        }
        let (generation, current) =
            newest.map_or((0, None), |(generation, mark)| (generation, Some(mark)));
        Ok(Self { file, generation, current })
    }

    /// The newest intact record; `None` for a new or unreadable file.
    pub(super) fn current(&self) -> Option<HighWater> {
        self.current
    }

    /// Writes and syncs, unless it says so already.
    pub(super) fn write(&mut self, mark: HighWater) -> io::Result<()> {
        if self.current == Some(mark) {
            return Ok(());
        }
        let generation = self.generation + 1;
        let record = encode(generation, mark);
        self.file.write_all_at(&record, generation % 2 * SLOT_BYTES)?;
        self.file.sync_data()?;
        self.generation = generation;
        self.current = Some(mark);
        Ok(())
    }
}

fn encode(generation: u64, mark: HighWater) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    record[..8].copy_from_slice(MAGIC);
    let fields = [generation, mark.ceiling, mark.settled, u64::from(mark.ahead)];
    for (field, place) in fields.iter().zip(record[8..40].chunks_exact_mut(8)) {
        place.copy_from_slice(&field.to_be_bytes());
    }
    let check = digest(&SHA256, &record[..40]);
    record[40..].copy_from_slice(&check.as_ref()[..8]);
    record
}

fn decode(record: &[u8; RECORD_BYTES]) -> Option<(u64, HighWater)> {
    let check = digest(&SHA256, &record[..40]);
    if &record[..8] != MAGIC || record[40..] != check.as_ref()[..8] {
        return None;
    }
    let field = |index: usize| {
        let bytes = &record[8 + index * 8..16 + index * 8];
        u64::from_be_bytes(bytes.try_into().expect("a slice of 8 bytes"))
    };
    Some((field(0), HighWater { ceiling: field(1), settled: field(2), ahead: field(3) != 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(ceiling: u64) -> HighWater {
        HighWater { ceiling, settled: ceiling / 2, ahead: false }
    }

    #[test]
    fn the_last_write_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sequence");
        let mut file = SequenceFile::open(&path).unwrap();
        assert_eq!(file.current(), None);
        for ceiling in [10, 20, 30] {
            file.write(mark(ceiling)).unwrap();
        }
        assert_eq!(SequenceFile::open(&path).unwrap().current(), Some(mark(30)));
    }

    #[test]
    fn a_torn_write_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sequence");
        let mut file = SequenceFile::open(&path).unwrap();
        file.write(mark(10)).unwrap();
        file.write(mark(20)).unwrap();
        // The third record would go over the first; half of it arrives.
        let record = encode(3, mark(30));
        file.file.write_all_at(&record[..20], SLOT_BYTES).unwrap();
        assert_eq!(SequenceFile::open(&path).unwrap().current(), Some(mark(20)));
    }
}
