//! The samples of a frame: which planes it has, where each channel's samples lie, and whether they are all there.

use super::fit::Area;
use crate::frame::{Frame, PixelFormat};

/// Layout of an uncompressed picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Rgb,
    Gray,
    Yuyv,
    Nv12,
}

/// Samples of one channel within the rows of a plane: `offset`, `offset + step`, ….
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Channel {
    pub(super) plane: usize,
    pub(super) step: usize,
    pub(super) offset: usize,
    /// Pixels per sample, across.
    pub(super) columns: Sampling,
}

/// How many pixels share a sample along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sampling {
    Full,
    Half,
}

impl Sampling {
    /// Samples for that many pixels; an odd last pixel has a sample of its own.
    pub(super) fn samples(self, pixels: usize) -> usize {
        match self {
            Self::Full => pixels,
            Self::Half => pixels.div_ceil(2),
        }
    }
}

impl Layout {
    /// Channels: red, green, blue; luma; or Y, U, V.
    pub(super) fn channels(self) -> &'static [Channel] {
        const fn channel(plane: usize, step: usize, offset: usize, columns: Sampling) -> Channel {
            Channel { plane, step, offset, columns }
        }
        const RGB: [Channel; 3] = [
            channel(0, 3, 0, Sampling::Full),
            channel(0, 3, 1, Sampling::Full),
            channel(0, 3, 2, Sampling::Full),
        ];
        const GRAY: [Channel; 1] = [channel(0, 1, 0, Sampling::Full)];
        const YUYV: [Channel; 3] = [
            channel(0, 2, 0, Sampling::Full),
            channel(0, 4, 1, Sampling::Half),
            channel(0, 4, 3, Sampling::Half),
        ];
        const NV12: [Channel; 3] = [
            channel(0, 1, 0, Sampling::Full),
            channel(1, 2, 0, Sampling::Half),
            channel(1, 2, 1, Sampling::Half),
        ];
        match self {
            Self::Rgb => &RGB,
            Self::Gray => &GRAY,
            Self::Yuyv => &YUYV,
            Self::Nv12 => &NV12,
        }
    }

    /// Pixels per row of samples, down, for each plane.
    pub(super) fn planes(self) -> &'static [Sampling] {
        match self {
            Self::Rgb | Self::Gray | Self::Yuyv => &[Sampling::Full],
            Self::Nv12 => &[Sampling::Full, Sampling::Half],
        }
    }

    /// Bytes of that many pixels of a row; an odd pixel takes a whole pair where two share samples.
    pub(super) fn row_bytes(self, plane: usize, pixels: usize) -> usize {
        match (self, plane) {
            (Self::Rgb, _) => pixels * 3,
            (Self::Gray, _) | (Self::Nv12, 0) => pixels,
            (Self::Yuyv, _) => pixels.div_ceil(2) * 4,
            (Self::Nv12, _) => pixels.div_ceil(2) * 2,
        }
    }
}

/// An uncompressed picture, checked: every row of every plane is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) layout: Layout,
    pub(super) width: usize,
    pub(super) height: usize,
    data: &'a [u8],
    stride: usize,
}

impl<'a> Source<'a> {
    /// The picture of an uncompressed frame.
    ///
    /// # Errors
    /// What is wrong, as a clause.
    pub(super) fn of_frame(frame: &'a Frame) -> Result<Self, String> {
        let layout = match frame.format {
            PixelFormat::Rgb24 => Layout::Rgb,
            PixelFormat::Gray8 => Layout::Gray,
            PixelFormat::Yuyv => Layout::Yuyv,
            PixelFormat::Nv12 => Layout::Nv12,
            PixelFormat::Mjpeg => return Err("it is compressed".to_owned()),
        };
        Self::new(layout, frame.width, frame.height, frame.stride, &frame.data)
    }

    /// A picture in memory.
    ///
    /// # Errors
    /// What is wrong, as a clause.
    pub(super) fn new(
        layout: Layout,
        width: usize,
        height: usize,
        stride: usize,
        data: &'a [u8],
    ) -> Result<Self, String> {
        const LONGEST_SIDE: usize = 1 << 16;
        if width == 0 || height == 0 || width > LONGEST_SIDE || height > LONGEST_SIDE {
            return Err(format!("it is {width}x{height} pixels, each side is 1 to {LONGEST_SIDE}"));
        }
        let row = (0..layout.planes().len()).map(|plane| layout.row_bytes(plane, width)).max();
        let row = row.unwrap_or(0);
        if stride < row {
            return Err(format!("its stride is {stride} bytes, {width} pixels take {row}"));
        }
        let rows: usize = layout.planes().iter().map(|plane| plane.samples(height)).sum();
        // Nothing has to follow the last row.
        let needed = (rows - 1).checked_mul(stride).and_then(|bytes| bytes.checked_add(row));
        if needed.is_none_or(|needed| data.len() < needed) {
            let length = data.len();
            return Err(format!(
                "it has {length} bytes, {width}x{height} pixels at a stride of {stride} take {}",
                needed.map_or("more than memory".to_owned(), |needed| needed.to_string())
            ));
        }
        Ok(Self { layout, width, height, data, stride })
    }

    /// The samples of one plane from the left top corner of `area` on, which must be even, and bytes between rows.
    pub(super) fn plane(&self, plane: usize, area: &Area) -> (&'a [u8], usize) {
        let above = match plane {
            0 => area.top,
            _ => self.height + area.top / 2,
        };
        let left = self.layout.row_bytes(plane, area.left);
        (&self.data[above * self.stride + left..], self.stride)
    }

    /// The channels of one pixel; 0 for those that the layout lacks.
    pub(super) fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let mut pixel = [0; 3];
        for (value, channel) in pixel.iter_mut().zip(self.layout.channels()) {
            let rows = if channel.plane == 0 { y } else { self.height + y / 2 };
            let column = match channel.columns {
                Sampling::Full => x,
                Sampling::Half => x / 2,
            };
            *value = self.data[rows * self.stride + column * channel.step + channel.offset];
        }
        pixel
    }
}
