//! Where the values of a resized picture come from: two places and two weights per output row and column.
//!
//! As onnxruntime's CPU Resize computes them, in f32 in the same order.

use crate::operator::{Coordinates, Interpolation, NearestRounding, Resize};
use crate::tensor::Shape;

/// Sources of all rows and columns of the output.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sampling {
    pub(crate) rows: Vec<Source>,
    pub(crate) columns: Vec<Source>,
    bilinear: bool,
}

/// Two input coordinates and their weights; for nearest, the first alone counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Source {
    pub(crate) at: [usize; 2],
    pub(crate) weights: [f32; 2],
}

impl Sampling {
    pub(crate) fn new(resize: &Resize, input: Shape) -> Self {
        let axis = |axis: usize, extent: usize| {
            (0..resize.size[axis]).map(|at| source(resize, axis, at, extent)).collect()
        };
        Self {
            rows: axis(0, input.h),
            columns: axis(1, input.w),
            bilinear: resize.mode == Interpolation::Bilinear,
        }
    }

    /// One value: horizontally, then vertically, then cut towards zero.
    #[inline(always)]
    pub(crate) fn value(&self, y: usize, x: usize, at: impl Fn(usize, usize) -> i32) -> i32 {
        let (row, column) = (&self.rows[y], &self.columns[x]);
        if !self.bilinear {
            return at(row.at[0], column.at[0]);
        }
        let line = |y: usize| {
            column.weights[0] * at(y, column.at[0]) as f32
                + column.weights[1] * at(y, column.at[1]) as f32
        };
        (row.weights[0] * line(row.at[0]) + row.weights[1] * line(row.at[1])) as i32
    }

    /// One value on reals, the four neighbours in reading order, as onnxruntime's Resize on floats. Bilinear only.
    #[inline(always)]
    pub(crate) fn real(&self, y: usize, x: usize, at: impl Fn(usize, usize) -> f32) -> f32 {
        let (row, column) = (&self.rows[y], &self.columns[x]);
        let [near, far] = column.weights;
        let [up, down] = row.weights;
        near * up * at(row.at[0], column.at[0])
            + far * up * at(row.at[0], column.at[1])
            + near * down * at(row.at[1], column.at[0])
            + far * down * at(row.at[1], column.at[1])
    }
}

fn source(resize: &Resize, axis: usize, at: usize, extent: usize) -> Source {
    let scale = resize.scales[axis];
    let last = (extent - 1) as f32;
    let original = if scale == 1.0 {
        at as f32
    } else {
        match resize.coordinates {
            Coordinates::HalfPixel => (at as f32 + 0.5) / scale - 0.5,
            Coordinates::Asymmetric => at as f32 / scale,
            Coordinates::AlignCorners if resize.size[axis] == 1 => 0.0,
            Coordinates::AlignCorners => at as f32 * last / (resize.size[axis] - 1) as f32,
        }
    };
    match resize.mode {
        Interpolation::Nearest(rounding) => {
            let nearest = match rounding {
                NearestRounding::PreferFloor if original == original.floor() + 0.5 => {
                    original.floor()
                }
                NearestRounding::PreferFloor | NearestRounding::PreferCeil => original.round(),
                NearestRounding::Floor => original.floor(),
                NearestRounding::Ceil => original.ceil(),
            };
            let at = nearest.clamp(0.0, last) as usize;
            Source { at: [at; 2], weights: [1.0, 0.0] }
        }
        Interpolation::Bilinear => {
            let original = original.clamp(0.0, last);
            let first = (original as usize).min(extent - 1);
            let second = (first + 1).min(extent - 1);
            let (near, far) = (original - first as f32, second as f32 - original);
            let weights = if first == second { [0.5, 0.5] } else { [far, near] };
            Source { at: [first, second], weights }
        }
    }
}
