//! The checks of a manifest's values: against their range, each other, the labels and the files of the package.
//!
//! Reads only what is in memory; every refusal names file, key, value and expectation.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use ocelli_protocol::Id;
use ocelli_protocol::manifest::{self, Color, Head, Input, Manifest, Resize, Task};
use ocelli_protocol::message::ModelId;
use serde::de::DeserializeOwned;

use super::archive::{Files, is_portable};
use super::{DelegateFile, EntryFault, GoldenSample, MAX_LABELS_BYTES, PackageError, Sha256};
use crate::detection::{Classification, Detection, Findings};

/// Longest side of an input, pixels.
const MAX_SIDE: usize = 4096;
/// Files that may lie beside what the manifest names: licences have to travel with the weights.
const DOCUMENTS: &[&str] = &["LICENSE.txt", "NOTICE.txt", "README.md"];

/// The checks, one per section of the manifest.
pub(super) struct Check<'a> {
    pub(super) files: &'a Files,
}

impl Check<'_> {
    pub(super) fn identity(&self, manifest: &Manifest) -> Result<ModelId, PackageError> {
        let Manifest { name, version, license, .. } = manifest;
        if name.parse::<Id>().is_err() {
            let expected = "1 to 63 of a-z, 0-9 and '-', not beginning with '-'";
            return Err(self.refuse("name", format_args!("{name:?}"), expected));
        }
        if let Err(error) = semver::Version::parse(version) {
            let expected = format!("a semantic version such as 1.0.0 ({error})");
            return Err(self.refuse("version", format_args!("{version:?}"), expected));
        }
        if license.trim().is_empty() {
            let expected = "the SPDX expression of the weights' licence, such as Apache-2.0";
            return Err(self.refuse("license", format_args!("{license:?}"), expected));
        }
        Ok(ModelId { name: name.clone(), version: version.clone() })
    }

    /// Every file that the manifest names is there, and no other.
    pub(super) fn listed(&self, manifest: &Manifest) -> Result<(), PackageError> {
        let mut named =
            vec![("model".to_owned(), &manifest.model), ("labels".to_owned(), &manifest.labels)];
        for (index, golden) in manifest.golden.iter().enumerate() {
            named.push((format!("golden[{index}].image"), &golden.image));
            named.push((format!("golden[{index}].expect"), &golden.expect));
        }
        for (index, delegate) in manifest.delegate.iter().enumerate() {
            named.push((format!("delegate[{index}].file"), &delegate.file));
        }
        for (key, name) in &named {
            if !is_portable(name) {
                let expected = EntryFault::UnsafePath.to_string();
                return Err(self.refuse(key, format_args!("{name:?}"), expected));
            }
            if self.files.get(name).is_none() {
                let named_by = format!("`{key}` in {} names it", manifest::FILE_NAME);
                return Err(PackageError::MissingFile { file: self.files.locate(name), named_by });
            }
        }
        let mut known: BTreeSet<&str> = named.iter().map(|(_, name)| name.as_str()).collect();
        known.extend(DOCUMENTS.iter().chain([&manifest::FILE_NAME]));
        match self.files.iter().find(|(name, _)| !known.contains(name)) {
            Some((name, _)) => Err(PackageError::Entry {
                file: self.files.locate(name),
                fault: EntryFault::Unlisted,
            }),
            None => Ok(()),
        }
    }

    pub(super) fn input(&self, input: &Input) -> Result<(), PackageError> {
        if input.tensor.is_empty() {
            return Err(self.refuse("input.tensor", "\"\"", "the name of the graph input"));
        }
        for (key, side) in [("input.width", input.width), ("input.height", input.height)] {
            if !(1..=MAX_SIDE).contains(&side) {
                return Err(self.refuse(key, side, format!("1 to {MAX_SIDE} pixels")));
            }
        }
        let (channels, color) = match input.color {
            Color::Rgb => (3, "rgb"),
            Color::Bgr => (3, "bgr"),
            Color::Gray => (1, "gray"),
        };
        for (key, values) in [("input.mean", &input.mean), ("input.std", &input.std)] {
            if values.len() != channels {
                let expected = format!("{channels} value(s), one a channel of color = \"{color}\"");
                return Err(self.refuse(key, format_args!("{values:?}"), expected));
            }
            let usable = |value: &f32| value.is_finite() && (key == "input.mean" || *value != 0.0);
            if !values.iter().all(usable) {
                let expected = "finite numbers, for std not 0";
                return Err(self.refuse(key, format_args!("{values:?}"), expected));
            }
        }
        let only = |key, value: String, resize| {
            Err(self.refuse(key, value, format!("no such key unless resize = \"{resize}\"")))
        };
        match (input.resize, input.anchor, input.fill, input.crop_fraction) {
            (Resize::Crop | Resize::Stretch, Some(anchor), ..) => {
                only("input.anchor", format!("{anchor:?}"), "letterbox")
            }
            (Resize::Crop | Resize::Stretch, _, Some(fill), _) => {
                only("input.fill", fill.to_string(), "letterbox")
            }
            (Resize::Letterbox | Resize::Stretch, .., Some(fraction)) => {
                only("input.crop_fraction", fraction.to_string(), "crop")
            }
            (Resize::Crop, .., Some(fraction)) if !(fraction > 0.0 && fraction <= 1.0) => {
                Err(self.refuse("input.crop_fraction", fraction, "above 0, at most 1"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn head(&self, head: &Head, task: Task) -> Result<(), PackageError> {
        let fits = match head {
            Head::Softmax { .. } => Task::Classification,
            Head::Nanodet { .. } | Head::Yolov8 { .. } | Head::Centerface { .. } => Task::Detection,
        };
        if task != fits {
            let expected = format!("\"{}\" for this head.kind", format!("{fits:?}").to_lowercase());
            return Err(self.refuse("task", format!("\"{task:?}\"").to_lowercase(), expected));
        }
        let none: &[usize] = &[];
        let (strides, score_threshold, iou_threshold) = match head {
            Head::Softmax { top_k, .. } => {
                return if *top_k == 0 {
                    Err(self.refuse("head.top_k", top_k, "1 or more"))
                } else {
                    Ok(())
                };
            }
            Head::Nanodet { strides, .. } if strides.is_empty() => {
                return Err(self.refuse("head.strides", "[]", "the stride of each output"));
            }
            Head::Nanodet { strides, score_threshold, iou_threshold }
            | Head::Yolov8 { strides, score_threshold, iou_threshold } => {
                (&strides[..], score_threshold, iou_threshold)
            }
            Head::Centerface { score_threshold, iou_threshold } => {
                (none, score_threshold, iou_threshold)
            }
        };
        if !strides.iter().all(|stride| (1..=256).contains(stride)) {
            let expected = "pixels per cell of each output, 1 to 256";
            return Err(self.refuse("head.strides", format_args!("{strides:?}"), expected));
        }
        let thresholds =
            [("head.score_threshold", score_threshold), ("head.iou_threshold", iou_threshold)];
        match thresholds.into_iter().find(|(_, value)| !(0.0..=1.0).contains(*value)) {
            Some((key, value)) => Err(self.refuse(key, value, "0 to 1")),
            None => Ok(()),
        }
    }

    pub(super) fn budget(&self, budget: Option<&manifest::Budget>) -> Result<(), PackageError> {
        let Some(budget) = budget else { return Ok(()) };
        if let Some(label) = budget.boards.keys().find(|label| label.parse::<Id>().is_err()) {
            let expected = "a board label: 1 to 63 of a-z, 0-9 and '-'";
            return Err(self.refuse("budget", format_args!("{label:?}"), expected));
        }
        let general = ("budget".to_owned(), budget.latency_p90_ms, budget.memory_mib);
        let boards = budget.boards.iter().map(|(label, board)| {
            (format!("budget.{label}"), board.latency_p90_ms, board.memory_mib)
        });
        for (section, latency, memory) in boards.chain([general]) {
            if let Some(value) = latency.filter(|value| !(value.is_finite() && *value > 0.0)) {
                return Err(self.refuse(&format!("{section}.latency_p90_ms"), value, "above 0"));
            }
            if memory == Some(0) {
                return Err(self.refuse(&format!("{section}.memory_mib"), 0, "1 or more"));
            }
        }
        Ok(())
    }

    pub(super) fn labels(&self, name: &str) -> Result<Vec<String>, PackageError> {
        let file = self.files.locate(name);
        let bytes = self.file(name);
        if bytes.len() as u64 > MAX_LABELS_BYTES {
            return Err(PackageError::TooLarge { file, limit: MAX_LABELS_BYTES });
        }
        let wrong = |line, detail: &str| PackageError::Syntax {
            file: file.clone(),
            line,
            detail: detail.to_owned(),
        };
        let text = std::str::from_utf8(bytes).map_err(|_| wrong(1, "not UTF-8 text"))?;
        let labels: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        if labels.is_empty() {
            return Err(wrong(1, "empty; expected one label a line"));
        }
        match labels.iter().position(String::is_empty) {
            Some(index) => Err(wrong(index + 1, "empty line; expected a label")),
            None => Ok(labels),
        }
    }

    pub(super) fn golden(
        &self,
        manifest: &Manifest,
        labels: &[String],
    ) -> Result<Vec<GoldenSample>, PackageError> {
        let mut samples = Vec::new();
        for (index, golden) in manifest.golden.iter().enumerate() {
            let tolerance = golden.score_tolerance;
            if !(tolerance > 0.0 && tolerance <= 1.0) {
                let key = format!("golden[{index}].score_tolerance");
                return Err(self.refuse(&key, tolerance, "above 0, at most 1"));
            }
            samples.push(GoldenSample {
                name: golden.image.clone(),
                image: self.file(&golden.image).clone(),
                expected: self.expectation(&golden.expect, manifest.task, labels)?,
                score_tolerance: tolerance,
            });
        }
        Ok(samples)
    }

    fn expectation(
        &self,
        name: &str,
        task: Task,
        labels: &[String],
    ) -> Result<Findings, PackageError> {
        let file = self.files.locate(name);
        let refuse = |key: String, value: String, expected: String| {
            Err(PackageError::Value { file: file.clone(), key, value, expected })
        };
        let findings = match task {
            Task::Detection => Findings::Detections(self.json(name)?),
            Task::Classification => Findings::Classes(self.json(name)?),
        };
        let rows: Vec<(&str, usize, f32)> = match &findings {
            Findings::Detections(all) => {
                all.iter().map(|d| (&*d.label, d.class, d.score)).collect()
            }
            Findings::Classes(all) => all.iter().map(|c| (&*c.label, c.class, c.score)).collect(),
        };
        for (index, (label, class, score)) in rows.into_iter().enumerate() {
            match labels.get(class) {
                None => {
                    let expected = format!("an index below the {} labels", labels.len());
                    return refuse(format!("[{index}].class"), class.to_string(), expected);
                }
                Some(known) if known != label => {
                    let expected = format!("\"{known}\", the label of class {class}");
                    return refuse(format!("[{index}].label"), format!("{label:?}"), expected);
                }
                Some(_) if !(0.0..=1.0).contains(&score) => {
                    return refuse(format!("[{index}].score"), score.to_string(), "0 to 1".into());
                }
                Some(_) => {}
            }
        }
        if let Findings::Detections(all) = &findings {
            let inside = |one: &Detection| {
                let b = one.bounding_box;
                [b.x, b.y, b.w, b.h].iter().all(|side| (0.0..=1.0).contains(side))
            };
            if let Some(index) = all.iter().position(|one| !inside(one)) {
                let (value, expected) =
                    (format!("{:?}", all[index].bounding_box), "0 to 1 each".into());
                return refuse(format!("[{index}].box"), value, expected);
            }
        }
        if matches!(&findings, Findings::Classes(all) if all.is_empty()) {
            return refuse("classes".into(), "[]".into(), "at least the first class".into());
        }
        Ok(findings)
    }

    fn json<T: JsonRow>(&self, name: &str) -> Result<Vec<T>, PackageError> {
        serde_json::from_slice(self.file(name)).map_err(|error| PackageError::Syntax {
            file: self.files.locate(name),
            line: error.line().max(1),
            detail: format!("expected a JSON array of {}: {error}", T::WHAT),
        })
    }

    pub(super) fn delegates(
        &self,
        entries: &[manifest::DelegateBlob],
    ) -> Result<Vec<DelegateFile>, PackageError> {
        let mut files = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            for (key, value) in [("kind", &entry.kind), ("target", &entry.target)] {
                if value.parse::<Id>().is_err() {
                    let (key, value) = (format!("delegate[{index}].{key}"), format!("{value:?}"));
                    return Err(self.refuse(&key, value, "1 to 63 of a-z, 0-9 and '-'"));
                }
            }
            let bytes = self.file(&entry.file);
            let digest = Sha256::of(bytes).to_string();
            if entry.sha256 != digest {
                let (key, value) =
                    (format!("delegate[{index}].sha256"), format!("{:?}", entry.sha256));
                return Err(self.refuse(
                    &key,
                    value,
                    format!("\"{digest}\", the digest of {}", entry.file),
                ));
            }
            files.push(DelegateFile { entry: entry.clone(), bytes: bytes.clone() });
        }
        Ok(files)
    }

    /// A file that [`Check::listed`] has seen.
    pub(super) fn file(&self, name: &str) -> &Arc<[u8]> {
        self.files.get(name).expect("every named file was seen to be there")
    }

    fn refuse(
        &self,
        key: &str,
        value: impl fmt::Display,
        expected: impl Into<String>,
    ) -> PackageError {
        PackageError::Value {
            file: self.files.locate(manifest::FILE_NAME),
            key: key.to_owned(),
            value: value.to_string(),
            expected: expected.into(),
        }
    }
}

/// A row of a golden expectation.
trait JsonRow: DeserializeOwned {
    /// What the rows are, for messages.
    const WHAT: &'static str;
}

impl JsonRow for Detection {
    const WHAT: &'static str = "detections";
}

impl JsonRow for Classification {
    const WHAT: &'static str = "classes";
}
