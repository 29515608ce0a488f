//! Memory of the device binary: small blocks from a heap that joins what is freed, large ones from the C library.
//!
//! The C library that zig links has slabs of 64 KiB for powers of two and never joins or returns them: what loading a model
//! needs for a moment would stay. From 32 KiB on it maps each block alone, and gives it back when it is freed.

use std::alloc::{GlobalAlloc, Layout, System};

use dlmalloc::GlobalDlmalloc;

/// Smallest block that comes from the C library, bytes.
const LARGE: usize = 32 << 10;

/// The allocator; a block's size says whose it is.
pub(crate) struct Heap;

impl Heap {
    fn of(size: usize) -> &'static dyn GlobalAlloc {
        if size < LARGE { &GlobalDlmalloc } else { &System }
    }
}

// SAFETY: every block is given out and taken back by the same one of two allocators: a block keeps its size until `realloc`, and
// that moves it where the new size belongs to the other one.
#[expect(unsafe_code, reason = "an allocator cannot be written without")]
unsafe impl GlobalAlloc for Heap {
    // Never inlined: a choice in every place that allocates makes the binary half a megabyte larger.
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { Self::of(layout.size()).alloc(layout) }
    }

    #[inline(never)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { Self::of(layout.size()).alloc_zeroed(layout) }
    }

    #[inline(never)]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block is of this size, so of this allocator.
        unsafe { Self::of(layout.size()).dealloc(block, layout) }
    }

    #[inline(never)]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if (layout.size() < LARGE) == (size < LARGE) {
            // SAFETY: the block is of this allocator before and after.
            return unsafe { Self::of(size).realloc(block, layout, size) };
        }
        // SAFETY: the caller gives a size that makes a layout with this alignment. The new block has room for `kept` bytes, the old one
        // holds them, they are apart, and the old one is not used again.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !moved.is_null() {
                let kept = layout.size().min(size);
                std::ptr::copy_nonoverlapping(block, moved, kept);
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "an allocator is called so")]
mod tests {
    use super::*;

    #[test]
    fn blocks_keep_their_bytes_and_alignment_whatever_size_they_take() {
        for align in [1, 16, 64, 4096] {
            let mut layout = Layout::from_size_align(1, align).unwrap();
            // SAFETY: sizes are not 0, each layout is that of the block, and only the block's own bytes are touched.
            unsafe {
                let mut block = Heap.alloc_zeroed(layout);
                for size in
                    [100, LARGE - 1, LARGE, 3 * LARGE, LARGE + 1, LARGE - 1, 500, 5 * LARGE, 1]
                {
                    let before = std::slice::from_raw_parts_mut(block, layout.size());
                    before.iter_mut().enumerate().for_each(|(at, byte)| *byte = at as u8);
                    block = Heap.realloc(block, layout, size);
                    assert!(block.addr().is_multiple_of(align), "{size} aligned to {align}");
                    let after = std::slice::from_raw_parts(block, size.min(layout.size()));
                    assert!(after.iter().enumerate().all(|(at, byte)| *byte == at as u8), "{size}");
                    layout = Layout::from_size_align(size, align).unwrap();
                }
                Heap.dealloc(block, layout);
                let zeros = Heap.alloc_zeroed(layout);
                assert_eq!(*zeros, 0);
                Heap.dealloc(zeros, layout);
            }
        }
    }
}
