//! How a picture is fitted into the model's input: which part of it is taken, and where that lies.

use ocelli_protocol::manifest::{Anchor, Input, Resize};

use crate::Geometry;

/// Part of the source picture that is taken, and the part of the input that it fills, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fit {
    pub(super) source: Area,
    pub(super) target: Area,
}

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Area {
    pub(super) left: usize,
    pub(super) top: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

impl Fit {
    /// Fits a picture of `width` x `height` as the manifest says.
    pub(super) fn new(input: &Input, width: usize, height: usize) -> Self {
        let whole = |width, height| Area { left: 0, top: 0, width, height };
        let (source, target) = (whole(width, height), whole(input.width, input.height));
        match input.resize {
            Resize::Stretch => Self { source, target },
            Resize::Letterbox => Self { source, target: letterbox(input, width, height) },
            Resize::Crop => Self { source: centre_crop(input, width, height), target },
        }
    }

    /// The same for the heads, which turn boxes back.
    pub(super) fn geometry(&self, width: usize, height: usize) -> Geometry {
        let scale_x = self.target.width as f32 / self.source.width as f32;
        let scale_y = self.target.height as f32 / self.source.height as f32;
        Geometry {
            scale_x,
            scale_y,
            offset_x: self.target.left as f32 - self.source.left as f32 * scale_x,
            offset_y: self.target.top as f32 - self.source.top as f32 * scale_y,
            source_width: width,
            source_height: height,
        }
    }
}

/// Python's `round(side * min(S / w, S / h))`, ties to even; at least one pixel.
fn letterbox(input: &Input, width: usize, height: usize) -> Area {
    let scale = (input.width as f64 / width as f64).min(input.height as f64 / height as f64);
    let side = |source: usize, limit: usize| {
        ((source as f64 * scale).round_ties_even() as usize).max(1).min(limit)
    };
    let (fitted_width, fitted_height) = (side(width, input.width), side(height, input.height));
    let (left, top) = match input.anchor.unwrap_or_default() {
        Anchor::TopLeft => (0, 0),
        Anchor::Center => ((input.width - fitted_width) / 2, (input.height - fitted_height) / 2),
    };
    Area { left, top, width: fitted_width, height: fitted_height }
}

/// A square of `int(crop_fraction * short side)`, its corner at `(side - square + 1) // 2`.
fn centre_crop(input: &Input, width: usize, height: usize) -> Area {
    // A fraction such as 240/272 is not exact in the manifest: what misses a whole pixel by less counts as whole.
    const SLACK: f64 = 0.0005;
    let short = width.min(height);
    let fraction = f64::from(input.crop_fraction.unwrap_or(1.0));
    let square = ((fraction * short as f64 + SLACK) as usize).max(1).min(short);
    Area {
        left: (width - square).div_ceil(2),
        top: (height - square).div_ceil(2),
        width: square,
        height: square,
    }
}
