//! Samples at the input's size to tensor values: colour, mean and standard deviation, quantisation.

use ocelli_protocol::manifest::{Color, Input};

use super::fit::Area;
use super::plan::CHANNELS;
use super::source::Layout;
use crate::tensor::{ElementType, Quantisation, ValuesMut};

/// Writes rows of pixels into a tensor.
#[derive(Debug)]
pub(super) struct Normaliser {
    width: usize,
    height: usize,
    color: Color,
    fill: f32,
    scaling: [Scaling; CHANNELS],
    quantisation: Option<Quantisation>,
    /// One row of each channel, 0 to 255, in the tensor's channel order.
    row: [Vec<f32>; CHANNELS],
}

/// `(value - mean) / std` of a channel.
#[derive(Debug, Clone, Copy)]
struct Scaling {
    mean: f32,
    gain: f32,
}

impl Scaling {
    fn apply(self, value: f32) -> f32 {
        (value - self.mean) * self.gain
    }
}

impl Normaliser {
    pub(super) fn new(input: &Input, quantisation: Option<Quantisation>) -> Self {
        let value = |list: &[f32], at: usize, default| list.get(at).copied().unwrap_or(default);
        let scaling = |channel| Scaling {
            mean: value(&input.mean, channel, 0.0),
            gain: 1.0 / value(&input.std, channel, 1.0),
        };
        Self {
            width: input.width,
            height: input.height,
            color: input.color,
            fill: f32::from(input.fill.unwrap_or(0)),
            scaling: std::array::from_fn(scaling),
            quantisation,
            row: std::array::from_fn(|_| vec![0.0; input.width]),
        }
    }

    /// Channels of the tensor.
    pub(super) fn channels(&self) -> usize {
        match self.color {
            Color::Rgb | Color::Bgr => 3,
            Color::Gray => 1,
        }
    }

    /// Whether values of that type can be written.
    pub(super) fn writes(&self, element: ElementType) -> bool {
        match element {
            ElementType::F32 => true,
            ElementType::U8 | ElementType::I8 => self.quantisation.is_some(),
            ElementType::I32 | ElementType::I64 => false,
        }
    }

    /// Names the types that can be written.
    pub(super) fn elements(&self) -> &'static str {
        if self.quantisation.is_some() { "f32, u8 or i8" } else { "f32" }
    }

    /// Writes row `row` of the area `target` from its samples.
    pub(super) fn write_row(
        &mut self,
        layout: Layout,
        samples: [&[u8]; CHANNELS],
        (target, row): (&Area, usize),
        values: &mut ValuesMut<'_>,
    ) {
        to_color(layout, self.color, samples, &mut self.row);
        let begin = (target.top + row) * self.width + target.left;
        for channel in 0..self.channels() {
            let begin = channel * self.width * self.height + begin;
            let pixels = &self.row[channel][..target.width];
            let (scaling, range) = (self.scaling[channel], begin..begin + target.width);
            match (&mut *values, self.quantisation) {
                (ValuesMut::F32(values), _) => {
                    for (value, &pixel) in values[range].iter_mut().zip(pixels) {
                        *value = scaling.apply(pixel);
                    }
                }
                (ValuesMut::U8(values), Some(quantisation)) => {
                    for (value, &pixel) in values[range].iter_mut().zip(pixels) {
                        *value = quantise(scaling.apply(pixel), quantisation, 0.0, 255.0) as u8;
                    }
                }
                (ValuesMut::I8(values), Some(quantisation)) => {
                    for (value, &pixel) in values[range].iter_mut().zip(pixels) {
                        *value = quantise(scaling.apply(pixel), quantisation, -128.0, 127.0) as i8;
                    }
                }
                _ => {}
            }
        }
    }

    /// Fills everything around the area `target`.
    pub(super) fn write_border(&self, target: &Area, values: &mut ValuesMut<'_>) {
        let right = target.left + target.width;
        for channel in 0..self.channels() {
            let plane = channel * self.width * self.height;
            let mut filled = plane;
            for row in target.top..target.top + target.height {
                self.fill(channel, filled..plane + row * self.width + target.left, values);
                filled = plane + row * self.width + right;
            }
            self.fill(channel, filled..plane + self.width * self.height, values);
        }
    }

    fn fill(&self, channel: usize, range: std::ops::Range<usize>, values: &mut ValuesMut<'_>) {
        let value = self.scaling[channel].apply(self.fill);
        match (values, self.quantisation) {
            (ValuesMut::F32(values), _) => values[range].fill(value),
            (ValuesMut::U8(values), Some(quantisation)) => {
                values[range].fill(quantise(value, quantisation, 0.0, 255.0) as u8);
            }
            (ValuesMut::I8(values), Some(quantisation)) => {
                values[range].fill(quantise(value, quantisation, -128.0, 127.0) as i8);
            }
            _ => {}
        }
    }
}

/// ONNX QuantizeLinear: `saturate(round(value / scale) + zero_point)`, halves to even.
fn quantise(value: f32, quantisation: Quantisation, lowest: f32, highest: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves no bits for a fraction, so the sum is rounded as the processor rounds: halves to even.
    const ROUND: f32 = 12_582_912.0;
    let zero = quantisation.zero_point as f32;
    let steps = (value / quantisation.scale).clamp(lowest - zero, highest - zero);
    ((steps + ROUND) - ROUND) + zero
}

/// Samples to pixels of 0 to 255, not rounded, in the tensor's channel order.
fn to_color(
    layout: Layout,
    color: Color,
    [first, second, third]: [&[u8]; CHANNELS],
    [red, green, blue]: &mut [Vec<f32>; CHANNELS],
) {
    let (red, blue) = match color {
        Color::Rgb | Color::Gray => (red, blue),
        Color::Bgr => (blue, red),
    };
    match (layout, color) {
        (Layout::Rgb, Color::Gray) => {
            for (((gray, &r), &g), &b) in red.iter_mut().zip(first).zip(second).zip(third) {
                *gray = luma(f32::from(r), f32::from(g), f32::from(b));
            }
        }
        (Layout::Rgb, Color::Rgb | Color::Bgr) => {
            for (row, samples) in [(red, first), (green, second), (blue, third)] {
                widen(samples, row);
            }
        }
        (Layout::Gray, Color::Gray) => widen(first, red),
        (Layout::Gray, Color::Rgb | Color::Bgr) => {
            for row in [red, green, blue] {
                widen(first, row);
            }
        }
        (Layout::Yuyv | Layout::Nv12, Color::Gray) => {
            for (gray, &y) in red.iter_mut().zip(first) {
                *gray = full_range(y).clamp(0.0, 255.0);
            }
        }
        (Layout::Yuyv | Layout::Nv12, Color::Rgb | Color::Bgr) => {
            let samples = first.iter().zip(second).zip(third);
            let pixels = red.iter_mut().zip(green).zip(blue);
            for (((red, green), blue), ((&y, &u), &v)) in pixels.zip(samples) {
                [*red, *green, *blue] = bt601(y, u, v);
            }
        }
    }
}

fn widen(samples: &[u8], row: &mut [f32]) {
    for (value, &sample) in row.iter_mut().zip(samples) {
        *value = f32::from(sample);
    }
}

/// Luma of ITU-R BT.601, as Pillow's mode L.
fn luma(red: f32, green: f32, blue: f32) -> f32 {
    0.299 * red + 0.587 * green + 0.114 * blue
}

/// Luma of limited range (16 to 235) at full range.
fn full_range(y: u8) -> f32 {
    (f32::from(y) - 16.0) * (255.0 / 219.0)
}

/// ITU-R BT.601, limited range, to red, green, blue.
pub(super) fn bt601(y: u8, u: u8, v: u8) -> [f32; 3] {
    // 2 * (1 - Kr), 2 * (1 - Kb) and their shares of green, with Kr = 0.299, Kb = 0.114, for chroma of 16 to 240.
    const CHROMA: f32 = 255.0 / 224.0;
    const RED: f32 = 1.402 * CHROMA;
    const BLUE: f32 = 1.772 * CHROMA;
    const GREEN_U: f32 = 1.772 * 0.114 / 0.587 * CHROMA;
    const GREEN_V: f32 = 1.402 * 0.299 / 0.587 * CHROMA;
    let (y, u, v) = (full_range(y), f32::from(u) - 128.0, f32::from(v) - 128.0);
    [y + RED * v, y - GREEN_U * u - GREEN_V * v, y + BLUE * u].map(|value| value.clamp(0.0, 255.0))
}
