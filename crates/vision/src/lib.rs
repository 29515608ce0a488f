//! From picture to tensor, and from tensors to findings. Knows neither cameras nor how a model runs.
//!
//! A package of its own so that the device binary can be small and its loops over pixels fast: they are optimised for speed,
//! the agent for size.

pub mod annotate;
pub mod frame;
mod jpeg;
pub mod nms;
mod picture;
pub mod postprocess;
pub mod preprocess;
pub mod tensor;

use ocelli_protocol::message::BoundingBox;

/// Where the source picture lies in the model's input, in input pixels.
///
/// `source_x = (input_x - offset_x) / scale_x`, and the same for y.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Geometry {
    /// Input pixels per source pixel, horizontally.
    pub scale_x: f32,
    /// Input pixels per source pixel, vertically.
    pub scale_y: f32,
    /// Left edge of the source picture in the input; negative when it is cropped.
    pub offset_x: f32,
    /// Top edge of the source picture in the input.
    pub offset_y: f32,
    /// Width of the source picture, pixels.
    pub source_width: usize,
    /// Height of the source picture, pixels.
    pub source_height: usize,
}

impl Geometry {
    /// A point of the input in parts of the source picture, not clamped.
    #[must_use]
    pub fn normalise(&self, x: f32, y: f32) -> [f32; 2] {
        [
            (x - self.offset_x) / self.scale_x / self.source_width as f32,
            (y - self.offset_y) / self.scale_y / self.source_height as f32,
        ]
    }

    /// A box of the input (left, top, right, bottom) in parts of the source picture, clamped to it.
    #[must_use]
    pub fn normalise_box(&self, [left, top, right, bottom]: [f32; 4]) -> BoundingBox {
        let [x0, y0] = self.normalise(left, top).map(|value| value.clamp(0.0, 1.0));
        let [x1, y1] = self.normalise(right, bottom).map(|value| value.clamp(0.0, 1.0));
        BoundingBox { x: x0, y: y0, w: x1 - x0, h: y1 - y0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letterboxed_box_returns_to_the_source_picture() {
        // 1280x720 in 416x416, top left: scale 0.325.
        let geometry = Geometry {
            scale_x: 0.325,
            scale_y: 0.325,
            offset_x: 0.0,
            offset_y: 0.0,
            source_width: 1280,
            source_height: 720,
        };
        let found = geometry.normalise_box([208.0, 117.0, 500.0, 234.0]);
        assert!((found.x - 0.5).abs() < 1e-6 && (found.y - 0.5).abs() < 1e-6, "{found:?}");
        assert!((found.w - 0.5).abs() < 1e-6 && (found.h - 0.5).abs() < 1e-6, "{found:?}");
    }
}
