//! Memory shared with the agent: a sealed memory file, mapped.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::null_mut;

/// A mapped file. The agent has sealed its length: no access to it can fault.
#[derive(Debug)]
pub struct Mapping {
    file: File,
    start: *mut c_void,
    n_bytes: usize,
}

impl Mapping {
    /// Maps a whole file, for reading and writing.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(file: File) -> io::Result<Self> {
        let n_bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place that the system chooses.
        let start = unsafe {
            libc::mmap(null_mut(), n_bytes, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { file, start, n_bytes })
    }

    /// Its bytes. Only for files that nobody writes any more.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for as long as `self` lives; the agent writes such a file before it sends it, never after.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.n_bytes) }
    }

    pub(super) fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    /// Where a part begins; null when it is not inside.
    pub(super) fn at(&self, at: u64, n_bytes: u64) -> *mut c_void {
        let inside = at.checked_add(n_bytes).is_some_and(|end| end <= self.n_bytes as u64);
        match usize::try_from(at) {
            // SAFETY: inside the mapping, as just seen.
            Ok(at) if inside => unsafe { self.start.byte_add(at) },
            _ => null_mut(),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nobody has a pointer into it after this.
        unsafe { libc::munmap(self.start, self.n_bytes) };
    }
}
