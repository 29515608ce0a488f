//! What all detecting heads share: from scored cells to boxes in parts of the picture, best first.

use std::sync::Arc;

use crate::Geometry;
use crate::nms::{self, Candidate};
use ocelli_protocol::message::{BoundingBox, Detection, Findings};

use super::shortlist::{Entry, Shortlist};
use super::{HeadError, MOST_DETECTIONS};

/// When a detection is dropped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// Detections that score below are dropped, 0 to 1.
    pub score: f32,
    /// Overlap above which the weaker box of a class is dropped, 0 to 1.
    pub iou: f32,
}

impl Thresholds {
    /// Refuses values outside 0 to 1.
    pub(super) fn verify(&self, head: &'static str) -> Result<(), HeadError> {
        for (setting, value) in [("score_threshold", self.score), ("iou_threshold", self.iou)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(HeadError::setting(head, setting, &value.to_string(), "0 to 1"));
            }
        }
        Ok(())
    }
}

/// Scratch memory and rules of a detecting head; nothing is allocated once it has seen a busy picture.
pub(super) struct Boxes {
    labels: Arc<[String]>,
    iou_threshold: f32,
    pub(super) shortlist: Shortlist,
    candidates: Vec<Candidate>,
    spare: Vec<Detection>,
}

impl Boxes {
    pub(super) fn new(labels: Arc<[String]>, iou_threshold: f32) -> Self {
        Self {
            labels,
            iou_threshold,
            shortlist: Shortlist::new(),
            candidates: Vec::with_capacity(super::shortlist::MOST_CANDIDATES),
            spare: Vec::with_capacity(2 * MOST_DETECTIONS),
        }
    }

    /// Decodes the shortlist into `findings`, best first.
    ///
    /// `decode` gives score and corners (input pixels) of an entry; what is not finite is dropped.
    /// `landmarks` fills in the points of a box that stays.
    pub(super) fn report(
        &mut self,
        geometry: &Geometry,
        findings: &mut Findings,
        decode: impl Fn(&Entry) -> (f32, [f32; 4]),
        mut landmarks: impl FnMut(&Candidate, &mut Vec<[f32; 2]>),
    ) {
        self.candidates.clear();
        for entry in self.shortlist.best() {
            let (score, corners) = decode(entry);
            // Scores are finite: only such values are shortlisted.
            if corners.iter().all(|value| value.is_finite()) {
                let (class, cell) = (entry.class, entry.cell);
                self.candidates.push(Candidate { corners, score, class, cell });
            }
        }
        nms::suppress(&mut self.candidates, self.iou_threshold, MOST_DETECTIONS);

        if !matches!(findings, Findings::Detections(_)) {
            *findings = Findings::Detections(Vec::new());
        }
        let Findings::Detections(detections) = findings else { unreachable!("made so above") };
        // Old detections are kept aside: their strings and lists are used again.
        self.spare.append(detections);
        self.spare.truncate(MOST_DETECTIONS);
        for candidate in &self.candidates {
            let Some(bounding_box) = in_picture(geometry, candidate.corners) else { continue };
            let mut found = self.spare.pop().unwrap_or_else(|| Detection {
                label: String::new(),
                class: 0,
                score: 0.0,
                bounding_box,
                landmarks: Vec::new(),
            });
            found.label.clear();
            found.label.push_str(&self.labels[candidate.class]);
            found.landmarks.clear();
            landmarks(candidate, &mut found.landmarks);
            let score = candidate.score.clamp(0.0, 1.0);
            detections.push(Detection { class: candidate.class, score, bounding_box, ..found });
        }
    }
}

/// The part of a box that lies in the picture; `None` when nothing of it does.
fn in_picture(geometry: &Geometry, corners: [f32; 4]) -> Option<BoundingBox> {
    let found = geometry.normalise_box(corners);
    let finite = [found.x, found.y, found.w, found.h].iter().all(|value| value.is_finite());
    (finite && found.w > 0.0 && found.h > 0.0).then_some(found)
}

/// Probability of a logit.
pub(super) fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// Logit of a probability, so that logits are compared and only those above pay for a sigmoid.
pub(super) fn logit(probability: f32) -> f32 {
    (probability / (1.0 - probability)).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logit_undoes_sigmoid_to_the_ends() {
        for probability in [0.01_f32, 0.05, 0.4, 0.5, 0.99] {
            assert!((sigmoid(logit(probability)) - probability).abs() < 1e-6, "{probability}");
        }
        assert_eq!(logit(0.0), f32::NEG_INFINITY);
        assert_eq!(logit(1.0), f32::INFINITY);
        assert_eq!(sigmoid(-1000.0), 0.0);
        assert_eq!(sigmoid(1000.0), 1.0);
    }
}
