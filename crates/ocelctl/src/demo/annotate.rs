//! Draws received detections on the pictures they came from.

use std::collections::BTreeMap;
use std::path::Path;

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
        ocelli::cli::annotate_picture(&picture.path, &result.findings, &to)
            .map_err(|error| Failure(error.to_string()))?;
        count += 1;
    }
    Ok(count)
}
