//! A folder of pictures, labelled or not: what a model finds in them, how often that is right, and how often two agree.
//!
//! Labels are `labels.csv` (`file,class` with a heading) for classifiers, or `labels/NAME.txt` in YOLO form (`class cx cy w h`,
//! parts of the picture) for detectors; pictures lie in the folder or in its `images/`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ocelli_protocol::message::{BoundingBox, Findings};

use crate::agent;
use crate::clock::Clock;
use crate::frame::Frame;
use crate::inference::delegate::Delegate;
use crate::inference::{Session, SessionOptions};
use crate::model::{ModelSpec, iou};
use crate::pipeline::{Detector, SessionNetwork};
use crate::vision::postprocess::head;
use crate::vision::preprocess::Preprocessor;

/// Largest picture or label file, bytes.
const MAX_BYTES: u64 = 64 << 20;
/// Boxes of one class that overlap so far are the same.
const SAME_BOX: f32 = 0.5;

/// What should be found in a picture.
enum Label {
    Class(usize),
    Boxes(Vec<(usize, BoundingBox)>),
}

/// Pictures with their labels, in the order of their names.
pub(super) struct Pictures {
    frames: Vec<(Frame, Option<Label>)>,
}

impl Pictures {
    /// Reads a folder.
    pub(super) fn read(folder: &Path, clock: &dyn Clock) -> Result<Self, String> {
        let told =
            |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let classes = classes(&folder.join("labels.csv"))?;
        let images = Some(folder.join("images")).filter(|images| images.is_dir());
        let images = images.unwrap_or_else(|| folder.to_owned());
        let entries = std::fs::read_dir(&images).map_err(|error| told(&images, &error))?;
        let mut paths: Vec<PathBuf> =
            entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            extension.is_some_and(|extension| matches!(extension, "jpg" | "jpeg" | "png"))
        });
        paths.sort();
        let mut frames = Vec::new();
        for path in paths {
            let file = crate::file::read_regular(&path, MAX_BYTES).map_err(|e| told(&path, &e))?;
            let frame = agent::picture(&file, clock).map_err(|error| told(&path, &error))?;
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let class = classes.get(name).map(|class| Label::Class(*class));
            let stem = Path::new(name).with_extension("txt");
            let label = class
                .map_or_else(|| boxes(&folder.join("labels").join(stem)), |class| Ok(Some(class)));
            frames.push((frame, label?));
        }
        match frames.is_empty() {
            true => Err(format!("{}: no .jpg or .png in it", images.display())),
            false => Ok(Self { frames }),
        }
    }

    /// What a model finds in each.
    pub(super) fn look(
        &self,
        spec: &ModelSpec,
        onnx: &[u8],
        delegates: &[Arc<dyn Delegate>],
        clock: &Arc<dyn Clock>,
    ) -> Result<Vec<Findings>, String> {
        let mut detector = detector(spec, onnx, delegates, clock)?;
        let mut found = Vec::new();
        for (frame, _) in &self.frames {
            let mut findings = Findings::Classes(Vec::new());
            let seen = detector.detect(frame, super::super::PATIENCE, &**clock, &mut findings);
            seen.map_err(|error| error.to_string())?;
            found.push(findings);
        }
        Ok(found)
    }

    /// Share of right answers: first class, or F1 of boxes; `None` without labels.
    pub(super) fn accuracy(&self, found: &[Findings]) -> Option<f64> {
        let mut tally = Tally::default();
        for ((_, label), found) in self.frames.iter().zip(found) {
            match (label, found) {
                (Some(Label::Class(class)), Findings::Classes(found)) => {
                    tally.one(found.first().is_some_and(|first| first.class == *class));
                }
                (Some(Label::Boxes(wanted)), found) => tally.boxes(&found_boxes(found), wanted),
                _ => {}
            }
        }
        tally.share()
    }
}

/// Share of answers in which two agree: first class, or F1 of boxes.
pub(super) fn agreement(found: &[Findings], reference: &[Findings]) -> f64 {
    let mut tally = Tally::default();
    for (found, reference) in found.iter().zip(reference) {
        match (found, reference) {
            (Findings::Classes(found), Findings::Classes(reference)) => {
                let first = |classes: &[crate::detection::Classification]| {
                    classes.first().map(|first| first.class)
                };
                tally.one(first(found) == first(reference));
            }
            _ => tally.boxes(&found_boxes(found), &found_boxes(reference)),
        }
    }
    // Nothing found by both, where nothing is to be found.
    tally.share().unwrap_or(1.0)
}

#[derive(Default)]
struct Tally {
    right: u64,
    /// Answers and labels; a right answer counts in both.
    of: u64,
}

impl Tally {
    fn one(&mut self, right: bool) {
        self.right += u64::from(right);
        self.of += 2;
    }

    fn boxes(&mut self, found: &[(usize, BoundingBox)], wanted: &[(usize, BoundingBox)]) {
        let mut open: Vec<_> = wanted.iter().collect();
        for (class, place) in found {
            let same = |wanted: &&(usize, BoundingBox)| {
                wanted.0 == *class && iou(&wanted.1, place) >= SAME_BOX
            };
            if let Some(at) = open.iter().position(same) {
                open.swap_remove(at);
                self.right += 1;
            }
        }
        self.of += (found.len() + wanted.len()) as u64;
    }

    fn share(&self) -> Option<f64> {
        (self.of > 0).then(|| 2.0 * self.right as f64 / self.of as f64)
    }
}

fn found_boxes(findings: &Findings) -> Vec<(usize, BoundingBox)> {
    match findings {
        Findings::Detections(found) => {
            found.iter().map(|one| (one.class, one.bounding_box)).collect()
        }
        Findings::Classes(_) => Vec::new(),
    }
}

fn detector(
    spec: &ModelSpec,
    onnx: &[u8],
    delegates: &[Arc<dyn Delegate>],
    clock: &Arc<dyn Clock>,
) -> Result<Detector, String> {
    let session = Session::load(onnx, delegates, SessionOptions::default(), Arc::clone(clock));
    let session = session.map_err(|error| error.to_string())?;
    let manifest = spec.input();
    let [input] = session.inputs() else { return Err("the model has several inputs".to_owned()) };
    let preprocess = match input.quantisation {
        Some(quantisation) => Preprocessor::quantised(manifest, quantisation),
        None => Preprocessor::new(manifest),
    };
    let (width, height, labels) = (manifest.width, manifest.height, Arc::clone(spec.labels()));
    let head = head(spec.head(), spec.task(), labels, session.outputs(), width, height);
    let head = head.map_err(|error| error.to_string())?;
    let (network, _) = SessionNetwork::new(session);
    let detector = Detector::new(Box::new(preprocess), Box::new(network), head, spec.id().clone());
    detector.map_err(|error| error.to_string())
}

fn text(path: &Path) -> Result<Option<String>, String> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = crate::file::read_regular(path, MAX_BYTES);
    let bytes = bytes.map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn classes(path: &Path) -> Result<BTreeMap<String, usize>, String> {
    let text = text(path)?.unwrap_or_default();
    let row = |line: &str| {
        let mut cells = line.split(',');
        let (file, class) = (cells.next()?, cells.next()?.trim().parse().ok()?);
        Some((file.trim().to_owned(), class))
    };
    let rows =
        text.lines().skip(1).filter(|line| !line.trim().is_empty()).map(|line| {
            row(line).ok_or(format!("{}: {line:?}: expected file,class", path.display()))
        });
    rows.collect()
}

fn boxes(path: &Path) -> Result<Option<Label>, String> {
    let Some(text) = text(path)? else { return Ok(None) };
    let row = |line: &str| {
        let mut cells = line.split_whitespace();
        let class = cells.next()?.parse().ok()?;
        let mut number = || cells.next()?.parse::<f32>().ok();
        let (x, y, w, h) = (number()?, number()?, number()?, number()?);
        Some((class, BoundingBox { x: x - w / 2.0, y: y - h / 2.0, w, h }))
    };
    let rows = text.lines().filter(|line| !line.trim().is_empty()).map(|line| {
        row(line).ok_or(format!("{}: {line:?}: expected class cx cy w h", path.display()))
    });
    Ok(Some(Label::Boxes(rows.collect::<Result<_, _>>()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detection::{Classification, Detection};

    fn class(class: usize) -> Findings {
        Findings::Classes(vec![Classification { label: String::new(), class, score: 0.5 }])
    }

    fn seen(class: usize, x: f32) -> Findings {
        let bounding_box = BoundingBox { x, y: 0.0, w: 0.2, h: 0.2 };
        let label = String::new();
        let landmarks = Vec::new();
        Findings::Detections(vec![Detection { label, class, score: 0.5, bounding_box, landmarks }])
    }

    #[test]
    fn shares_count_first_classes_and_overlapping_boxes() {
        assert_eq!(agreement(&[class(1), class(2)], &[class(1), class(3)]), 0.5);
        assert_eq!(agreement(&[seen(1, 0.0)], &[seen(1, 0.01)]), 1.0);
        assert_eq!(agreement(&[seen(1, 0.0)], &[seen(1, 0.5)]), 0.0);
        assert_eq!(agreement(&[seen(1, 0.0)], &[seen(2, 0.0)]), 0.0);
        let none = Findings::Detections(Vec::new());
        let none = [none];
        assert_eq!(agreement(&none, &none), 1.0);
    }

    #[test]
    fn labels_are_read_from_both_forms() {
        let folder = tempfile::tempdir().unwrap();
        let csv = folder.path().join("labels.csv");
        std::fs::write(&csv, "file,class_index,name\na.jpg,7,dog\n").unwrap();
        assert_eq!(classes(&csv).unwrap()["a.jpg"], 7);
        std::fs::write(&csv, "file,class\na.jpg,dog\n").unwrap();
        assert!(classes(&csv).unwrap_err().contains("expected file,class"));
        let yolo = folder.path().join("a.txt");
        std::fs::write(&yolo, "4 0.5 0.5 0.2 0.4\n").unwrap();
        let Some(Label::Boxes(found)) = boxes(&yolo).unwrap() else { panic!("boxes") };
        assert_eq!(found.len(), 1);
        assert!((found[0].1.x - 0.4).abs() < 1e-6 && (found[0].1.y - 0.3).abs() < 1e-6);
    }
}
