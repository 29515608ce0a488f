//! How accelerators plug into Ocelli.
//!
//! [`abi`] mirrors `include/ocelli_delegate.h`, what a vendor's plug-in is built against. Nothing here does I/O.

pub mod abi;
