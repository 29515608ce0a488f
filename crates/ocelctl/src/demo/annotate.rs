//! Draws received detections on the pictures they came from.

use std::collections::BTreeMap;
use std::path::Path;

use ocelli::vision::annotate::{Picture as Drawing, annotate};
use ocelli_protocol::message::FrameResult;

use super::Picture;
use crate::Failure;

/// Writes one annotated JPEG a picture into `folder`, and says how many.
pub(super) fn write_all(
    folder: &Path,
    pictures: &[Picture],
    results: &BTreeMap<String, FrameResult>,
) -> Result<usize, Failure> {
    std::fs::create_dir_all(folder)
        .map_err(|error| Failure(format!("{}: {error}; see --out", folder.display())))?;
    let mut count = 0;
    for picture in pictures {
        let Some(result) = results.get(picture.stream.as_str()) else { continue };
        let to = folder.join(format!("{}.jpg", picture.stream));
        let about = |error: &dyn std::fmt::Display| Failure(format!("{}: {error}", to.display()));
        let file = std::fs::read(&picture.path).map_err(|error| about(&error))?;
        let mut drawing = Drawing::decode(&file).map_err(|error| about(&error))?;
        annotate(&mut drawing, &result.findings);
        let jpeg = drawing.encode_jpeg(90).map_err(|error| about(&error))?;
        std::fs::write(&to, jpeg).map_err(|error| about(&error))?;
        count += 1;
    }
    Ok(count)
}
