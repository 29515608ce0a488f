//! What element-wise kernels are given: runs of bytes at equal distances, alone or under windows.

use crate::kernels::Run;
use crate::resize::Source;

/// Several runs of bytes, at equal distances in each of `N` places: inputs first, output last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Runs<const N: usize = 2> {
    pub(crate) length: usize,
    pub(crate) count: usize,
    /// From one run to the next.
    pub(crate) steps: [usize; N],
}

impl<const N: usize> Runs<N> {
    /// Panics unless all runs lie within all places.
    pub(crate) fn check(&self, places: [Run<'_>; N]) {
        for (place, step) in places.into_iter().zip(self.steps) {
            assert!(self.end(step) <= place.len());
        }
    }

    /// One past the last byte.
    fn end(&self, step: usize) -> usize {
        self.count.checked_sub(1).map_or(0, |last| last * step + self.length)
    }
}

/// Windows with the same taps along a row: each run of the output comes from one run of the input for each tap.
#[derive(Debug)]
pub(crate) struct Windows<'a> {
    pub(crate) x: Run<'a>,
    /// Where the first window's taps lie; at least one.
    pub(crate) taps: &'a [usize],
    pub(crate) y: Run<'a>,
    pub(crate) runs: Runs,
}

impl Windows<'_> {
    /// Panics unless all taps of all windows, and all outputs, are there.
    pub(crate) fn check(&self) {
        let last = self.taps.iter().max().expect("a window has a tap");
        self.runs.check([&self.x[*last..], self.y]);
    }
}

/// A row of pixels, each between four: two of a row above, two of a row below.
#[derive(Debug)]
pub(crate) struct Blend<'a> {
    pub(crate) rows: [&'a [f32]; 2],
    /// No value of the rows is further from zero.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for x86"))]
    pub(crate) greatest: f32,
    /// Of the rows.
    pub(crate) weights: [f32; 2],
    pub(crate) columns: &'a [Source],
    pub(crate) channels: usize,
    /// From one pixel of the output to the next.
    pub(crate) step: usize,
}

impl Blend<'_> {
    /// Panics unless all neighbours are in both rows, and all pixels in the output.
    pub(crate) fn check(&self, y: Run<'_>) {
        let runs = Runs { length: self.channels, count: self.columns.len(), steps: [self.step] };
        runs.check([y]);
        let values = self.rows[0].len().min(self.rows[1].len());
        let inside = |at: usize| at < values && (at + 1) * self.channels <= values;
        assert!(self.columns.iter().flat_map(|column| column.at).all(inside));
    }
}
