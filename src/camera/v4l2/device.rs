//! The port between the camera and the kernel: what V4L2 says and does, in plain types. `linux.rs` is the real device; tests
//! bring a scripted one.

use std::fmt;
use std::io;
use std::ops::Range;
use std::time::Duration;

/// Opens the device, now and after each unplug.
pub(super) trait Connector: Send {
    /// Opens the device node, without blocking.
    fn connect(&self) -> io::Result<Box<dyn Device>>;
}

/// An open capture device. Dropping it stops the stream, unmaps the buffers and closes the node.
pub(super) trait Device: Send {
    /// Who it is. `VIDIOC_QUERYCAP`.
    fn identity(&mut self) -> io::Result<Identity>;
    /// Pixel formats, in the driver's order. `VIDIOC_ENUM_FMT`.
    fn formats(&mut self) -> io::Result<Vec<FourCc>>;
    /// Sizes of a format; empty when the driver lists none. `VIDIOC_ENUM_FRAMESIZES`.
    fn sizes(&mut self, format: FourCc) -> io::Result<Vec<SizeRange>>;
    /// Rates of a format and size; empty when the driver lists none. `VIDIOC_ENUM_FRAMEINTERVALS`.
    fn intervals(&mut self, format: FourCc, size: Size) -> io::Result<Vec<IntervalRange>>;
    /// Sets format and size, and returns what the driver made of it. `VIDIOC_S_FMT`.
    fn set_format(&mut self, format: FourCc, size: Size) -> io::Result<Layout>;
    /// Sets the interval between frames, and returns what the driver made of it; `None` when it has no such
    /// setting. `VIDIOC_S_PARM`.
    fn set_interval(&mut self, interval: Interval) -> io::Result<Option<Interval>>;
    /// The interval between frames that is set, where the driver tells. `VIDIOC_G_PARM`.
    fn interval(&mut self) -> io::Result<Option<Interval>>;
    /// Maps `buffers` buffers, queues them all and starts the stream; returns how many there are.
    /// `VIDIOC_REQBUFS`, `VIDIOC_QUERYBUF`, `mmap`, `VIDIOC_QBUF`, `VIDIOC_STREAMON`.
    fn start(&mut self, buffers: u32) -> io::Result<u32>;
    /// Waits until a buffer is filled. `poll`.
    fn wait(&mut self, timeout: Duration) -> io::Result<Readiness>;
    /// Takes a filled buffer. `VIDIOC_DQBUF`; `WouldBlock` when there is none.
    fn dequeue(&mut self) -> io::Result<Filled>;
    /// Appends bytes of a plane of a dequeued buffer to `into`; fewer when the plane is shorter.
    fn copy(&self, buffer: u32, plane: usize, range: Range<usize>, into: &mut Vec<u8>);
    /// Gives a buffer back to be filled. `VIDIOC_QBUF`.
    fn requeue(&mut self, buffer: u32) -> io::Result<()>;
}

/// A pixel format by its four characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FourCc(pub(super) [u8; 4]);

impl fmt::Display for FourCc {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(formatter)
    }
}

impl fmt::Debug for FourCc {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Who a device is, and what it can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// Kernel driver: `uvcvideo`.
    pub(super) driver: String,
    /// Product: `HD Pro Webcam C920`.
    pub(super) card: String,
    /// What this node does.
    pub(super) role: Role,
}

/// What a device node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Captures video into mapped buffers.
    Capture,
    /// Captures video, but offers no streaming.
    CaptureWithoutStreaming,
    /// Something else: metadata, output, codec.
    Other,
}

/// Width and height, pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) width: u32,
    pub(super) height: u32,
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}x{}", self.width, self.height)
    }
}

/// Sizes that a driver offers: one (`min == max`), or a grid of `step` pixels (1: any).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SizeRange {
    pub(super) min: Size,
    pub(super) max: Size,
    pub(super) step: Size,
}

/// Seconds from one frame to the next, as a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) numerator: u32,
    pub(super) denominator: u32,
}

impl Interval {
    /// Frames a second; `None` for a zero in the fraction, which some drivers answer for "unknown".
    pub(super) fn fps(self) -> Option<f64> {
        (self.numerator > 0 && self.denominator > 0)
            .then(|| f64::from(self.denominator) / f64::from(self.numerator))
    }

    /// The interval of a rate above 0, to a thousandth of a frame a second.
    pub(super) fn from_fps(fps: f64) -> Self {
        let thousandths = (fps * 1000.0).round().clamp(1.0, f64::from(u32::MAX)) as u32;
        match thousandths % 1000 {
            0 => Self { numerator: 1, denominator: thousandths / 1000 },
            _ => Self { numerator: 1000, denominator: thousandths },
        }
    }
}

/// Intervals that a driver offers: one (`min == max`), or all between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IntervalRange {
    /// The shortest: the highest rate.
    pub(super) min: Interval,
    /// The longest: the lowest rate.
    pub(super) max: Interval,
}

/// Layout of the frames that a driver will deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) format: FourCc,
    pub(super) size: Size,
    /// Bytes from one row to the next, of each memory plane; 0 for compressed formats.
    pub(super) strides: Vec<u32>,
}

/// What [`Device::wait`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    /// A buffer is filled.
    Filled,
    /// Nothing yet.
    TimedOut,
    /// The stream is broken; the next dequeue says why.
    Broken,
}

/// A filled buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Filled {
    pub(super) buffer: u32,
    /// Where each memory plane's payload lies, bytes.
    pub(super) planes: [Payload; MAX_PLANES],
    /// The driver flagged the data as corrupt.
    pub(super) corrupt: bool,
    /// Counts the frames of the sensor, dropped ones too; wraps.
    pub(super) sequence: u32,
    /// Time since the capture, where the driver stamps with the monotonic clock.
    pub(super) age: Option<Duration>,
}

/// Payload of a plane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Payload {
    /// First byte.
    pub(super) offset: usize,
    /// Bytes from there.
    pub(super) length: usize,
}

/// Most memory planes of the formats that are understood (NM12: Y and UV).
pub(super) const MAX_PLANES: usize = 2;
