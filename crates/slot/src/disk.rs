//! The disk as bytes at offsets: block devices and image files, and in tests a disk whose power goes at any write.
//!
//! Also the one change that the partition table ever sees: the last partition grows to the end of the disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};

use crate::layout::{DATA, SECTOR};

/// Bytes at offsets.
pub trait Disk {
    /// Fills the buffer.
    ///
    /// # Errors
    /// The device's, or its end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all bytes. They count as stored only after [`Disk::sync`].
    ///
    /// # Errors
    /// The device's.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns when the medium holds what was written; later reads come from the medium, not from memory.
    ///
    /// # Errors
    /// The device's.
    fn sync(&self) -> io::Result<()>;
}

impl Disk for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()?;
        // Else a check after writing would look at the page cache and prove nothing.
        Ok(fadvise(self, 0, None, Advice::DontNeed)?)
    }
}

const ENTRY_4: usize = 446 + 3 * 16;

/// The signature of the partition table, which names the disk on the kernel's command line. `None`: no partition table.
///
/// # Errors
/// The device's.
pub fn signature(disk: &impl Disk) -> io::Result<Option<u32>> {
    let mut table = [0; SECTOR as usize];
    disk.read_at(&mut table, 0)?;
    let valid = table[510..] == [0x55, 0xAA];
    Ok(valid.then(|| u32::from_le_bytes([table[440], table[441], table[442], table[443]])))
}

/// Grows the data partition to the end of a disk of this many bytes with one write of one sector; false: it ends there already.
///
/// # Errors
/// The device's, or a table that is not ours.
pub fn grow(disk: &impl Disk, size_bytes: u64) -> io::Result<bool> {
    let mut table = [0; SECTOR as usize];
    disk.read_at(&mut table, 0)?;
    let word =
        |at: usize| u32::from_le_bytes([table[at], table[at + 1], table[at + 2], table[at + 3]]);
    if table[510..] != [0x55, 0xAA] || u64::from(word(ENTRY_4 + 8)) != DATA {
        let reason = format!(
            "partition 4 does not begin at sector {DATA}: this disk holds no firmware of ours"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    // A whole number of mebibytes; the table counts 32 bits of sectors.
    let sectors = (size_bytes / SECTOR).saturating_sub(DATA) / 2048 * 2048;
    let sectors = u32::try_from(sectors).unwrap_or(u32::MAX / 2048 * 2048);
    if sectors <= word(ENTRY_4 + 12) {
        return Ok(false);
    }
    table[ENTRY_4 + 12..ENTRY_4 + 16].copy_from_slice(&sectors.to_le_bytes());
    disk.write_at(&table, 0)?;
    disk.sync()?;
    Ok(true)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeMap;

    use super::*;

    /// What the cut leaves of the write under which the power goes.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Cut {
        /// Nothing of it, nor of anything since the last sync.
        Lost,
        /// The first half of it; what came before is there.
        Torn,
        /// All of it, and nothing after.
        Done,
    }

    /// What a medium holds: blocks of 4096 bytes; what is not there is zero.
    pub(crate) type Medium = BTreeMap<u64, Vec<u8>>;

    /// A disk in memory of any size that loses power at the n-th write.
    #[derive(Default)]
    pub(crate) struct Memory {
        medium: RefCell<Medium>,
        unsynced: RefCell<Vec<(u64, Vec<u8>)>>,
        cut: Option<(Cell<usize>, Cut)>,
        dead: Cell<bool>,
    }

    impl Memory {
        pub(crate) fn new(medium: Medium) -> Self {
            Self { medium: medium.into(), ..Self::default() }
        }

        pub(crate) fn cut_at(medium: Medium, write: usize, cut: Cut) -> Self {
            Self { cut: Some((write.into(), cut)), ..Self::new(medium) }
        }

        /// What the medium holds after all.
        pub(crate) fn medium(&self) -> Medium {
            self.medium.borrow().clone()
        }

        pub(crate) fn flip(&self, at: u64, bits: u8) {
            self.medium.borrow_mut().entry(at / 4096).or_insert_with(|| vec![0; 4096])
                [block(at)] ^= bits;
        }

        pub(crate) fn read(&self, at: u64, length: usize) -> Vec<u8> {
            let medium = self.medium.borrow();
            let byte = |at: u64| medium.get(&(at / 4096)).map_or(0, |bytes| bytes[block(at)]);
            (at..at + length as u64).map(byte).collect()
        }

        fn store(&self, bytes: &[u8], at: u64) {
            let mut medium = self.medium.borrow_mut();
            for (at, byte) in (at..).zip(bytes) {
                medium.entry(at / 4096).or_insert_with(|| vec![0; 4096])[block(at)] = *byte;
            }
        }
    }

    fn block(at: u64) -> usize {
        usize::try_from(at % 4096).unwrap()
    }

    fn gone() -> io::Error {
        io::Error::other("the power is gone")
    }

    impl Disk for Memory {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            if self.dead.get() {
                return Err(gone());
            }
            buffer.copy_from_slice(&self.read(offset, buffer.len()));
            Ok(())
        }

        fn write_at(&self, new: &[u8], offset: u64) -> io::Result<()> {
            if self.dead.get() {
                return Err(gone());
            }
            self.unsynced.borrow_mut().push((offset, self.read(offset, new.len())));
            let Some((left, cut)) = &self.cut else {
                self.store(new, offset);
                return Ok(());
            };
            if let Some(fewer) = left.get().checked_sub(1) {
                left.set(fewer);
                self.store(new, offset);
                return Ok(());
            }
            self.dead.set(true);
            match cut {
                Cut::Done => self.store(new, offset),
                Cut::Torn => self.store(&new[..new.len() / 2], offset),
                // Everything since the last sync was still in the device's cache.
                Cut::Lost => {
                    for (offset, old) in self.unsynced.borrow_mut().drain(..).rev() {
                        self.store(&old, offset);
                    }
                }
            }
            Err(gone())
        }

        fn sync(&self) -> io::Result<()> {
            if self.dead.get() {
                return Err(gone());
            }
            self.unsynced.borrow_mut().clear();
            Ok(())
        }
    }

    fn table() -> Medium {
        let mut table = vec![0; 4096];
        table[440..444].copy_from_slice(&0x0CE1_1001_u32.to_le_bytes());
        table[ENTRY_4 + 8..ENTRY_4 + 12]
            .copy_from_slice(&u32::try_from(DATA).unwrap().to_le_bytes());
        table[ENTRY_4 + 12..ENTRY_4 + 16].copy_from_slice(&32768_u32.to_le_bytes());
        table[510..512].copy_from_slice(&[0x55, 0xAA]);
        Medium::from([(0, table)])
    }

    #[test]
    fn the_last_partition_grows_once_to_the_end() {
        let disk = Memory::new(table());
        assert_eq!(signature(&disk).unwrap(), Some(0x0CE1_1001));
        assert!(grow(&disk, 8 << 30).unwrap());
        assert!(!grow(&disk, 8 << 30).unwrap());
        let sectors = disk.read(ENTRY_4 as u64 + 12, 4).try_into().unwrap();
        let sectors = u32::from_le_bytes(sectors);
        assert_eq!(u64::from(sectors) + DATA, (8 << 30) / 512);
    }

    #[test]
    fn a_card_larger_than_the_table_can_tell_is_used_as_far_as_it_can() {
        let disk = Memory::new(table());
        assert!(grow(&disk, 4 << 40).unwrap());
        assert!(!grow(&disk, 4 << 40).unwrap());
    }

    #[test]
    fn a_cut_leaves_the_old_table_or_the_new_one() {
        for cut in [Cut::Lost, Cut::Done] {
            let disk = Memory::cut_at(table(), 0, cut);
            assert!(grow(&disk, 8 << 30).is_err());
            let again = Memory::new(disk.medium());
            assert_eq!(grow(&again, 8 << 30).unwrap(), cut == Cut::Lost);
        }
    }

    #[test]
    fn a_table_that_is_not_ours_is_left_alone() {
        let disk = Memory::new(table());
        disk.flip(ENTRY_4 as u64 + 8, 1);
        let before = disk.medium();
        assert_eq!(grow(&disk, 8 << 30).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(disk.medium(), before);
    }
}
