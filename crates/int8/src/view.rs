//! Where the elements of a tensor lie in the arena: an offset and three strides. Channels are always adjacent.

use crate::tensor::Shape;

/// A tensor's place. Neighbouring pixels may belong to a wider buffer (a joined tensor) or to a padded one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) shape: Shape,
    /// Byte of image 0, row 0, column 0, channel 0.
    pub(crate) offset: usize,
    /// Bytes from one image to the next.
    pub(crate) image: usize,
    /// Bytes from one row to the next.
    pub(crate) row: usize,
    /// Bytes from one column to the next.
    pub(crate) pixel: usize,
}

impl View {
    #[inline(always)]
    pub(crate) fn at(&self, n: usize, y: usize, x: usize) -> usize {
        self.offset + n * self.image + y * self.row + x * self.pixel
    }

    /// Whether the pixels of a row follow each other without a gap.
    pub(crate) fn has_dense_rows(&self) -> bool {
        self.pixel == self.shape.c
    }

    /// Whether the whole image is one run of bytes.
    pub(crate) fn is_dense(&self) -> bool {
        self.has_dense_rows() && self.row == self.shape.w * self.pixel
    }

    /// One past the last byte.
    pub(crate) fn end(&self) -> usize {
        self.at(self.shape.n - 1, self.shape.h - 1, self.shape.w - 1) + self.shape.c
    }

    /// Some of the channels.
    pub(crate) fn channels(&self, first: usize, channels: usize) -> Self {
        let shape = Shape { c: channels, ..self.shape };
        Self { shape, offset: self.offset + first, ..*self }
    }
}
