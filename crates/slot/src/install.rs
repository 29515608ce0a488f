//! Writes a firmware into the slot that does not run, and arms it. The running slot is never touched.
//!
//! The order makes every power cut harmless: the slot is marked empty, its header wiped, parts written, the header last, everything
//! read back and checked, and only then one write of the boot state arms it.

use std::io;

use crate::disk::Disk;
use crate::image::{self, HEAD, Keys, Manifest};
use crate::layout::slot_offset;
use crate::state::{self, BootState, Slot, Standing};

/// Why nothing was armed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is refused; nothing was written.
    #[error("the firmware is refused, nothing was written: {0}")]
    Refused(#[source] image::Error),
    /// For another board; nothing was written.
    #[error("the firmware is for board {found}, this board is {own}; nothing was written")]
    OtherBoard {
        /// As the file says.
        found: String,
        /// This one.
        own: String,
    },
    /// The running firmware is itself on trial; nothing was written.
    #[error(
        "slot {0} is still on trial: wait until it is confirmed, or confirm it (ocelli-slot confirm); nothing was written"
    )]
    OnTrial(Slot),
    /// What the slot gives back is not what was written. The slot stays empty.
    #[error(
        "slot {slot} does not hold what was written; it stays empty and {running} goes on: {reason}"
    )]
    Written {
        /// The slot that was written.
        slot: Slot,
        /// The one that runs.
        running: Slot,
        /// What reading it back gave.
        reason: image::Error,
    },
    /// The disk's.
    #[error("the disk failed: {0}")]
    Io(#[from] io::Error),
}

/// The board that installs.
#[derive(Debug, Clone)]
pub struct Board {
    /// Its name.
    pub name: String,
    /// The slot that runs.
    pub running: Slot,
    /// Keys of which one must have signed.
    pub keys: Keys,
}

/// Installs the firmware of an image into the slot that does not run and arms it for the next boots.
///
/// # Errors
/// Why nothing was armed. The running slot boots as before.
pub fn install(
    image: &impl Disk,
    disk: &impl Disk,
    board: &Board,
) -> Result<(Slot, Manifest), Error> {
    let manifest = image::verify(image, 0, &board.keys).map_err(Error::Refused)?;
    if manifest.board != board.name {
        return Err(Error::OtherBoard { found: manifest.board, own: board.name.clone() });
    }
    let before = state::load(disk)?;
    if before.standing(board.running) == Standing::Trial {
        return Err(Error::OnTrial(board.running));
    }
    let slot = board.running.other();
    // The running slot stays the active one, also where the state says otherwise after an earlier arming.
    let emptied = BootState { active: board.running, tries: 0, ..before.emptied(slot) };
    state::save(disk, &emptied)?;
    write(image, disk, slot_offset(slot), &manifest)?;
    image::verify(disk, slot_offset(slot), &board.keys).map_err(|reason| Error::Written {
        slot,
        running: board.running,
        reason,
    })?;
    state::save(disk, &emptied.armed(slot))?;
    Ok((slot, manifest))
}

fn write(
    image: &impl Disk,
    disk: &impl Disk,
    start: u64,
    manifest: &Manifest,
) -> Result<(), Error> {
    disk.write_at(&[0; HEAD], start)?;
    disk.sync()?;
    let mut buffer = vec![0; 1 << 20];
    for part in &manifest.parts {
        let (at, _) = image::place(part).map_err(Error::Refused)?;
        let mut done = 0;
        while done < part.size {
            let chunk = usize::try_from(part.size - done)
                .map_or(buffer.len(), |left| left.min(buffer.len()));
            image.read_at(&mut buffer[..chunk], at + done)?;
            disk.write_at(&buffer[..chunk], start + at + done)?;
            done += chunk as u64;
        }
    }
    disk.sync()?;
    let mut head = [0; HEAD];
    image.read_at(&mut head, 0)?;
    disk.write_at(&head, start)?;
    Ok(disk.sync()?)
}

/// Confirms the running slot, so that its boots are no longer counted. False: it was confirmed already.
///
/// # Errors
/// The disk's.
pub fn confirm(disk: &impl Disk, running: Slot) -> io::Result<bool> {
    let before = state::load(disk)?;
    if before.standing(running) == Standing::Good && before.active == running {
        return Ok(false);
    }
    if before.standing(running) == Standing::Good
        && before.standing(before.active) == Standing::Trial
    {
        // The other slot is armed for the next boot: confirming this one must not disarm it.
        return Ok(false);
    }
    state::save(disk, &before.confirmed(running))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::{Cut, Medium, Memory};
    use crate::image::tests::{key, packed};
    use crate::state::TRIES;

    fn board() -> Board {
        Board { name: "test".to_owned(), running: Slot::A, keys: Keys::default() }
    }

    /// A disk with version 1 in both slots.
    fn disk() -> Medium {
        let disk = Memory::default();
        for slot in [Slot::A, Slot::B] {
            let start = slot_offset(slot);
            for (block, bytes) in packed("1", None).medium() {
                disk.write_at(&bytes, start + block * 4096).unwrap();
            }
        }
        state::save(&disk, &BootState::FACTORY).unwrap();
        disk.medium()
    }

    fn version(disk: &Memory, slot: Slot) -> Option<String> {
        image::verify(disk, slot_offset(slot), &Keys::default()).ok().map(|found| found.version)
    }

    #[test]
    fn a_firmware_goes_into_the_other_slot_and_is_armed() {
        let disk = Memory::new(disk());
        let (slot, manifest) = install(&packed("2", None), &disk, &board()).unwrap();
        assert_eq!((slot, manifest.version.as_str()), (Slot::B, "2"));
        assert_eq!(version(&disk, Slot::A).as_deref(), Some("1"));
        assert_eq!(version(&disk, Slot::B).as_deref(), Some("2"));
        let state = state::load(&disk).unwrap();
        assert_eq!((state.active, state.tries, state.b), (Slot::B, TRIES, Standing::Trial));
        assert!(!confirm(&disk, Slot::A).unwrap(), "what is armed stays armed");
        assert!(confirm(&disk, Slot::B).unwrap());
        assert!(!confirm(&disk, Slot::B).unwrap(), "once");
        assert_eq!(state::load(&disk).unwrap().standing(Slot::B), Standing::Good);
    }

    #[test]
    fn a_damaged_file_changes_nothing() {
        let (disk, before) = (Memory::new(disk()), disk());
        let image = packed("2", None);
        image.flip((8 << 20) + 4000, 4);
        let error = install(&image, &disk, &board()).unwrap_err();
        assert!(matches!(error, Error::Refused(image::Error::Damaged { .. })), "{error}");
        assert!(disk.medium() == before);
    }

    #[test]
    fn another_boards_or_an_unsigned_firmware_changes_nothing() {
        let (disk, before) = (Memory::new(disk()), disk());
        let other = Board { name: "other".to_owned(), ..board() };
        assert!(matches!(
            install(&packed("2", None), &disk, &other),
            Err(Error::OtherBoard { .. })
        ));
        let strict = Board { keys: key(3).1, ..board() };
        let refused = install(&packed("2", None), &disk, &strict);
        assert!(matches!(refused, Err(Error::Refused(image::Error::Unsigned))));
        assert!(disk.medium() == before);
    }

    #[test]
    fn nothing_is_installed_over_the_way_back_of_a_slot_on_trial() {
        let disk = Memory::new(disk());
        install(&packed("2", None), &disk, &board()).unwrap();
        let booted = Board { running: Slot::B, ..board() };
        assert!(matches!(
            install(&packed("3", None), &disk, &booted),
            Err(Error::OnTrial(Slot::B))
        ));
    }

    #[test]
    fn with_both_slots_damaged_the_board_tries_one_after_the_other_and_can_be_installed_anew() {
        let disk = Memory::new(disk());
        for slot in [Slot::A, Slot::B] {
            disk.flip(slot_offset(slot) + (32 << 20) + 7, 1);
        }
        // What the initramfs does at each boot: check the slot, mark it, start anew.
        let mut tried = Vec::new();
        for _ in 0..4 {
            let state = state::load(&disk).unwrap();
            assert_eq!(version(&disk, state.active), None);
            tried.push(state.active);
            state::save(&disk, &state.damaged(state.active)).unwrap();
        }
        assert_eq!(tried, [Slot::A, Slot::B, Slot::A, Slot::B]);
        let from_b = Board { running: Slot::B, ..board() };
        assert_eq!(install(&packed("2", None), &disk, &from_b).unwrap().0, Slot::A);
        assert_eq!(version(&disk, Slot::A).as_deref(), Some("2"));
    }

    /// A medium that takes writes and stores one byte of them wrongly.
    struct Faulty(Memory, u64);

    impl Disk for Faulty {
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            self.0.read_at(buffer, offset)
        }
        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
            let mut stored = bytes.to_vec();
            if let Some(at) = self.1.checked_sub(offset).and_then(|at| usize::try_from(at).ok())
                && let Some(byte) = stored.get_mut(at)
            {
                *byte ^= 0x80;
            }
            self.0.write_at(&stored, offset)
        }
        fn sync(&self) -> io::Result<()> {
            self.0.sync()
        }
    }

    #[test]
    fn a_byte_that_flips_while_writing_is_found_and_the_slot_stays_empty() {
        let disk = Faulty(Memory::new(disk()), slot_offset(Slot::B) + (32 << 20) + 99);
        let error = install(&packed("2", None), &disk, &board()).unwrap_err();
        assert!(matches!(error, Error::Written { slot: Slot::B, .. }), "{error}");
        let state = state::load(&disk).unwrap();
        assert_eq!((state.active, state.b), (Slot::A, Standing::Empty));
    }

    #[test]
    fn a_cut_at_any_write_leaves_the_running_slot_whole_and_what_boots_is_whole() {
        let (before, image) = (disk(), packed("2", None));
        let mut ended = [false; 3];
        for (row, cut) in [Cut::Lost, Cut::Torn, Cut::Done].into_iter().enumerate() {
            for write in 0..40 {
                let dying = Memory::cut_at(before.clone(), write, cut);
                let result = install(&image, &dying, &board());
                let after = Memory::new(dying.medium());
                assert_eq!(version(&after, Slot::A).as_deref(), Some("1"), "{cut:?} {write}");
                let state = state::load(&after).unwrap();
                if state.active == Slot::B {
                    assert_eq!(version(&after, Slot::B).as_deref(), Some("2"), "{cut:?} {write}");
                }
                if state.b == Standing::Good {
                    assert_eq!(version(&after, Slot::B).as_deref(), Some("1"), "{cut:?} {write}");
                }
                if result.is_ok() {
                    ended[row] = true;
                    break;
                }
                install(&image, &after, &board()).unwrap();
            }
        }
        assert_eq!(ended, [true; 3], "every write was cut once");
    }
}
