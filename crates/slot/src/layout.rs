//! Where everything lies on a board's disk. `ocelli-slot layout` prints it as shell variables for `firmware/build.sh` and the
//! U-Boot script, so that it is written down once.
//!
//! ```text
//! sector 0        partition table (MBR)
//! 16 or 64        boot loader of boards whose ROM looks there; a second part may begin at sector 16384
//! 12288, 14336    the two copies of the boot state, a mebibyte apart: never in one erase block of common cards
//! 32768           partition 1: FAT, 64 MiB, boot script and provisioning
//!                 partition 2: slot a, partition 3: slot b, 96 MiB each
//!                 partition 4: data, grown to the end of the disk on first boot
//! ```

use crate::state::Slot;

/// Bytes in a sector.
pub const SECTOR: u64 = 512;
/// Sectors that hold the two copies of the boot state.
pub const STATE: [u64; 2] = [12288, 14336];
/// First sector and number of sectors of the FAT partition.
pub const FAT: (u64, u64) = (32768, 131_072);
/// Sectors of a slot.
pub const SLOT_SECTORS: u64 = 196_608;
/// First sector of the data partition.
pub const DATA: u64 = FAT.0 + FAT.1 + 2 * SLOT_SECTORS;
/// Sectors of the data partition before it is grown.
pub const DATA_SECTORS: u64 = 32768;

/// Parts of a slot: name, offset from its start and room, bytes. The boot script knows these numbers: they are fixed for good.
pub const PARTS: [(&str, u64, u64); 4] = [
    ("dtb", 64 << 10, 448 << 10),
    ("initrd", 512 << 10, 7680 << 10),
    ("kernel", 8 << 20, 24 << 20),
    ("root", 32 << 20, 64 << 20),
];

/// First byte of a slot on the disk.
#[must_use]
pub const fn slot_offset(slot: Slot) -> u64 {
    let first = FAT.0 + FAT.1;
    SECTOR
        * match slot {
            Slot::A => first,
            Slot::B => first + SLOT_SECTORS,
        }
}

/// Offset and room of a part, bytes.
#[must_use]
pub fn part(name: &str) -> Option<(u64, u64)> {
    PARTS.iter().find(|(known, ..)| *known == name).map(|&(_, offset, room)| (offset, room))
}

/// The layout as lines of shell variables; sectors in decimal.
#[must_use]
pub fn as_shell() -> String {
    let mut lines = vec![
        format!("STATE0={} STATE1={}", STATE[0], STATE[1]),
        format!("FAT_START={} FAT_SECTORS={}", FAT.0, FAT.1),
        format!("A_START={}", slot_offset(Slot::A) / SECTOR),
        format!("B_START={}", slot_offset(Slot::B) / SECTOR),
        format!("SLOT_SECTORS={SLOT_SECTORS}"),
        format!("DATA_START={DATA} DATA_SECTORS={DATA_SECTORS}"),
    ];
    for (name, offset, room) in PARTS {
        let name = name.to_uppercase();
        lines.push(format!("{name}_AT={} {name}_ROOM={room}", offset / SECTOR));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_overlaps() {
        assert!(STATE[0] + 8 <= STATE[1] && STATE[1] + 8 <= 16384, "state below the second loader");
        assert!(slot_offset(Slot::B) + SLOT_SECTORS * SECTOR == DATA * SECTOR);
        let mut end = 4096;
        for (name, offset, room) in PARTS {
            assert!(offset >= end && offset % 4096 == 0, "{name}");
            end = offset + room;
        }
        assert_eq!(end, SLOT_SECTORS * SECTOR);
    }

    #[test]
    fn the_shell_can_read_it() {
        assert!(as_shell().contains("STATE0=12288 STATE1=14336\n"));
        assert!(as_shell().contains("KERNEL_AT=16384 KERNEL_ROOM=25165824\n"));
    }
}
