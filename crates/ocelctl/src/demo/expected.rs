//! What the sample pictures show, by the reference that lies beside them, and whether it was found.

use std::collections::BTreeMap;
use std::path::Path;

use ocelli::vision::nms::iou;
use ocelli_protocol::message::{BoundingBox, Detection};
use serde_json::Value;

use crate::Failure;

/// Smallest overlap with the reference, intersection over union.
pub(super) const MIN_IOU: f32 = 0.7;
/// Without these in the reference, the demonstration would show nothing.
const SHOWN: [&str; 4] = ["person", "cat", "cup", "horse"];

/// Reference detections of a model, by stem of the picture's name.
#[derive(Debug)]
pub(super) struct Expected(BTreeMap<String, Vec<Detection>>);

impl Expected {
    /// Reads `expected.json` of a folder of pictures.
    pub(super) fn read(folder: &Path, model: &str) -> Result<Self, Failure> {
        let path = folder.join("expected.json");
        let bad = |why: &dyn std::fmt::Display| {
            Failure(format!("{}: {why}; see --models", path.display()))
        };
        let text = std::fs::read(&path).map_err(|error| bad(&error))?;
        let mut models: BTreeMap<String, Value> =
            serde_json::from_slice(&text).map_err(|error| bad(&error))?;
        let pictures = models.remove(model).ok_or_else(|| bad(&format!("no \"{model}\"")))?;
        let pictures: BTreeMap<String, Vec<Detection>> =
            serde_json::from_value(pictures).map_err(|error| bad(&error))?;
        let labels: Vec<_> =
            pictures.values().flatten().map(|found| found.label.as_str()).collect();
        if let Some(absent) = SHOWN.iter().find(|label| !labels.contains(label)) {
            return Err(bad(&format!("no {absent} in any picture")));
        }
        let stem = |name: String| name.split('.').next().unwrap_or_default().to_owned();
        Ok(Self(pictures.into_iter().map(|(name, found)| (stem(name), found)).collect()))
    }

    /// Overlap of a detection with the reference of its class; `None`: the picture has none of this class.
    pub(super) fn overlap(&self, picture: &str, found: &Detection) -> Option<f32> {
        let same = self.0.get(picture)?.iter().filter(|wanted| wanted.class == found.class);
        same.map(|wanted| iou(corners(&wanted.bounding_box), corners(&found.bounding_box)))
            .reduce(f32::max)
    }

    /// Reference objects that were not found where they are, readable.
    pub(super) fn missing<'a>(&self, found: impl Fn(&str) -> &'a [Detection]) -> Vec<String> {
        let mut missing = Vec::new();
        for (picture, wanted) in &self.0 {
            for one in wanted {
                let same = found(picture).iter().filter(|found| found.class == one.class);
                let best = same
                    .map(|found| iou(corners(&one.bounding_box), corners(&found.bounding_box)))
                    .fold(0.0, f32::max);
                if best < MIN_IOU {
                    let label = &one.label;
                    missing.push(format!("no {label} in {picture} (best overlap {best:.2})"));
                }
            }
        }
        missing
    }

    /// Labels of the reference, each with the number of its objects.
    pub(super) fn summary(&self) -> String {
        let mut counts = BTreeMap::<&str, usize>::new();
        for found in self.0.values().flatten() {
            *counts.entry(&found.label).or_default() += 1;
        }
        let words = counts.iter().map(|(label, count)| match count {
            1 => (*label).to_owned(),
            _ => format!("{label} ({count})"),
        });
        words.collect::<Vec<_>>().join(", ")
    }
}

fn corners(area: &BoundingBox) -> [f32; 4] {
    [area.x, area.y, area.x + area.w, area.y + area.h]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference() -> Expected {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/pictures"));
        Expected::read(folder, "nanodet-g-coco").unwrap()
    }

    #[test]
    fn the_reference_itself_is_as_expected() {
        let reference = reference();
        let all = reference.0.clone();
        assert!(reference.missing(|picture| &all[picture]).is_empty());
        assert_eq!(reference.overlap("chelsea", &all["chelsea"][0]), Some(1.0));
        assert_eq!(reference.overlap("chelsea", &all["horse"][0]), None);
        assert_eq!(reference.summary(), "cat, cup, horse, person (2)");
    }

    #[test]
    fn nothing_another_class_and_another_place_are_told() {
        let reference = reference();
        let none = reference.missing(|_| &[]);
        assert_eq!(none.len(), 5);
        assert!(none[0].starts_with("no person in astronaut"), "{none:?}");
        let mut wrong = reference.0.clone();
        wrong.get_mut("chelsea").unwrap()[0].class = 16;
        wrong.get_mut("horse").unwrap()[0].bounding_box.w *= 0.6;
        let told = reference.missing(|picture| &wrong[picture]);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[1].starts_with("no horse in horse (best overlap 0.6"), "{told:?}");
    }

    #[test]
    fn a_reference_that_shows_nothing_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (text, says) in [
            ("", "EOF"),
            ("{}", "no \"nanodet-g-coco\""),
            (r#"{"nanodet-g-coco":{"rocket.jpg":[]}}"#, "no person in any picture"),
        ] {
            std::fs::write(folder.path().join("expected.json"), text).unwrap();
            let error = Expected::read(folder.path(), "nanodet-g-coco").unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
