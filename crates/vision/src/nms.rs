//! Non-maximum suppression per class: of boxes that show the same thing, the best stays. Boxes in input pixels.

/// A box that a head found, before suppression.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Left, top, right, bottom; finite.
    pub corners: [f32; 4],
    /// Above other candidates' means better; finite.
    pub score: f32,
    /// Index of the class. Boxes of different classes never suppress each other.
    pub class: usize,
    /// Where in the outputs it was found; of equal scores the lower one wins.
    pub cell: usize,
}

/// Keeps the best candidates: highest score first, at most `most`, none overlapping a better one of its class by
/// more than `iou_threshold` (0 to 1).
///
/// Sorts and shortens `candidates` in place, without allocating. Candidates need not be in any order.
///
/// ```
/// use ocelli_vision::nms::{Candidate, suppress};
/// let corners = [0.0, 0.0, 10.0, 10.0];
/// let good = Candidate { corners, score: 0.9, class: 0, cell: 0 };
/// let mut found = vec![Candidate { score: 0.8, ..good }, good, Candidate { class: 1, ..good }];
/// suppress(&mut found, 0.6, 100);
/// assert_eq!(found, [good, Candidate { class: 1, ..good }]);
/// ```
pub fn suppress(candidates: &mut Vec<Candidate>, iou_threshold: f32, most: usize) {
    candidates.sort_unstable_by(|a, b| {
        b.score.total_cmp(&a.score).then((a.class, a.cell).cmp(&(b.class, b.cell)))
    });
    let mut kept = 0;
    for next in 0..candidates.len() {
        if kept == most {
            break;
        }
        let candidate = candidates[next];
        let hides = |better: &Candidate| {
            better.class == candidate.class
                && iou(better.corners, candidate.corners) > iou_threshold
        };
        if !candidates[..kept].iter().any(hides) {
            candidates[kept] = candidate;
            kept += 1;
        }
    }
    candidates.truncate(kept);
}

/// Intersection over union of two boxes (left, top, right, bottom), 0 to 1; 0 for empty boxes.
#[must_use]
pub fn iou(a: [f32; 4], b: [f32; 4]) -> f32 {
    let width = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
    let height = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
    let intersection = width * height;
    let union = area(a) + area(b) - intersection;
    if intersection > 0.0 && union > 0.0 { intersection / union } else { 0.0 }
}

fn area([left, top, right, bottom]: [f32; 4]) -> f32 {
    (right - left).max(0.0) * (bottom - top).max(0.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate() -> impl Strategy<Value = Candidate> {
        // Few values on purpose, so that boxes meet, classes coincide and scores tie.
        let side = 0_u8..20;
        (side.clone(), side.clone(), side.clone(), side, 0_u8..12, 0_usize..3, 0_usize..1000)
            .prop_map(|(x, y, w, h, score, class, cell)| {
                let [x, y, w, h] = [x, y, w, h].map(f32::from);
                let corners = [x, y, x + w, y + h];
                Candidate { corners, score: f32::from(score) / 12.0, class, cell }
            })
    }

    proptest! {
        #[test]
        fn suppression_keeps_the_best_of_what_does_not_overlap(
            candidates in prop::collection::vec(candidate(), 0..60),
            threshold in 0.05_f32..0.95,
        ) {
            let mut kept = candidates.clone();
            suppress(&mut kept, threshold, usize::MAX);

            prop_assert!(kept.is_sorted_by(|a, b| a.score >= b.score));
            for (n, a) in kept.iter().enumerate() {
                prop_assert!(candidates.contains(a));
                for b in kept[n + 1..].iter().filter(|b| b.class == a.class) {
                    prop_assert!(iou(a.corners, b.corners) <= threshold);
                }
            }
            for class in 0..3 {
                let best = |from: &[Candidate]| {
                    from.iter().filter(|c| c.class == class).map(|c| c.score).reduce(f32::max)
                };
                prop_assert_eq!(best(&kept), best(&candidates));
            }
            // What went was hidden by something better that stayed.
            for gone in candidates.iter().filter(|c| !kept.contains(c)) {
                prop_assert!(kept.iter().any(|k| k.class == gone.class
                    && k.score >= gone.score
                    && iou(k.corners, gone.corners) > threshold));
            }
            let mut again = kept.clone();
            suppress(&mut again, threshold, usize::MAX);
            prop_assert_eq!(&again, &kept);
            let mut few = candidates;
            suppress(&mut few, threshold, 3);
            prop_assert_eq!(&few[..], &kept[..kept.len().min(3)]);
        }
    }

    #[test]
    fn iou_of_known_boxes() {
        let square = [0.0, 0.0, 10.0, 10.0];
        let cases = [
            ("itself", square, 1.0),
            ("half covered", [0.0, 0.0, 10.0, 5.0], 0.5),
            ("shifted by half", [5.0, 0.0, 15.0, 10.0], 1.0 / 3.0),
            ("touching", [10.0, 0.0, 20.0, 10.0], 0.0),
            ("apart", [30.0, 30.0, 40.0, 40.0], 0.0),
            ("empty", [5.0, 5.0, 5.0, 5.0], 0.0),
            ("inside out", [10.0, 10.0, 0.0, 0.0], 0.0),
        ];
        for (name, other, expected) in cases {
            assert!((iou(square, other) - expected).abs() < 1e-6, "{name}");
            assert_eq!(iou(square, other), iou(other, square), "{name}");
        }
        assert_eq!(iou([5.0; 4], [5.0; 4]), 0.0, "two empty boxes");
    }
}
