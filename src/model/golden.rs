//! Known answers: pictures with the findings that a healthy model gives on this device.
//!
//! Compares findings only; who decodes the picture and runs the model stands below.

use std::sync::Arc;

use crate::detection::{BoundingBox, Classification, Detection, Findings};

/// Least overlap of a found box with the expected one.
pub const MIN_IOU: f32 = 0.9;
/// Largest distance of a landmark from the expected one, in parts of the box's longer side.
pub const MAX_LANDMARK_SHIFT: f32 = 0.1;

/// A picture and its known answer.
#[derive(Debug, Clone)]
pub struct GoldenSample {
    /// Name of the picture in the package, for messages.
    pub name: String,
    /// The picture, a JPEG or PNG file.
    pub image: Arc<[u8]>,
    /// What the model finds in it.
    pub expected: Findings,
    /// Largest difference of a score.
    pub score_tolerance: f32,
}

/// The first difference that matters.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// One side has boxes, the other classes.
    #[error("the model gives {found}, expected {expected}")]
    Kind {
        /// `detections` or `classes`.
        expected: &'static str,
        /// `detections` or `classes`.
        found: &'static str,
    },
    /// Other classes, or another number of one class.
    #[error("found [{found}], expected [{expected}]")]
    Labels {
        /// Labels expected, by class.
        expected: String,
        /// Labels found, by class.
        found: String,
    },
    /// A box that overlaps the expected one too little.
    #[error("box of {label} overlaps the expected one by {iou:.3}, at least {MIN_IOU} is needed")]
    Box {
        /// Label of the class.
        label: String,
        /// Intersection over union.
        iou: f32,
    },
    /// A landmark too far from the expected one, or another number of landmarks.
    #[error("landmark {index} of {label} is not where it is expected")]
    Landmark {
        /// Label of the class.
        label: String,
        /// Index of the first wrong landmark.
        index: usize,
    },
    /// A score too far from the expected one.
    #[error("score of {label} is {found:.3}, expected {expected:.3} within {tolerance}")]
    Score {
        /// Label of the class.
        label: String,
        /// As expected.
        expected: f32,
        /// As found.
        found: f32,
        /// Largest difference.
        tolerance: f32,
    },
    /// Another class has the highest score.
    #[error("the first class is {found}, expected {expected}")]
    TopClass {
        /// Label expected.
        expected: String,
        /// Label found.
        found: String,
    },
}

/// Whether `found` is what a healthy model gives.
///
/// Detections: the same classes equally often, each box overlapping its expected one by [`MIN_IOU`], landmarks within
/// [`MAX_LANDMARK_SHIFT`], scores within `score_tolerance`. Classes: the same first class, scores within
/// `score_tolerance`; a class that `found` does not list counts as its last score or less.
///
/// # Errors
/// The first [`Mismatch`].
pub fn compare(
    expected: &Findings,
    found: &Findings,
    score_tolerance: f32,
) -> Result<(), Mismatch> {
    match (expected, found) {
        (Findings::Detections(expected), Findings::Detections(found)) => {
            compare_detections(expected, found, score_tolerance)
        }
        (Findings::Classes(expected), Findings::Classes(found)) => {
            compare_classes(expected, found, score_tolerance)
        }
        _ => Err(Mismatch::Kind { expected: kind(expected), found: kind(found) }),
    }
}

fn compare_detections(
    expected: &[Detection],
    found: &[Detection],
    tolerance: f32,
) -> Result<(), Mismatch> {
    if sorted_classes(expected) != sorted_classes(found) {
        return Err(Mismatch::Labels { expected: labels(expected), found: labels(found) });
    }
    let mut open: Vec<&Detection> = found.iter().collect();
    for wanted in expected {
        let candidates = open.iter().enumerate().filter(|(_, one)| one.class == wanted.class);
        let overlaps =
            candidates.map(|(at, one)| (at, iou(&wanted.bounding_box, &one.bounding_box)));
        let (at, iou) = overlaps
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .expect("both sides have each class equally often");
        let nearest = open.swap_remove(at);
        let label = || wanted.label.clone();
        if iou.is_nan() || iou < MIN_IOU {
            return Err(Mismatch::Box { label: label(), iou });
        }
        if let Some(index) = moved_landmark(wanted, nearest) {
            return Err(Mismatch::Landmark { label: label(), index });
        }
        compare_score(&wanted.label, wanted.score, nearest.score, tolerance)?;
    }
    Ok(())
}

fn compare_classes(
    expected: &[Classification],
    found: &[Classification],
    tolerance: f32,
) -> Result<(), Mismatch> {
    let first =
        |classes: &[Classification]| classes.first().map(|one| (one.class, one.label.clone()));
    let (wanted, given) = (first(expected), first(found));
    if wanted.as_ref().map(|one| one.0) != given.as_ref().map(|one| one.0) {
        let name = |one: Option<(usize, String)>| one.map_or("none".into(), |one| one.1);
        return Err(Mismatch::TopClass { expected: name(wanted), found: name(given) });
    }
    let last = found.last().map_or(0.0, |one| one.score);
    for wanted in expected {
        let score = match found.iter().find(|one| one.class == wanted.class) {
            Some(one) => one.score,
            None => last.min(wanted.score),
        };
        compare_score(&wanted.label, wanted.score, score, tolerance)?;
    }
    Ok(())
}

fn compare_score(label: &str, expected: f32, found: f32, tolerance: f32) -> Result<(), Mismatch> {
    if (expected - found).abs() <= tolerance {
        return Ok(());
    }
    Err(Mismatch::Score { label: label.to_owned(), expected, found, tolerance })
}

fn moved_landmark(expected: &Detection, found: &Detection) -> Option<usize> {
    let reach = MAX_LANDMARK_SHIFT * expected.bounding_box.w.max(expected.bounding_box.h);
    let near = |[x0, y0]: &[f32; 2], [x1, y1]: &[f32; 2]| (x0 - x1).hypot(y0 - y1) <= reach;
    let pairs = expected.landmarks.iter().zip(&found.landmarks);
    let moved = pairs.enumerate().find(|(_, (a, b))| !near(a, b)).map(|(index, _)| index);
    let (wanted, given) = (expected.landmarks.len(), found.landmarks.len());
    moved.or((wanted != given).then_some(wanted.min(given)))
}

/// Overlap of two boxes as a share of what they cover together.
pub(crate) fn iou(a: &BoundingBox, b: &BoundingBox) -> f32 {
    let overlap = |a0: f32, a_len: f32, b0: f32, b_len: f32| {
        ((a0 + a_len).min(b0 + b_len) - a0.max(b0)).max(0.0)
    };
    let both = overlap(a.x, a.w, b.x, b.w) * overlap(a.y, a.h, b.y, b.h);
    both / (a.w * a.h + b.w * b.h - both)
}

fn sorted_classes(detections: &[Detection]) -> Vec<usize> {
    let mut classes: Vec<_> = detections.iter().map(|one| one.class).collect();
    classes.sort_unstable();
    classes
}

fn labels(detections: &[Detection]) -> String {
    let mut by_class: Vec<_> =
        detections.iter().map(|one| (one.class, one.label.as_str())).collect();
    by_class.sort_unstable();
    by_class.iter().map(|(_, label)| *label).collect::<Vec<_>>().join(", ")
}

fn kind(findings: &Findings) -> &'static str {
    match findings {
        Findings::Detections(_) => "detections",
        Findings::Classes(_) => "classes",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn face(class: usize, score: f32, x: f32) -> Detection {
        let bounding_box = BoundingBox { x, y: 0.1, w: 0.2, h: 0.4 };
        let landmarks = vec![[x + 0.05, 0.2], [x + 0.15, 0.2]];
        Detection { label: format!("class {class}"), class, score, bounding_box, landmarks }
    }

    fn class(class: usize, score: f32) -> Classification {
        Classification { label: format!("class {class}"), class, score }
    }

    #[test]
    fn detections_match_within_the_documented_limits_only() {
        let one = || vec![face(0, 0.8, 0.1), face(0, 0.6, 0.6)];
        let moved = |shift: f32| vec![face(0, 0.8, 0.1), face(0, 0.6, 0.6 + shift)];
        let mut no_landmark = one();
        no_landmark[1].landmarks.pop();
        let mut far_landmark = one();
        far_landmark[1].landmarks[0][0] += 0.05;
        let mut nowhere = one();
        nowhere[0].bounding_box.w = f32::NAN;
        type Case = (&'static str, Vec<Detection>, fn(&Result<(), Mismatch>) -> bool);
        let cases: Vec<Case> = vec![
            ("same", one(), |r| r.is_ok()),
            ("other order", one().into_iter().rev().collect(), |r| r.is_ok()),
            ("0.95 overlap", moved(0.005), |r| r.is_ok()),
            ("0.82 overlap", moved(0.02), |r| matches!(r, Err(Mismatch::Box { .. }))),
            ("one too few", vec![face(0, 0.8, 0.1)], |r| matches!(r, Err(Mismatch::Labels { .. }))),
            ("one too many", [one(), one()].concat(), |r| {
                matches!(r, Err(Mismatch::Labels { .. }))
            }),
            ("other class", vec![face(0, 0.8, 0.1), face(1, 0.6, 0.6)], |r| {
                matches!(r, Err(Mismatch::Labels { .. }))
            }),
            ("score within", vec![face(0, 0.84, 0.1), face(0, 0.6, 0.6)], |r| r.is_ok()),
            ("score out", vec![face(0, 0.86, 0.1), face(0, 0.6, 0.6)], |r| {
                matches!(r, Err(Mismatch::Score { .. }))
            }),
            ("score NaN", vec![face(0, f32::NAN, 0.1), face(0, 0.6, 0.6)], |r| {
                matches!(r, Err(Mismatch::Score { .. }))
            }),
            ("box NaN", nowhere, |r| matches!(r, Err(Mismatch::Box { .. }))),
            ("landmark gone", no_landmark, |r| {
                matches!(r, Err(Mismatch::Landmark { index: 1, .. }))
            }),
            ("landmark off", far_landmark, |r| {
                matches!(r, Err(Mismatch::Landmark { index: 0, .. }))
            }),
        ];
        let expected = Findings::Detections(one());
        let wrong: Vec<_> = cases
            .into_iter()
            .map(|(name, found, right)| {
                (name, right, compare(&expected, &Findings::Detections(found), 0.05))
            })
            .filter(|(_, right, result)| !right(result))
            .map(|(name, _, result)| (name, result))
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn classes_match_by_the_first_and_by_scores() {
        let expected = Findings::Classes(vec![class(3, 0.7), class(5, 0.1), class(9, 0.08)]);
        type Case = (&'static str, Vec<Classification>, fn(&Result<(), Mismatch>) -> bool);
        let cases: Vec<Case> = vec![
            ("same", vec![class(3, 0.72), class(5, 0.1), class(9, 0.08)], |r| r.is_ok()),
            ("tail changes places", vec![class(3, 0.7), class(9, 0.1), class(5, 0.08)], |r| {
                r.is_ok()
            }),
            ("tail replaced by near scores", vec![class(3, 0.7), class(8, 0.09)], |r| r.is_ok()),
            ("tail replaced by far scores", vec![class(3, 0.7), class(8, 0.01)], |r| {
                matches!(r, Err(Mismatch::Score { .. }))
            }),
            ("other first", vec![class(5, 0.7), class(3, 0.69)], |r| {
                matches!(r, Err(Mismatch::TopClass { .. }))
            }),
            ("first score off", vec![class(3, 0.6), class(5, 0.1), class(9, 0.08)], |r| {
                matches!(r, Err(Mismatch::Score { .. }))
            }),
            ("nothing", vec![], |r| matches!(r, Err(Mismatch::TopClass { .. }))),
        ];
        let wrong: Vec<_> = cases
            .into_iter()
            .map(|(name, found, right)| {
                (name, right, compare(&expected, &Findings::Classes(found), 0.05))
            })
            .filter(|(_, right, result)| !right(result))
            .map(|(name, _, result)| (name, result))
            .collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn boxes_never_match_classes() {
        let boxes = Findings::Detections(vec![]);
        let classes = Findings::Classes(vec![]);
        let result = compare(&boxes, &classes, 1.0);
        assert_eq!(result, Err(Mismatch::Kind { expected: "detections", found: "classes" }));
    }
}
