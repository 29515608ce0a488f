//! YOLOv8 and YOLO11, decoded (as Ultralytics exports them) or raw (cut before the decoding layers, as NPU
//! compilers like it: box distributions and class logits quantise badly together).

use std::sync::Arc;

use crate::Geometry;
use crate::tensor::{TensorSpec, TensorView};
use ocelli_protocol::message::Findings;

use super::boxes::{Boxes, Thresholds};
use super::distribution::{Channels, DistributionMaps, verify_maps};
use super::reals::{Outputs, Reals};
use super::shortlist::Entry;
use super::{Head, HeadError};

const NAME: &str = "yolov8";
/// Distances per side in every published model (`reg_max`).
const BINS: usize = 16;

/// A head for decoded outputs when `strides` is empty, else for raw maps `1 x (64 + labels) x H x W` in the order of
/// `strides`: first the distributions of left, top, right and bottom, then class logits.
///
/// Every class that scores above the threshold is a candidate.
///
/// # Errors
/// [`HeadError`] when outputs, labels or settings do not fit.
pub fn yolov8(
    strides: &[usize],
    thresholds: Thresholds,
    labels: Arc<[String]>,
    specs: &[TensorSpec],
    input: [usize; 2],
) -> Result<Box<dyn Head>, HeadError> {
    if strides.is_empty() {
        return Ok(Box::new(Decoded::new(thresholds, labels, specs)?));
    }
    let expected = format!("{} (64 and {} labels)", 4 * BINS + labels.len(), labels.len());
    let channels = verify_maps(NAME, &expected, strides, specs, input)?;
    match channels.checked_sub(4 * BINS) {
        Some(classes) if classes > 0 && classes == labels.len() => {}
        Some(classes) if classes > 0 => {
            return Err(HeadError::Labels { labels: labels.len(), classes });
        }
        _ => return Err(HeadError::outputs(NAME, format!("maps with {expected} channels"), specs)),
    }
    let channels = Channels { classes: 4 * BINS, sides: 0, bins: BINS };
    Ok(Box::new(DistributionMaps::new(NAME, channels, strides, thresholds, labels, specs)?))
}

/// Which index moves fastest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// `1 x (4 + classes) x anchors`, as exported by default.
    AnchorsLast,
    /// `1 x anchors x (4 + classes)`, transposed.
    AnchorsFirst,
}

/// One output with a box (centre x, centre y, width, height, input pixels) and a probability per class for every
/// anchor.
struct Decoded {
    outputs: Outputs,
    order: Order,
    anchors: usize,
    classes: usize,
    threshold: f32,
    boxes: Boxes,
}

impl Decoded {
    fn new(
        thresholds: Thresholds,
        labels: Arc<[String]>,
        specs: &[TensorSpec],
    ) -> Result<Self, HeadError> {
        thresholds.verify(NAME)?;
        let classes = labels.len();
        let [TensorSpec { shape, .. }] = specs else { return Err(unfit(classes, specs)) };
        let &[1, rows, columns] = &shape[..] else { return Err(unfit(classes, specs)) };
        // With as many anchors as channels the default order holds.
        let (order, anchors) = if rows == 4 + classes {
            (Order::AnchorsLast, columns)
        } else if columns == 4 + classes {
            (Order::AnchorsFirst, rows)
        } else if rows.min(columns) > 4 {
            // There are always more anchors than channels in a real model.
            let classes = rows.min(columns) - 4;
            return Err(HeadError::Labels { labels: labels.len(), classes });
        } else {
            return Err(unfit(classes, specs));
        };
        if anchors == 0 || classes == 0 {
            return Err(unfit(classes, specs));
        }
        Ok(Self {
            outputs: Outputs::new(NAME, specs)?,
            order,
            anchors,
            classes,
            threshold: thresholds.score,
            boxes: Boxes::new(labels, thresholds.iou),
        })
    }

    fn shorten(&mut self, values: &Reals<'_>) {
        let Self { anchors, classes, threshold, .. } = *self;
        let shortlist = &mut self.boxes.shortlist;
        shortlist.clear();
        match self.order {
            Order::AnchorsLast => {
                values.at_least(4 * anchors..(4 + classes) * anchors, threshold, |at, score| {
                    let (class, cell) = (at / anchors, at % anchors);
                    shortlist.push(Entry { score, class, map: 0, cell });
                });
            }
            Order::AnchorsFirst => {
                for cell in 0..anchors {
                    let row = cell * (4 + classes);
                    values.at_least(row + 4..row + 4 + classes, threshold, |class, score| {
                        shortlist.push(Entry { score, class, map: 0, cell });
                    });
                }
            }
        }
    }
}

impl Head for Decoded {
    fn decode(
        &mut self,
        outputs: &[TensorView<'_>],
        geometry: &Geometry,
        findings: &mut Findings,
    ) -> Result<(), HeadError> {
        let values = self.outputs.reals(outputs, 0)?;
        self.shorten(&values);
        let (order, anchors, channels) = (self.order, self.anchors, 4 + self.classes);
        let decode = |entry: &Entry| {
            let [x, y, width, height] = [0, 1, 2, 3].map(|channel| match order {
                Order::AnchorsLast => values.at(channel * anchors + entry.cell),
                Order::AnchorsFirst => values.at(entry.cell * channels + channel),
            });
            let (half_width, half_height) = (width / 2.0, height / 2.0);
            let corners = [x - half_width, y - half_height, x + half_width, y + half_height];
            (entry.score, corners)
        };
        self.boxes.report(geometry, findings, decode, |_, _| {});
        Ok(())
    }
}

fn unfit(classes: usize, specs: &[TensorSpec]) -> HeadError {
    let channels = 4 + classes;
    let expected = format!(
        "one output [1, {channels}, anchors] or [1, anchors, {channels}] (4 and {classes} labels), \
         or strides in the manifest for raw maps"
    );
    HeadError::outputs(NAME, expected, specs)
}
