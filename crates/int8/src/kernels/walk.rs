//! Windows taken where they lie: nothing is gathered, a multiplication walks through the arena instead.
//!
//! The output pixels of a row lie at equal distances in the input, and so do their taps: each row of taps, or each tap, is a run of
//! bytes as far from the pixel's first tap as for every other pixel.

use std::borrow::Cow;
use std::ops::Range;

use crate::operator::Window;
use crate::view::View;

/// Output pixels at equal distances in the input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    /// First tap of the first one in the arena.
    pub(crate) first: usize,
    pub(crate) rows: usize,
}

/// The taps of any pixel: runs of bytes, each so far from the first one.
#[derive(Debug)]
pub(crate) struct Taps {
    pub(crate) starts: Vec<usize>,
    /// Bytes of each run, rounded up to what a kernel multiplies at once.
    pub(crate) run: usize,
}

impl Taps {
    /// Of a window on some channels of a view, in steps of so many bytes. None where the steps would have too much to round up.
    pub(crate) fn new(window: &Window, view: &View, step: usize) -> Option<Self> {
        let Window { kernel: [rows, columns], dilations, .. } = window;
        let (down, across) = (dilations[0] * view.row, dilations[1] * view.pixel);
        let joined = *columns == 1 || across == view.shape.c;
        let (runs, taps) = if joined { (1, *columns) } else { (*columns, 1) };
        let starts = (0..*rows).flat_map(|y| (0..runs).map(move |x| y * down + x * across));
        let run = taps * view.shape.c;
        fills(run, step).then(|| Self { starts: starts.collect(), run: run.next_multiple_of(step) })
    }

    /// Weights of whole channels, `depth` each, with zeros for what is rounded up.
    pub(crate) fn spread<'w>(&self, weights: &'w [i8], depth: usize) -> Cow<'w, [i8]> {
        let given = depth / self.starts.len();
        if given == self.run {
            return Cow::Borrowed(weights);
        }
        let mut spread = vec![0; weights.len() / given * self.run];
        for (to, from) in spread.chunks_exact_mut(self.run).zip(weights.chunks_exact(given)) {
            to[..given].copy_from_slice(from);
        }
        Cow::Owned(spread)
    }
}

/// Whether runs of so many bytes are not much less than whole steps. If so, that is true of any multiple as well.
pub(crate) fn fills(run: usize, step: usize) -> bool {
    run.next_multiple_of(step) * 3 <= run * 4
}

/// What a multiplication walks through.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Walk<'a> {
    pub(crate) spans: &'a [Span],
    pub(crate) taps: &'a Taps,
    /// Whether sign bits are flipped on the way, because the other type is multiplied.
    pub(crate) flips: bool,
}

/// The rows of a multiplication, walked through or not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way<'a> {
    pub(crate) spans: &'a [Span],
    pub(crate) starts: &'a [usize],
    pub(crate) run: usize,
    pub(crate) flips: bool,
}

impl<'a> Way<'a> {
    /// A gathered panel is one span of so many rows, `all`, whose taps are one run of `depth`.
    pub(crate) fn new(walk: Option<&Walk<'a>>, all: &'a [Span; 1], depth: usize) -> Self {
        match walk {
            None => Self { spans: all, starts: &[0], run: depth, flips: false },
            Some(&Walk { spans, taps, flips }) => {
                Self { spans, starts: &taps.starts, run: taps.run, flips }
            }
        }
    }
}

/// Bytes from one output pixel's taps to the next one's; pixels of a single column lie below each other.
pub(crate) fn stride(window: &Window, input: &View, output_width: usize) -> usize {
    match output_width {
        1 => window.strides[0] * input.row,
        _ => window.strides[1] * input.pixel,
    }
}

/// Spans of some output pixels, counted row by row. Pads are memory, so the view stands within a border. Allocates nothing as long as
/// there is room.
pub(crate) fn fill(
    spans: &mut Vec<Span>,
    window: &Window,
    input: &View,
    image: usize,
    output_width: usize,
    pixels: Range<usize>,
) {
    let Window { strides, pads, .. } = window;
    spans.clear();
    let pad = pads[0] * input.row + pads[1] * input.pixel;
    let place = |y: usize, x: usize| {
        let place = input.at(image, y * strides[0], x * strides[1]).checked_sub(pad);
        place.expect("the border holds the pads")
    };
    let one_to_one = *window == Window::square(1, 1, 0);
    let follow = output_width == 1 || one_to_one && input.row == input.shape.w * input.pixel;
    let width = if follow { pixels.end } else { output_width };
    let mut pixel = pixels.start;
    while pixel < pixels.end {
        let rows = (width - pixel % width).min(pixels.end - pixel);
        let first = place(pixel / output_width, pixel % output_width);
        spans.push(Span { first, rows });
        pixel += rows;
    }
}
