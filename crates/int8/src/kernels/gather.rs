//! Gathers the inputs of output pixels into the rows of a panel, as the values that a kernel multiplies: one loop for
//! all kernels.
//!
//! Padding becomes the zero point here, so that the multiplication knows nothing of borders.

use std::cell::Cell;
use std::ops::Range;

use crate::kernels::Run;
use crate::kernels::aligned::Aligned;
use crate::operator::Window;
use crate::tensor::ElementType;
use crate::view::View;

/// Values that a fetch may write past its run.
pub(crate) const OVERRUN: usize = 16;

/// What to gather: the taps of some output pixels of one image.
pub(crate) struct Gather<'a> {
    pub(crate) arena: &'a [Cell<u8>],
    pub(crate) element: ElementType,
    /// Value of padding.
    pub(crate) zero_point: i16,
    /// The channels of one group.
    pub(crate) input: View,
    pub(crate) window: Window,
    pub(crate) image: usize,
    /// Columns of the output.
    pub(crate) output_width: usize,
    /// Output pixels, counted row by row.
    pub(crate) pixels: Range<usize>,
    /// Values from one panel row to the next.
    pub(crate) stride: usize,
}

/// Turns stored bytes into the values that a kernel multiplies.
pub(crate) trait Fetch {
    type Value: Copy;
    /// Whether [`OVERRUN`] bytes are fetched at once.
    const BLOCKS: bool;

    /// The value of padding.
    fn padding(zero_point: i16) -> Self::Value;

    /// Fetches `length` bytes; may read and write up to [`OVERRUN`] values more.
    ///
    /// # Safety
    /// `length + OVERRUN` bytes are readable at `from`, and as many values writable at `to`.
    unsafe fn fetch(from: *const u8, to: *mut Self::Value, length: usize);

    /// The same for at most [`OVERRUN`] bytes.
    ///
    /// # Safety
    /// As for [`Fetch::fetch`].
    #[inline(always)]
    unsafe fn short(from: *const u8, to: *mut Self::Value, length: usize) {
        // SAFETY: by contract; a whole block is no longer than the overrun.
        unsafe { Self::fetch(from, to, if Self::BLOCKS { OVERRUN } else { length }) };
    }
}

impl<'a> Gather<'a> {
    /// The pixels as they lie in the arena, and the bytes from one to the next, where the window takes one pixel each
    /// and they follow each other. What lies behind a pixel's channels may be anything.
    pub(crate) fn in_place(&self) -> Option<(Run<'a>, usize)> {
        let View { shape, row, pixel, .. } = self.input;
        let follow = self.window == Window::square(1, 1, 0) && row == shape.w * pixel;
        let first = self.input.at(self.image, 0, 0) + self.pixels.start * pixel;
        follow.then(|| (&self.arena[first..], pixel))
    }

    /// Fills the panel rows. Later runs overwrite what earlier ones wrote past their end.
    #[inline(always)]
    pub(crate) fn run<F: Fetch>(&self, panel: &mut Aligned) {
        let depth = self.window.taps() * self.input.shape.c;
        assert!(self.input.end() + OVERRUN <= self.arena.len());
        assert!(self.stride >= depth);
        let values = panel.len() / size_of::<F::Value>();
        assert!(self.pixels.len() * self.stride + OVERRUN <= values);
        let from = self.arena.as_ptr().cast::<u8>();
        let to = panel.bytes_mut().as_mut_ptr().cast::<F::Value>();
        let one_to_one = self.window == Window::square(1, 1, 0);
        if one_to_one && self.input.is_dense() && self.stride == depth {
            let first = self.input.at(self.image, 0, 0) + self.pixels.start * depth;
            assert!(first + self.pixels.len() * depth <= self.input.end());
            // SAFETY: the run ends before the view does, `OVERRUN` before the arena does; the panel was checked above.
            unsafe { F::fetch(from.add(first), to, self.pixels.len() * depth) };
            return;
        }
        let (mut y, mut x) =
            (self.pixels.start / self.output_width, self.pixels.start % self.output_width);
        let inside = [self.inside(0), self.inside(1)];
        let (joined, count) = (self.is_joined(), self.pixels.len());
        let mut row = 0;
        while row < count {
            // SAFETY: row · stride + depth + OVERRUN lies in the panel for every row below `count`, checked above.
            let done = unsafe {
                let to = to.add(row * self.stride);
                if joined && inside[0].contains(&y) && inside[1].contains(&x) {
                    let done = (inside[1].end - x).min(count - row);
                    self.inner_pixels::<F>(from, to, y, x, done);
                    done
                } else {
                    self.pixel::<F>(from, to, y, x);
                    1
                }
            };
            (row, x) = (row + done, x + done);
            if x == self.output_width {
                (y, x) = (y + 1, 0);
            }
        }
    }

    /// Whether the taps of a kernel row are one run of bytes.
    fn is_joined(&self) -> bool {
        let [_, columns] = self.window.kernel;
        columns == 1 || (self.window.dilations[1] == 1 && self.input.has_dense_rows())
    }

    /// Output coordinates along an axis whose taps all lie in the picture.
    fn inside(&self, axis: usize) -> Range<usize> {
        let Window { kernel, strides, dilations, pads } = self.window;
        let extent = [self.input.shape.h, self.input.shape.w][axis];
        let reach = (kernel[axis] - 1) * dilations[axis] + 1;
        let first = pads[axis].div_ceil(strides[axis]);
        let end = (extent + pads[axis]).checked_sub(reach).map_or(0, |at| at / strides[axis] + 1);
        first..end
    }

    /// Pixels of one row whose taps all lie in the picture.
    ///
    /// # Safety
    /// As for [`Gather::pixel`], for each; `y` and the columns from `x` on are inside, and the taps of a kernel row are
    /// joined.
    #[inline(always)]
    unsafe fn inner_pixels<F: Fetch>(
        &self,
        from: *const u8,
        mut to: *mut F::Value,
        y: usize,
        x: usize,
        count: usize,
    ) {
        let Window { kernel, strides, dilations, pads } = self.window;
        let run = kernel[1] * self.input.shape.c;
        let (down, across) = (dilations[0] * self.input.row, strides[1] * self.input.pixel);
        let (top, left) = (y * strides[0] - pads[0], x * strides[1] - pads[1]);
        let mut first = self.input.at(self.image, top, left);
        if run <= OVERRUN {
            // The first layer of a net, above all: short runs cost more to count than to fetch.
            for _ in 0..count {
                // SAFETY: as below.
                unsafe {
                    // With a number of taps that the compiler knows, a third faster.
                    match kernel[0] {
                        3 => short_taps::<F>(from.add(first), to, down, run, 3),
                        taps => short_taps::<F>(from.add(first), to, down, run, taps),
                    }
                }
                first += across;
                to = to.wrapping_add(self.stride);
            }
            return;
        }
        for _ in 0..count {
            for tap in 0..kernel[0] {
                // SAFETY: the run lies in a row of the view, and the kernel rows fit at `to` one behind the other.
                unsafe { F::fetch(from.add(first + tap * down), to.add(tap * run), run) };
            }
            first += across;
            to = to.wrapping_add(self.stride);
        }
    }

    /// # Safety
    /// `to` has room for all taps and [`OVERRUN`] more; `from` is the arena, and the view ends [`OVERRUN`] before it.
    #[inline(always)]
    unsafe fn pixel<F: Fetch>(&self, from: *const u8, mut to: *mut F::Value, y: usize, x: usize) {
        let channels = self.input.shape.c;
        let padding = F::padding(self.zero_point);
        let [kernel_h, kernel_w] = self.window.kernel;
        let joined = self.is_joined();
        // Taps of this column that lie in the picture, when they are adjacent.
        let left = x * self.window.strides[1];
        let skipped = self.window.pads[1].saturating_sub(left).min(kernel_w);
        let first = (left + skipped).wrapping_sub(self.window.pads[1]);
        let inside = self.input.shape.w.saturating_sub(first).min(kernel_w - skipped);
        for tap in 0..kernel_h {
            let Some(row) = self.window.tap(0, y, tap, self.input.shape.h) else {
                // SAFETY: the taps of one kernel row fit at `to`.
                unsafe { to = fill(to, padding, kernel_w * channels) };
                continue;
            };
            if joined && inside > 0 {
                // SAFETY: columns first..first + inside lie in the row, and the three runs make one kernel row.
                unsafe {
                    to = fill(to, padding, skipped * channels);
                    F::fetch(
                        from.add(self.input.at(self.image, row, first)),
                        to,
                        inside * channels,
                    );
                    to = to.add(inside * channels);
                    to = fill(to, padding, (kernel_w - skipped - inside) * channels);
                }
                continue;
            }
            for tap in 0..kernel_w {
                // SAFETY: `tap` gives a column of the picture, and one tap's channels fit at `to`.
                unsafe {
                    match self.window.tap(1, x, tap, self.input.shape.w) {
                        None => to = fill(to, padding, channels),
                        Some(column) => {
                            let at = self.input.at(self.image, row, column);
                            F::fetch(from.add(at), to, channels);
                            to = to.add(channels);
                        }
                    }
                }
            }
        }
    }
}

/// The taps of a column: `run` bytes each, `down` apart.
///
/// # Safety
/// As for [`Fetch::short`], for each.
#[inline(always)]
unsafe fn short_taps<F: Fetch>(
    from: *const u8,
    to: *mut F::Value,
    down: usize,
    run: usize,
    taps: usize,
) {
    for tap in 0..taps {
        // SAFETY: by contract.
        unsafe { F::short(from.add(tap * down), to.add(tap * run), run) };
    }
}

/// Writes `length` values and returns the place behind them.
///
/// # Safety
/// `length` values are writable at `to`.
#[inline(always)]
unsafe fn fill<T: Copy>(to: *mut T, value: T, length: usize) -> *mut T {
    for at in 0..length {
        // SAFETY: at < length.
        unsafe { to.add(at).write(value) };
    }
    // SAFETY: one past the run at most.
    unsafe { to.add(length) }
}
