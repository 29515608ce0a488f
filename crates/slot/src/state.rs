//! Which slot boots, and how often it may still try: a sector of text that U-Boot's script and Linux both read and write.
//!
//! Two copies lie in raw sectors outside any file system ([`crate::layout::STATE`]). Each write goes to the older copy, so that a
//! torn or lost write leaves the other one. A copy is 504 bytes of `name=value` lines, sorted and zero-padded, as `env export -t`
//! makes them, and their CRC-32 twice: little-endian, big-endian. U-Boot's `crc32 … ADDRESS` stores the one or the other order,
//! depending on how it was built; it writes its own order into both places, and a reader takes either in either place.
//! The copies count 0, 1, 2, 0, …: U-Boot's shell on some boards cannot add.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use serde::Serialize;

use crate::disk::Disk;
use crate::layout::{SECTOR, STATE};

/// Boots that a new slot gets to be confirmed in.
pub const TRIES: u8 = 3;
/// Bytes of a sector that the CRCs cover.
pub const COVERED: usize = 504;

/// One of the two places for a whole firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// Partition 2.
    A,
    /// Partition 3.
    B,
}

impl Slot {
    /// The one beside it.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// From its letter.
    #[must_use]
    pub fn from_letter(letter: &str) -> Option<Self> {
        match letter {
            "a" => Some(Self::A),
            "b" => Some(Self::B),
            _ => None,
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::A => "a",
            Self::B => "b",
        })
    }
}

/// What is known of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Confirmed, or written at the factory. Its boots are not counted.
    Good,
    /// Newly installed: boots while tries are left, until it is confirmed.
    Trial,
    /// Used up its tries, or damaged.
    Bad,
    /// Being written, or never written.
    Empty,
}

impl Standing {
    const ALL: [(Self, &str); 4] =
        [(Self::Good, "good"), (Self::Trial, "trial"), (Self::Bad, "bad"), (Self::Empty, "empty")];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(standing, _)| *standing == self).map_or("bad", |(_, word)| word)
    }

    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == word).map(|(standing, _)| *standing)
    }
}

/// The boot state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootState {
    /// The slot that boots next.
    pub active: Slot,
    /// Boots left for it while it is on trial.
    pub tries: u8,
    /// Standing of slot a.
    pub a: Standing,
    /// Standing of slot b.
    pub b: Standing,
}

impl BootState {
    /// As the image is made: the same firmware in both slots, nothing to prove.
    pub const FACTORY: Self =
        Self { active: Slot::A, tries: 0, a: Standing::Good, b: Standing::Good };

    /// Standing of a slot.
    #[must_use]
    pub const fn standing(&self, slot: Slot) -> Standing {
        match slot {
            Slot::A => self.a,
            Slot::B => self.b,
        }
    }

    /// The same with another standing of one slot.
    #[must_use]
    pub const fn with(mut self, slot: Slot, standing: Standing) -> Self {
        match slot {
            Slot::A => self.a = standing,
            Slot::B => self.b = standing,
        }
        self
    }

    /// After the running slot has proved itself.
    #[must_use]
    pub const fn confirmed(self, running: Slot) -> Self {
        Self { active: running, tries: 0, ..self.with(running, Standing::Good) }
    }

    /// After a slot was found damaged. The other one is next, whatever is known of it: a mark may be wrong, standing still is worse.
    #[must_use]
    pub fn damaged(self, slot: Slot) -> Self {
        let next = if self.standing(slot.other()) == Standing::Empty { slot } else { slot.other() };
        Self { active: next, tries: 0, ..self.with(slot, Standing::Bad) }
    }

    /// While a slot is being written.
    #[must_use]
    pub const fn emptied(self, slot: Slot) -> Self {
        self.with(slot, Standing::Empty)
    }

    /// With a newly written slot to be tried next.
    #[must_use]
    pub const fn armed(self, slot: Slot) -> Self {
        Self { active: slot, tries: TRIES, ..self.with(slot, Standing::Trial) }
    }

    /// The sector that holds it, with this count.
    #[must_use]
    pub fn encode(&self, count: u8) -> [u8; SECTOR as usize] {
        let text = format!(
            "oc_a={}\noc_active={}\noc_b={}\noc_format=1\noc_gen={count}\noc_tries={}\n",
            self.a.word(),
            self.active,
            self.b.word(),
            self.tries
        );
        let mut sector = [0; SECTOR as usize];
        sector[..text.len()].copy_from_slice(text.as_bytes());
        seal(&mut sector);
        sector
    }

    /// Reads a sector; `None` when it is torn or of another format.
    #[must_use]
    pub fn decode(sector: &[u8; SECTOR as usize]) -> Option<(Self, u8)> {
        if !is_sealed(sector) {
            return None;
        }
        let end = sector.iter().position(|byte| *byte == 0)?.min(COVERED);
        let text = std::str::from_utf8(&sector[..end]).ok()?;
        let values: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let value = |name: &str| values.get(name).copied();
        if value("oc_format") != Some("1") {
            return None;
        }
        let state = Self {
            active: Slot::from_letter(value("oc_active")?)?,
            tries: value("oc_tries")?.parse().ok().filter(|tries| *tries <= TRIES)?,
            a: Standing::from_word(value("oc_a")?)?,
            b: Standing::from_word(value("oc_b")?)?,
        };
        let count = value("oc_gen")?.parse().ok().filter(|count| *count < 3)?;
        Some((state, count))
    }
}

/// Writes the CRC of the covered bytes behind them, in both byte orders.
pub(crate) fn seal(sector: &mut [u8; SECTOR as usize]) {
    let crc = crc32fast::hash(&sector[..COVERED]);
    sector[COVERED..COVERED + 4].copy_from_slice(&crc.to_le_bytes());
    sector[COVERED + 4..].copy_from_slice(&crc.to_be_bytes());
}

/// Whether one of the two CRCs fits in either byte order.
pub(crate) fn is_sealed(sector: &[u8; SECTOR as usize]) -> bool {
    let crc = crc32fast::hash(&sector[..COVERED]);
    sector[COVERED..]
        .chunks_exact(4)
        .any(|stored| stored == crc.to_le_bytes() || stored == crc.to_be_bytes())
}

/// The newest valid copy and its place. Without one: the factory's state, which a board that has two whole slots can live with.
///
/// # Errors
/// The device's.
pub fn load(disk: &impl Disk) -> io::Result<BootState> {
    Ok(newest(disk)?.map_or(BootState::FACTORY, |(state, ..)| state))
}

fn newest(disk: &impl Disk) -> io::Result<Option<(BootState, u8, usize)>> {
    let mut found = [None; 2];
    for (copy, sector) in STATE.into_iter().enumerate() {
        let mut bytes = [0; SECTOR as usize];
        disk.read_at(&mut bytes, sector * SECTOR)?;
        found[copy] = BootState::decode(&bytes).map(|(state, count)| (state, count, copy));
    }
    Ok(match found {
        [Some(first), Some(second)] if second.1 == (first.1 + 1) % 3 => Some(second),
        [Some(first), _] => Some(first),
        [None, second] => second,
    })
}

/// Stores a state over the older copy and reads it back.
///
/// # Errors
/// The device's, or when it gives back something else than was written.
pub fn save(disk: &impl Disk, state: &BootState) -> io::Result<()> {
    let (count, copy) =
        newest(disk)?.map_or((0, 0), |(_, count, copy)| ((count + 1) % 3, 1 - copy));
    let sector = state.encode(count);
    disk.write_at(&sector, STATE[copy] * SECTOR)?;
    disk.sync()?;
    let mut back = [0; SECTOR as usize];
    disk.read_at(&mut back, STATE[copy] * SECTOR)?;
    if back != sector {
        return Err(io::Error::other("the disk gives back another boot state than was written"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tests::{Cut, Memory};

    const TRIAL: BootState =
        BootState { active: Slot::B, tries: TRIES, a: Standing::Good, b: Standing::Trial };

    #[test]
    fn a_sector_reads_as_it_was_written() {
        for state in [BootState::FACTORY, TRIAL, BootState::FACTORY.damaged(Slot::A)] {
            for count in 0..3 {
                assert_eq!(BootState::decode(&state.encode(count)), Some((state, count)));
            }
        }
    }

    #[test]
    fn any_flipped_byte_makes_a_copy_invalid() {
        let sector = TRIAL.encode(1);
        for at in 0..COVERED {
            let mut bad = sector;
            bad[at] ^= 0x20;
            assert_eq!(BootState::decode(&bad), None, "byte {at}");
        }
    }

    #[test]
    fn both_byte_orders_of_the_boot_loader_are_read() {
        for order in [u32::to_le_bytes, u32::to_be_bytes] {
            let mut sector = TRIAL.encode(2);
            let crc = order(crc32fast::hash(&sector[..COVERED]));
            sector[504..508].copy_from_slice(&crc);
            sector[508..].copy_from_slice(&crc);
            assert_eq!(BootState::decode(&sector), Some((TRIAL, 2)));
        }
    }

    #[test]
    fn the_newer_copy_wins_also_where_the_count_starts_again() {
        let disk = Memory::default();
        assert_eq!(load(&disk).unwrap(), BootState::FACTORY, "no copy: as from the factory");
        for step in 0..7_u8 {
            let state = BootState { tries: step % 4, ..TRIAL };
            save(&disk, &state).unwrap();
            assert_eq!(load(&disk).unwrap(), state, "step {step}");
        }
    }

    #[test]
    fn a_cut_at_any_write_leaves_the_old_state_or_the_new_one() {
        let (old, new) = (TRIAL, TRIAL.confirmed(Slot::B));
        for saves_before in 0..6 {
            for cut in [Cut::Lost, Cut::Torn, Cut::Done] {
                let disk = Memory::default();
                for _ in 0..=saves_before {
                    save(&disk, &old).unwrap();
                }
                let dying = Memory::cut_at(disk.medium(), 0, cut);
                assert!(save(&dying, &new).is_err());
                let after = Memory::new(dying.medium());
                let found = load(&after).unwrap();
                let want = if cut == Cut::Done { new } else { old };
                assert_eq!(found, want, "{cut:?} after {saves_before} saves");
                save(&after, &new).unwrap();
                assert_eq!(load(&after).unwrap(), new, "and the next write counts");
            }
        }
    }

    #[test]
    fn one_unreadable_copy_is_repaired_by_the_next_write() {
        let disk = Memory::default();
        save(&disk, &BootState::FACTORY).unwrap();
        save(&disk, &TRIAL).unwrap();
        disk.flip(STATE[1] * SECTOR + 3, 1);
        assert_eq!(load(&disk).unwrap(), BootState::FACTORY);
        save(&disk, &TRIAL).unwrap();
        assert_eq!(load(&disk).unwrap(), TRIAL);
    }

    #[test]
    fn a_damaged_slot_hands_over_even_to_one_that_is_marked_bad() {
        let once = BootState::FACTORY.damaged(Slot::A);
        assert_eq!((once.active, once.a), (Slot::B, Standing::Bad));
        let twice = once.damaged(Slot::B);
        assert_eq!((twice.active, twice.b), (Slot::A, Standing::Bad));
        let alone = BootState::FACTORY.emptied(Slot::B).damaged(Slot::A);
        assert_eq!(alone.active, Slot::A, "an empty slot has nothing to boot");
    }
}
