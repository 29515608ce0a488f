//! Memory on cache-line boundaries: packed weights, panels, the arena.

use std::cell::Cell;

#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
struct Line([u8; 64]);

/// Bytes that start on a cache line, zero at first.
#[derive(Debug, Clone)]
pub(crate) struct Aligned {
    lines: Vec<Line>,
}

impl Aligned {
    /// At least `bytes` bytes of zeros.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { lines: vec![Line([0; 64]); bytes.div_ceil(64)] }
    }

    /// Number of bytes, a multiple of 64.
    pub(crate) fn len(&self) -> usize {
        self.lines.len() * 64
    }

    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        expect(dead_code, reason = "for kernels of bytes")
    )]
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the lines are that many initialised bytes without padding, borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len()) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let length = self.len();
        // SAFETY: the lines are `length` initialised bytes without padding, borrowed exclusively with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), length) }
    }

    /// The bytes, for several views that overlap.
    pub(crate) fn cells(&mut self) -> &[Cell<u8>] {
        Cell::from_mut(self.bytes_mut()).as_slice_of_cells()
    }

    pub(crate) fn words(&self) -> &[i16] {
        // SAFETY: as above; 64 is a multiple of the size and alignment of i16, and every bit pattern is one.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len() / 2) }
    }

    pub(crate) fn words_mut(&mut self) -> &mut [i16] {
        let length = self.len() / 2;
        // SAFETY: as `words`, borrowed exclusively with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), length) }
    }

    pub(crate) fn reals_mut(&mut self) -> &mut [f32] {
        let length = self.len() / 4;
        // SAFETY: as above; 64 is a multiple of the size and alignment of f32, and every bit pattern is one.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), length) }
    }
}

/// A run of bytes as words of the machine's byte order. Panics unless it starts where a word may.
pub(crate) fn words(run: &[Cell<u8>]) -> &[Cell<i16>] {
    assert!(run.as_ptr().cast::<i16>().is_aligned());
    // SAFETY: so many bytes, aligned as checked; cells of bytes may be cells of words, as every bit pattern is one.
    unsafe { std::slice::from_raw_parts(run.as_ptr().cast(), run.len() / 2) }
}
