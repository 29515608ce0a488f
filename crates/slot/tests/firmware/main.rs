//! Firmware images on emulated boards, from the card that `firmware/flash.sh` writes to the result at a broker of this machine:
//! Debian's U-Boot, kernel and our root, nothing replaced but the shell on the console (`firmware/tests/root`).
//!
//! `firmware/test.sh` builds the images and runs these tests; `firmware/test.sh NAME…` runs those whose name contains NAME.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(
    unreachable_pub,
    dead_code,
    reason = "modules of one program; some are shared with tests/boards"
)]

mod boot;
mod card;
#[path = "../../../../tests/boards/console.rs"]
mod console;
mod debian;
mod flash;
mod machine;
mod package;
#[path = "../../../../tests/boards/qmp.rs"]
mod qmp;
mod slots;
mod support;
mod trouble;
