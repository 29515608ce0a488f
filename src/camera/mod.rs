//! Sources of frames. A camera fills a buffer that the pipeline owns; it never sees what becomes of the frame.

use std::time::Duration;

use crate::frame::{Frame, PixelFormat};

/// What a camera delivers, once opened.
#[derive(Debug, Clone, PartialEq)]
pub struct CameraInfo {
    /// Device path or picture path, for messages.
    pub source: String,
    /// Driver and card, or kind of replay.
    pub description: String,
    /// Layout of frames.
    pub format: PixelFormat,
    /// Width, pixels.
    pub width: usize,
    /// Height, pixels.
    pub height: usize,
    /// Frames a second, where the source has a rate.
    pub fps: Option<f32>,
}

/// A source of frames.
///
/// `capture` blocks for at most `timeout`, so that the caller can stop and can feed its watchdog.
pub trait Camera: Send {
    /// What the camera delivers. May change after [`Capture::Restarted`].
    fn info(&self) -> &CameraInfo;

    /// Waits for the next frame and copies it into `frame`, whose buffer is reused.
    ///
    /// # Errors
    /// [`CameraError`] names the device, the format and the cure. After a recoverable error the next call tries
    /// to reopen the source; the caller decides how long to wait between calls.
    fn capture(&mut self, frame: &mut Frame, timeout: Duration) -> Result<Capture, CameraError>;
}

/// What a call of [`Camera::capture`] brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Capture {
    /// A frame.
    Frame,
    /// A frame, after the source was reopened; format or size may differ from before.
    Restarted,
    /// Nothing yet.
    TimedOut,
    /// Nothing, ever again: a folder without `loop` is through.
    Ended,
}

/// Why there is no frame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CameraError {
    /// The source is away (unplugged, not there yet); trying again may help.
    #[error("camera {device}: {detail}; {cure}")]
    Unavailable {
        /// Path of the device or picture.
        device: String,
        /// What was seen.
        detail: String,
        /// What to do.
        cure: String,
    },
    /// The source can never deliver what is asked of it.
    #[error("camera {device}: {detail}; {cure}")]
    Unusable {
        /// Path of the device or picture.
        device: String,
        /// What was seen.
        detail: String,
        /// What to do.
        cure: String,
    },
}
