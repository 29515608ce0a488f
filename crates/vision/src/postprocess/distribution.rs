//! Maps of class logits and box distributions: what NanoDet gives, and YOLOv8 without its last layers.
//!
//! Each cell of each map proposes one box: for left, top, right and bottom a distribution over `bins` distances
//! from the cell's centre, in strides. The expectation is the distance (Generalised Focal Loss, Li et al. 2020, §3.2).

use std::sync::Arc;

use crate::Geometry;
use crate::tensor::{TensorSpec, TensorView};
use ocelli_protocol::message::Findings;

use super::boxes::{Boxes, Thresholds, logit, sigmoid};
use super::reals::{Outputs, Reals};
use super::shortlist::Entry;
use super::{Head, HeadError};

/// Where a map's channels are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Channels {
    /// First of one channel per class.
    pub(super) classes: usize,
    /// First of `4 * bins` channels: left, top, right, bottom.
    pub(super) sides: usize,
    /// Distances per side.
    pub(super) bins: usize,
}

#[derive(Debug, Clone, Copy)]
struct Grid {
    stride: f32,
    width: usize,
    height: usize,
}

/// Head over maps `1 x channels x H x W`, one per stride.
pub(super) struct DistributionMaps {
    outputs: Outputs,
    grids: Vec<Grid>,
    channels: Channels,
    classes: usize,
    threshold: f32,
    boxes: Boxes,
}

impl DistributionMaps {
    /// The caller has checked the shapes with [`verify_maps`].
    pub(super) fn new(
        head: &'static str,
        channels: Channels,
        strides: &[usize],
        thresholds: Thresholds,
        labels: Arc<[String]>,
        specs: &[TensorSpec],
    ) -> Result<Self, HeadError> {
        thresholds.verify(head)?;
        let grid = |(stride, spec): (&usize, &TensorSpec)| Grid {
            stride: *stride as f32,
            width: spec.shape[3],
            height: spec.shape[2],
        };
        Ok(Self {
            outputs: Outputs::new(head, specs)?,
            grids: strides.iter().zip(specs).map(grid).collect(),
            channels,
            classes: labels.len(),
            threshold: logit(thresholds.score),
            boxes: Boxes::new(labels, thresholds.iou),
        })
    }
}

impl Head for DistributionMaps {
    fn decode(
        &mut self,
        outputs: &[TensorView<'_>],
        geometry: &Geometry,
        findings: &mut Findings,
    ) -> Result<(), HeadError> {
        self.boxes.shortlist.clear();
        for (map, grid) in self.grids.iter().enumerate() {
            let values = self.outputs.reals(outputs, map)?;
            let area = grid.width * grid.height;
            let first = self.channels.classes * area;
            values.at_least(first..first + self.classes * area, self.threshold, |at, score| {
                let (class, cell) = (at / area, at % area);
                self.boxes.shortlist.push(Entry { score, class, map, cell });
            });
        }
        let (grids, channels, specs) = (&self.grids, self.channels, &self.outputs);
        let decode = |entry: &Entry| {
            let grid = grids[entry.map];
            let corners = specs
                .reals(outputs, entry.map)
                .map_or([f32::NAN; 4], |values| corners(&values, grid, channels, entry.cell));
            (sigmoid(entry.score), corners)
        };
        self.boxes.report(geometry, findings, decode, |_, _| {});
        Ok(())
    }
}

/// Left, top, right, bottom of a cell's box, input pixels.
fn corners(values: &Reals<'_>, grid: Grid, channels: Channels, cell: usize) -> [f32; 4] {
    let area = grid.width * grid.height;
    let distance = |side: usize| {
        let first = channels.sides + side * channels.bins;
        expectation(channels.bins, |bin| values.at((first + bin) * area + cell)) * grid.stride
    };
    let x = ((cell % grid.width) as f32 + 0.5) * grid.stride;
    let y = ((cell / grid.width) as f32 + 0.5) * grid.stride;
    [x - distance(0), y - distance(1), x + distance(2), y + distance(3)]
}

/// Expected bin under the softmax of `logit(bin)`; not a number when the logits are not.
fn expectation(bins: usize, logit: impl Fn(usize) -> f32) -> f32 {
    let largest = (0..bins).map(&logit).fold(f32::NEG_INFINITY, f32::max);
    let (mut sum, mut weighted) = (0.0, 0.0);
    for bin in 0..bins {
        let weight = (logit(bin) - largest).exp();
        sum += weight;
        weighted += weight * bin as f32;
    }
    weighted / sum
}

/// Checks number of maps, rank, batch and grid of each against the input and `strides`; gives the common number of
/// channels. `channels` says what is expected of it, for messages.
pub(super) fn verify_maps(
    head: &'static str,
    channels: &str,
    strides: &[usize],
    specs: &[TensorSpec],
    [width, height]: [usize; 2],
) -> Result<usize, HeadError> {
    if strides.is_empty() || strides.contains(&0) {
        let value = format!("{strides:?}");
        return Err(HeadError::setting(head, "strides", &value, "one number above 0 per output"));
    }
    let grid = |stride: &usize| [height.div_ceil(*stride), width.div_ceil(*stride)];
    let fits = |(stride, spec): (&usize, &TensorSpec)| match spec.shape[..] {
        [1, count, rows, columns] => count > 0 && [rows, columns] == grid(stride),
        _ => false,
    };
    let first = specs.first().and_then(|spec| spec.shape.get(1).copied());
    let same = specs.iter().all(|spec| spec.shape.get(1).copied() == first);
    match first {
        Some(count)
            if same && specs.len() == strides.len() && strides.iter().zip(specs).all(fits) =>
        {
            Ok(count)
        }
        _ => {
            let one = |stride: &usize| {
                let [rows, columns] = grid(stride);
                format!("[1, C, {rows}, {columns}] for stride {stride}")
            };
            let maps = strides.iter().map(one).collect::<Vec<_>>().join(", ");
            let count = strides.len();
            let expected = format!("{count} outputs {maps}, C = {channels}");
            Err(HeadError::outputs(head, expected, specs))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expectation_lies_where_the_weight_is() {
        let certain = [-50.0, -50.0, 50.0, -50.0];
        assert!((expectation(4, |bin| certain[bin]) - 2.0).abs() < 1e-6);
        assert!((expectation(11, |_| 3.0) - 5.0).abs() < 1e-6);
        assert!(expectation(2, |bin| [f32::NAN, 0.0][bin]).is_nan());
        assert!(expectation(2, |_| f32::INFINITY).is_nan());
        assert!(expectation(2, |_| f32::NEG_INFINITY).is_nan());
    }
}
