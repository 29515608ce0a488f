//! Everything that depends on a source picture's layout and size: filters, and the scratch memory to apply them.

use ocelli_protocol::manifest::Input;

use super::fit::{Area, Fit};
use super::resample::{Filter, LANES, Spans, rows_to_tile, tile_to_rows};
use super::source::{Layout, Sampling, Source};

/// Most channels a picture has.
pub(super) const CHANNELS: usize = 3;

/// Resamples pictures of one layout and size to the part of the input that they fill.
#[derive(Debug)]
pub(super) struct Plan {
    layout: Layout,
    width: usize,
    height: usize,
    pub(super) fit: Fit,
    /// What is read: the fit's source area, its corner moved to even pixels, where shared samples begin.
    region: Area,
    columns: Axis,
    rows: Axis,
    /// Some rows of a plane at the input's height and the source's width.
    strip: Vec<u8>,
    tile: Vec<[u8; LANES]>,
    narrow_tile: Vec<[u8; LANES]>,
    /// Rows of each channel at the input's width.
    channels: [Vec<u8>; CHANNELS],
    /// One row of each channel at the input's width and height.
    row: [Vec<u8>; CHANNELS],
}

/// The filters of one axis: for samples of one pixel, and for samples that two pixels share.
#[derive(Debug)]
struct Axis {
    full: Filter,
    half: Filter,
}

impl Axis {
    fn filter(&self, sampling: Sampling) -> &Filter {
        match sampling {
            Sampling::Full => &self.full,
            Sampling::Half => &self.half,
        }
    }
}

/// Which axis is resampled first. The results differ by rounding only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// As Pillow does it, so that decoded pictures give its values.
    ColumnsFirst,
    /// Faster when shrinking: rows are summed as they lie in memory, and few are left to turn on their side.
    RowsFirst,
}

impl Order {
    fn of(layout: Layout) -> Self {
        match layout {
            Layout::Rgb | Layout::Gray => Self::ColumnsFirst,
            Layout::Yuyv | Layout::Nv12 => Self::RowsFirst,
        }
    }
}

impl Plan {
    pub(super) fn new(input: &Input, source: &Source<'_>) -> Self {
        let Source { layout, width, height, .. } = *source;
        let fit = Fit::new(input, width, height);
        let Area { left, top, .. } = fit.source;
        let region = Area {
            left: left & !1,
            top: top & !1,
            width: left % 2 + fit.source.width,
            height: top % 2 + fit.source.height,
        };
        let axis = |start, length, outputs| {
            let spans = Spans::new(input.interpolation, start, length, outputs);
            Axis { half: Filter::new(&spans.halved()), full: Filter::new(&spans) }
        };
        let target = fit.target;
        let widest = (0..layout.planes().len()).map(|plane| layout.row_bytes(plane, region.width));
        let widest = widest.max().unwrap_or(0);
        let (strip_rows, kept_rows) = match Order::of(layout) {
            Order::ColumnsFirst => (0, region.height),
            Order::RowsFirst => (LANES, LANES),
        };
        let rows_of = |rows: usize| {
            let count = layout.channels().len();
            std::array::from_fn(|at| if at < count { vec![0; rows * target.width] } else { vec![] })
        };
        Self {
            layout,
            width,
            height,
            fit,
            region,
            columns: axis(left % 2, fit.source.width, target.width),
            rows: axis(top % 2, fit.source.height, target.height),
            strip: vec![0; strip_rows * widest],
            tile: vec![[0; LANES]; widest],
            narrow_tile: vec![[0; LANES]; target.width],
            channels: rows_of(kept_rows),
            row: rows_of(1),
        }
    }

    /// Whether the plan was made for such a picture.
    pub(super) fn fits(&self, source: &Source<'_>) -> bool {
        (self.layout, self.width, self.height) == (source.layout, source.width, source.height)
    }

    /// Resamples the picture; `emit` gets each row of the fit's target area with its number from the area's top,
    /// one slice a channel, empty for channels that the layout lacks.
    pub(super) fn resample(
        &mut self,
        source: &Source<'_>,
        emit: impl FnMut(usize, [&[u8]; CHANNELS]),
    ) {
        match Order::of(self.layout) {
            Order::ColumnsFirst => self.resample_columns_first(source, emit),
            Order::RowsFirst => self.resample_rows_first(source, emit),
        }
    }

    fn resample_columns_first(
        &mut self,
        source: &Source<'_>,
        mut emit: impl FnMut(usize, [&[u8]; CHANNELS]),
    ) {
        let (samples, stride) = source.plane(0, &self.region);
        for top in (0..self.region.height).step_by(LANES) {
            let rows = LANES.min(self.region.height - top);
            let bytes = self.layout.row_bytes(0, self.region.width);
            rows_to_tile(&samples[top * stride..], stride, rows, bytes, &mut self.tile);
            self.sum_columns(0, rows, top);
        }
        let (count, width) = (self.layout.channels().len(), self.fit.target.width);
        for row in 0..self.fit.target.height {
            for (kept, result) in self.channels.iter().zip(&mut self.row).take(count) {
                self.rows.full.sum_rows(row, kept, width, result);
            }
            emit(row, self.row.each_ref().map(Vec::as_slice));
        }
    }

    fn resample_rows_first(
        &mut self,
        source: &Source<'_>,
        mut emit: impl FnMut(usize, [&[u8]; CHANNELS]),
    ) {
        let target = self.fit.target;
        for top in (0..target.height).step_by(LANES) {
            let rows = LANES.min(target.height - top);
            for (plane, &sampling) in self.layout.planes().iter().enumerate() {
                let (samples, stride) = source.plane(plane, &self.region);
                let bytes = self.layout.row_bytes(plane, self.region.width);
                let filter = self.rows.filter(sampling);
                for (row, result) in self.strip.chunks_exact_mut(bytes).take(rows).enumerate() {
                    filter.sum_rows(top + row, samples, stride, result);
                }
                rows_to_tile(&self.strip, bytes, rows, bytes, &mut self.tile);
                self.sum_columns(plane, rows, 0);
            }
            for row in 0..rows {
                let slices = self
                    .channels
                    .each_ref()
                    .map(|channel| channel.chunks_exact(target.width).nth(row).unwrap_or_default());
                emit(top + row, slices);
            }
        }
    }

    /// Resamples the columns of `rows` rows in the tile into the rows of each of the plane's channels from `top` on.
    fn sum_columns(&mut self, plane: usize, rows: usize, top: usize) {
        let width = self.fit.target.width;
        for (channel, kept) in self.layout.channels().iter().zip(&mut self.channels) {
            if channel.plane == plane {
                let filter = self.columns.filter(channel.columns);
                filter.sum_columns(&self.tile, channel.step, channel.offset, &mut self.narrow_tile);
                tile_to_rows(&self.narrow_tile, rows, width, &mut kept[top * width..]);
            }
        }
    }
}
