//! Sources of frames. A camera fills a buffer that the pipeline owns; it never sees what becomes of the frame.

mod jpeg;
pub mod replay;
mod schedule;
#[cfg(target_os = "linux")]
pub mod v4l2;

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::frame::{Frame, PixelFormat};

/// Largest picture a camera delivers, pixels. Checked before a buffer is made.
const MAX_PIXELS: usize = 64 << 20;

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

/// Where a camera puts a frame. A [`Frame`] takes every one.
pub trait Sink {
    /// The buffer for a frame that has come, asked for once it is there; `None`: it is not wanted, and nothing is copied.
    fn buffer(&mut self) -> Option<&mut Frame>;
}

impl Sink for Frame {
    fn buffer(&mut self) -> Option<&mut Frame> {
        Some(self)
    }
}

/// A source of frames.
///
/// `capture` blocks for at most `timeout`, so that the caller can stop and can feed its watchdog.
pub trait Camera: Send {
    /// What the camera delivers. May change after [`Capture::Restarted`].
    fn info(&self) -> &CameraInfo;

    /// Waits for the next frame and copies it into the buffer of `sink`, which is reused.
    ///
    /// # Errors
    /// [`CameraError`] names the device, the format and the cure. After a recoverable error the next call tries
    /// to reopen the source; the caller decides how long to wait between calls.
    fn capture(&mut self, sink: &mut dyn Sink, timeout: Duration) -> Result<Capture, CameraError>;

    /// Frames that arrived damaged and were skipped, since the camera was opened.
    fn frames_damaged(&self) -> u64 {
        0
    }
}

/// What a call of [`Camera::capture`] brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Capture {
    /// A frame.
    Frame,
    /// A frame, after the source was reopened; format or size may differ from before.
    Restarted,
    /// A frame that the sink did not want.
    Unwanted,
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

/// What is asked of a camera.
///
/// ```
/// use ocelli::camera::{Loop, Settings};
///
/// let front = Settings { width: Some(1280), height: Some(720), ..Settings::new("/dev/video0") };
/// assert_eq!(front.looped, Loop::Once);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// A device below `/dev/`; else a picture, a folder of pictures, or a `.txt` list of pictures.
    pub source: String,
    /// What a replay does after its last picture.
    pub looped: Loop,
    /// Wanted frames a second. A device delivers its nearest rate at or above; without: its own. A replay keeps it exactly;
    /// without: as fast as asked.
    pub fps: Option<f32>,
    /// Wanted width, pixels; devices only.
    pub width: Option<usize>,
    /// Wanted height, pixels; devices only.
    pub height: Option<usize>,
}

impl Settings {
    /// A source at its own rate and size, played once.
    #[must_use]
    pub fn new(source: impl Into<String>) -> Self {
        Self { source: source.into(), looped: Loop::Once, fps: None, width: None, height: None }
    }
}

/// What a replay does after its last picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loop {
    /// Ends.
    Once,
    /// Begins again.
    Forever,
}

/// Opens the source that `settings` names: V4L2 for a path below `/dev/`, else a replay of pictures.
///
/// # Errors
/// [`CameraError::Unavailable`] when another try may help, [`CameraError::Unusable`] when it cannot.
pub fn open(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Box<dyn Camera>, CameraError> {
    if let Some(fps) = settings.fps
        && !(fps > 0.0 && fps <= MAX_FPS)
    {
        return Err(CameraError::Unusable {
            device: settings.source.clone(),
            detail: format!("cannot run at {fps} frames a second"),
            cure: format!("set fps above 0 and up to {MAX_FPS}"),
        });
    }
    if settings.source.starts_with("/dev/") {
        return open_device(settings, clock);
    }
    Ok(Box::new(replay::ReplayCamera::open(settings, clock)?))
}

/// Highest rate that can be asked for, frames a second.
const MAX_FPS: f32 = 1000.0;

#[cfg(target_os = "linux")]
fn open_device(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Box<dyn Camera>, CameraError> {
    Ok(Box::new(v4l2::V4l2Camera::open(settings, clock)?))
}

#[cfg(not(target_os = "linux"))]
fn open_device(settings: &Settings, _: Arc<dyn Clock>) -> Result<Box<dyn Camera>, CameraError> {
    Err(CameraError::Unusable {
        device: settings.source.clone(),
        detail: "camera devices need Linux (V4L2)".into(),
        cure: "name a picture or a folder of pictures".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn refuses_rates_that_are_no_rate() {
        for fps in [0.0, -1.0, f32::NAN, f32::INFINITY, 1000.5] {
            let settings = Settings { fps: Some(fps), ..Settings::new("pictures") };
            let refused = open(&settings, Arc::new(SystemClock)).err();
            assert!(matches!(refused, Some(CameraError::Unusable { .. })), "{fps}: {refused:?}");
        }
    }

    #[test]
    fn paths_below_dev_are_devices_and_others_are_pictures() {
        for (source, expected) in [
            ("/dev/video-that-is-not-there", "no such device"),
            ("no-such-folder/video0", "no such file or folder"),
        ] {
            let error = open(&Settings::new(source), Arc::new(SystemClock)).err();
            let message = error.as_ref().map(ToString::to_string).unwrap_or_default();
            assert!(matches!(error, Some(CameraError::Unavailable { .. })), "{source}: {message}");
            assert!(message.contains(source) && message.contains(expected), "{message}");
        }
    }
}
