//! What a board needs beside the agent: two firmware slots with a boot state that no power cut can tear, first-boot
//! provisioning from a FAT partition, and a supervisor that feeds the hardware watchdog only while the agent works.
//!
//! The agent knows nothing of this crate; they meet through `NOTIFY_SOCKET` and files. `docs/firmware.md` has the whole picture.

pub mod clock;
pub mod disk;
pub mod files;
pub mod image;
pub mod install;
pub mod layout;
pub mod provision;
pub mod sntp;
pub mod state;
pub mod supervise;
