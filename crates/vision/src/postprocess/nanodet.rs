//! NanoDet: per stride one map of class logits, then box distributions (github.com/RangiLyu/nanodet, Apache-2.0).
//!
//! Cell centres at `(index + 0.5) * stride`, as the model in the zoo was trained.

use std::sync::Arc;

use crate::tensor::TensorSpec;

use super::boxes::Thresholds;
use super::distribution::{Channels, DistributionMaps, verify_maps};
use super::{Head, HeadError};

const NAME: &str = "nanodet";
/// `reg_max + 1` of the published configurations: 7 (m, t, plus) and 10 (g, RepVGG, EfficientNet-Lite).
const BINS: [usize; 2] = [8, 11];

/// A head for maps `1 x (labels + 4 * bins) x H x W`, in the order of `strides`; 8 or 11 bins.
///
/// Every class of a cell that scores above the threshold is a candidate.
///
/// # Errors
/// [`HeadError`] when outputs, labels or settings do not fit.
pub fn nanodet(
    strides: &[usize],
    thresholds: Thresholds,
    labels: Arc<[String]>,
    specs: &[TensorSpec],
    input: [usize; 2],
) -> Result<Box<dyn Head>, HeadError> {
    let classes = labels.len();
    let expected = BINS.map(|bins| (classes + 4 * bins).to_string()).join(" or ");
    let expected = format!("{expected} ({classes} labels and 4 x 8 or 11 bins)");
    let channels = verify_maps(NAME, &expected, strides, specs, input)?;
    let bins = BINS.into_iter().find(|bins| classes > 0 && channels == classes + 4 * bins);
    let Some(bins) = bins else {
        return Err(HeadError::outputs(NAME, format!("maps with {expected} channels"), specs));
    };
    let channels = Channels { classes: 0, sides: classes, bins };
    Ok(Box::new(DistributionMaps::new(NAME, channels, strides, thresholds, labels, specs)?))
}
