//! CenterFace: faces with five landmarks from maps at stride 4 (github.com/Star-Clouds/CenterFace, MIT).
//!
//! Per cell: a heat (the probability of a face's centre), the logarithm of height and width in strides, the centre's
//! offset in cells, and landmarks in parts of the box. Every pair is vertical first, horizontal second.

use std::sync::Arc;

use crate::Geometry;
use crate::nms::Candidate;
use crate::tensor::{TensorSpec, TensorView};
use ocelli_protocol::message::Findings;

use super::boxes::{Boxes, Thresholds};
use super::reals::{Outputs, Reals};
use super::shortlist::Entry;
use super::{Head, HeadError};

const NAME: &str = "centerface";
const STRIDE: usize = 4;
const POINTS: usize = 5;
/// Names of the outputs, in the upstream order, with their channels.
const MAPS: [(&str, usize); 4] =
    [("heatmap", 1), ("scale", 2), ("offset", 2), ("landmarks", 2 * POINTS)];

/// Face head. Landmarks are not clamped to the picture: a face at its edge may have an eye outside.
pub struct Centerface {
    outputs: Outputs,
    /// Index of the output that holds each of [`MAPS`].
    places: [usize; 4],
    width: usize,
    area: usize,
    threshold: f32,
    boxes: Boxes,
}

impl Centerface {
    /// A head for four maps `1 x channels x H/4 x W/4`, found by the names heatmap, scale, offset and landmarks, or
    /// in that order when the names are others. The only class is a face.
    ///
    /// # Errors
    /// [`HeadError`] when outputs, labels or settings do not fit.
    pub fn new(
        thresholds: Thresholds,
        labels: Arc<[String]>,
        specs: &[TensorSpec],
        [width, height]: [usize; 2],
    ) -> Result<Self, HeadError> {
        thresholds.verify(NAME)?;
        let place = |name: &str| specs.iter().position(|spec| spec.name == name);
        let named = MAPS.map(|(name, _)| place(name));
        let places = match named {
            [Some(heat), Some(scale), Some(offset), Some(landmarks)] => {
                [heat, scale, offset, landmarks]
            }
            _ => [0, 1, 2, 3],
        };
        let (rows, columns) = (height.div_ceil(STRIDE), width.div_ceil(STRIDE));
        let fits = |((_, channels), place): (&(&str, usize), &usize)| {
            specs[*place].shape == [1, *channels, rows, columns]
        };
        if specs.len() != MAPS.len() || !MAPS.iter().zip(&places).all(fits) {
            let one = |(name, channels): &(&str, usize)| {
                format!("{name} [1, {channels}, {rows}, {columns}]")
            };
            let expected = MAPS.iter().map(one).collect::<Vec<_>>().join(", ");
            return Err(HeadError::outputs(NAME, expected, specs));
        }
        if labels.len() != 1 {
            return Err(HeadError::Labels { labels: labels.len(), classes: 1 });
        }
        Ok(Self {
            outputs: Outputs::new(NAME, specs)?,
            places,
            width: columns,
            area: rows * columns,
            threshold: thresholds.score,
            boxes: Boxes::new(labels, thresholds.iou),
        })
    }
}

impl Head for Centerface {
    fn decode(
        &mut self,
        outputs: &[TensorView<'_>],
        geometry: &Geometry,
        findings: &mut Findings,
    ) -> Result<(), HeadError> {
        let [heat, scale, offset, points] = self.places;
        let maps = Maps {
            scale: self.outputs.reals(outputs, scale)?,
            offset: self.outputs.reals(outputs, offset)?,
            landmarks: self.outputs.reals(outputs, points)?,
            width: self.width,
            area: self.area,
        };
        let shortlist = &mut self.boxes.shortlist;
        shortlist.clear();
        let heat = self.outputs.reals(outputs, heat)?;
        heat.at_least(0..self.area, self.threshold, |cell, score| {
            shortlist.push(Entry { score, class: 0, map: 0, cell });
        });
        self.boxes.report(
            geometry,
            findings,
            |entry| (entry.score, maps.corners(entry.cell)),
            |face, found| maps.landmarks(face, geometry, found),
        );
        Ok(())
    }
}

struct Maps<'a> {
    scale: Reals<'a>,
    offset: Reals<'a>,
    landmarks: Reals<'a>,
    width: usize,
    area: usize,
}

impl Maps<'_> {
    /// Left, top, right, bottom of a cell's box, input pixels.
    fn corners(&self, cell: usize) -> [f32; 4] {
        let stride = STRIDE as f32;
        let [height, width] =
            [0, self.area].map(|channel| self.scale.at(channel + cell).exp() * stride);
        let y = ((cell / self.width) as f32 + self.offset.at(cell) + 0.5) * stride;
        let x = ((cell % self.width) as f32 + self.offset.at(self.area + cell) + 0.5) * stride;
        [x - width / 2.0, y - height / 2.0, x + width / 2.0, y + height / 2.0]
    }

    /// Eyes, nose and mouth corners of a face, in parts of the picture; none when one of them is not finite.
    ///
    /// Off-reference: upstream measures from the corner after clipping it to the picture, which shifts all points of
    /// a face that is cut off; here they are measured from the corner of the whole box.
    fn landmarks(&self, face: &Candidate, geometry: &Geometry, found: &mut Vec<[f32; 2]>) {
        let [left, top, right, bottom] = face.corners;
        for point in 0..POINTS {
            let [down, across] = [2 * point, 2 * point + 1]
                .map(|map| self.landmarks.at(map * self.area + face.cell));
            let x = left + across * (right - left);
            found.push(geometry.normalise(x, top + down * (bottom - top)));
        }
        if !found.iter().flatten().all(|value| value.is_finite()) {
            found.clear();
        }
    }
}
