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

    /// Whether four neighbours count, not one.
    pub(crate) fn is_bilinear(&self) -> bool {
        self.bilinear
    }

    /// Rows and columns of the neighbours of an output pixel, in reading order. For nearest, the first alone counts.
    #[inline(always)]
    pub(crate) fn neighbours(&self, y: usize, x: usize) -> [[usize; 2]; 4] {
        let ([up, down], [near, far]) = (self.rows[y].at, self.columns[x].at);
        [[up, near], [up, far], [down, near], [down, far]]
    }

    /// Weights of an output pixel.
    #[inline(always)]
    pub(crate) fn corners(&self, y: usize, x: usize) -> Corners {
        Corners { rows: self.rows[y].weights, columns: self.columns[x].weights }
    }
}

/// How four neighbours are blended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Corners {
    pub(crate) rows: [f32; 2],
    pub(crate) columns: [f32; 2],
}

impl Corners {
    /// Of stored values: horizontally, then vertically, then cut towards zero.
    #[inline(always)]
    pub(crate) fn stored(&self, [a, b, c, d]: [f32; 4]) -> i32 {
        let ([up, down], [near, far]) = (self.rows, self.columns);
        (up * (near * a + far * b) + down * (near * c + far * d)) as i32
    }

    /// Of real values, in reading order, as onnxruntime's Resize on floats.
    #[inline(always)]
    pub(crate) fn real(&self, [a, b, c, d]: [f32; 4]) -> f32 {
        let ([up, down], [near, far]) = (self.rows, self.columns);
        near * up * a + far * up * b + near * down * c + far * down * d
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
