//! A picture as a camera delivers it, with its time and number. Buffers are owned by the pipeline and reused.

use std::time::Instant;

use ocelli_protocol::time::UnixTime;

/// How the bytes of a [`Frame`] are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    /// 3 bytes a pixel: red, green, blue.
    Rgb24,
    /// 4:2:2 packed, 4 bytes for two pixels: Y0 U Y1 V. BT.601, limited range.
    Yuyv,
    /// 4:2:0: a plane of Y, then a plane of interleaved U V at half width and height. BT.601, limited range.
    Nv12,
    /// 1 byte a pixel.
    Gray8,
    /// A JPEG file a frame.
    Mjpeg,
}

/// One captured picture.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Pixels, rows top to bottom. For [`PixelFormat::Mjpeg`] one JPEG file.
    pub data: Vec<u8>,
    /// Width, pixels.
    pub width: usize,
    /// Height, pixels.
    pub height: usize,
    /// Bytes from one row to the next (of the Y plane for NV12, whose UV plane has the same); 0 for MJPEG.
    pub stride: usize,
    /// Layout of `data`.
    pub format: PixelFormat,
    /// Number since the camera was opened by this agent; gaps are frames that the driver dropped.
    pub number: u64,
    /// When it was captured, time of day.
    pub captured_at: UnixTime,
    /// When it was captured, for latencies.
    pub captured: Instant,
}

impl Frame {
    /// An empty frame whose buffer a camera fills.
    #[must_use]
    pub fn empty(now: Instant) -> Self {
        Self {
            data: Vec::new(),
            width: 0,
            height: 0,
            stride: 0,
            format: PixelFormat::Rgb24,
            number: 0,
            captured_at: UnixTime::default(),
            captured: now,
        }
    }
}
