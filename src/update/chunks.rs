//! The chunks of one package: which are held, which are asked for, where each belongs. A bounded window of
//! subscriptions; every chunk is verified before it touches the disk.

use std::collections::BTreeMap;
use std::io;

use ocelli_protocol::model_state::Progress;
use ocelli_protocol::repository::{ChunkIndex, Digest};

use crate::model::Sha256;
use crate::model::disk::Disk;
use crate::model::slots::{Candidate, Slots};

/// Chunks asked for at once: at most 1 MiB on its way, and fewer messages than the agent's queues hold.
const WINDOW: usize = 8;
/// Bytes written between two syncs: what a power cut costs at most.
const SYNC_EVERY: u64 = 1024 * 1024;

/// A package on its way.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) candidate: Candidate,
    pub(super) index_bytes: Vec<u8>,
    length: u64,
    held: u64,
    unsynced: u64,
    /// Offsets and length of each chunk that is not held.
    missing: BTreeMap<Digest, (u32, Vec<u64>)>,
    /// Asked for, not yet here.
    asked: Vec<Digest>,
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is in its place.
    Stored,
    /// Nobody asked for it.
    Unasked,
    /// It is not what its name says.
    Damaged,
}

impl Transfer {
    /// Looks what is there already: from before a power cut, and in the slots.
    pub(super) fn begin<D: Disk>(
        slots: &mut Slots<D>,
        candidate: Candidate,
        index: &ChunkIndex,
        index_bytes: Vec<u8>,
    ) -> io::Result<Self> {
        let present = slots.prepare_incoming(index)?;
        let mut missing: BTreeMap<Digest, (u32, Vec<u64>)> = BTreeMap::new();
        for ((offset, chunk), present) in index.places().zip(present) {
            if !present {
                let places = missing.entry(chunk.sha256).or_insert((chunk.length, Vec::new()));
                places.1.push(offset);
            }
        }
        let open: u64 =
            missing.values().map(|(length, at)| u64::from(*length) * at.len() as u64).sum();
        let held = index.length - open;
        let (length, asked) = (index.length, Vec::new());
        Ok(Self { candidate, index_bytes, length, held, unsynced: 0, missing, asked })
    }

    /// Bytes held of bytes needed.
    pub(super) fn progress(&self) -> Progress {
        Progress { bytes: self.held, of: self.length }
    }

    /// Whether all chunks are in their places.
    pub(super) fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// Chunks to ask for now.
    pub(super) fn next(&mut self) -> Vec<Digest> {
        let room = WINDOW.saturating_sub(self.asked.len());
        let open = self.missing.keys().filter(|digest| !self.asked.contains(digest));
        let next: Vec<Digest> = open.take(room).copied().collect();
        self.asked.extend(&next);
        next
    }

    /// Takes a chunk.
    pub(super) fn take<D: Disk>(
        &mut self,
        slots: &mut Slots<D>,
        digest: &Digest,
        bytes: &[u8],
    ) -> io::Result<Taken> {
        let Some(at) = self.asked.iter().position(|asked| asked == digest) else {
            return Ok(Taken::Unasked);
        };
        let Some((length, offsets)) = self.missing.get(digest) else { return Ok(Taken::Unasked) };
        if bytes.len() != *length as usize || Sha256::of(bytes).0 != digest.0 {
            return Ok(Taken::Damaged);
        }
        for offset in offsets {
            slots.write_chunk(*offset, bytes)?;
            self.held += u64::from(*length);
            self.unsynced += u64::from(*length);
        }
        self.missing.remove(digest);
        self.asked.swap_remove(at);
        if self.unsynced >= SYNC_EVERY {
            slots.sync_incoming()?;
            self.unsynced = 0;
        }
        Ok(Taken::Stored)
    }
}
