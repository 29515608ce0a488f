//! Where the rows of a panel go.

use std::ops::{Deref, Range};

use crate::view::View;

/// Offsets of pixels in the arena. The greatest is known, so that a kernel need not look at all of them before it trusts them.
#[derive(Debug, Clone)]
pub(crate) struct Offsets {
    offsets: Vec<usize>,
    greatest: usize,
}

impl Offsets {
    /// None yet, with room for so many.
    pub(crate) fn new(room: usize) -> Self {
        Self { offsets: Vec::with_capacity(room), greatest: 0 }
    }

    pub(crate) fn room(&self) -> usize {
        self.offsets.capacity()
    }

    /// Zero if there are none.
    pub(crate) fn greatest(&self) -> usize {
        self.greatest
    }

    /// The offsets of some pixels of an image, counted row by row, from channel `first` on. Allocates nothing as long as there is
    /// room.
    pub(crate) fn fill(&mut self, view: &View, image: usize, pixels: Range<usize>, first: usize) {
        let width = view.shape.w;
        self.offsets.clear();
        self.greatest = 0;
        let mut pixel = pixels.start;
        while pixel < pixels.end {
            let (y, x) = (pixel / width, pixel % width);
            let count = (width - x).min(pixels.end - pixel);
            let start = view.at(image, y, x) + first;
            self.offsets.extend((0..count).map(|nth| start + nth * view.pixel));
            self.greatest = self.greatest.max(start + (count - 1) * view.pixel);
            pixel += count;
        }
    }
}

impl Deref for Offsets {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.offsets
    }
}

#[cfg(test)]
impl From<Vec<usize>> for Offsets {
    fn from(offsets: Vec<usize>) -> Self {
        let greatest = offsets.iter().copied().max().unwrap_or(0);
        Self { offsets, greatest }
    }
}
