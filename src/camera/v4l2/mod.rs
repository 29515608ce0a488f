//! A camera behind the Linux V4L2 interface: memory-mapped streaming of its best native format, one copy a frame.
//!
//! Survives unplug and replug: any fault of the stream closes the device, and each later call tries to open it again.
//! What the kernel says and does is behind `device::Device`, so that all of this runs against a scripted device as well.

mod device;
mod fault;
mod format;
mod linux;
mod stream;
mod sys;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::device::{Connector, Device, FourCc, Interval, Layout, Readiness, Role, Size, SizeRange};
use self::fault::{Step, explain};
use self::format::{Mode, Native, Wanted, choose, interval_for, nearest};
use self::stream::{Numbering, Stream};
use crate::camera::{Camera, CameraError, CameraInfo, Capture, MAX_PIXELS, Settings, Sink};
use crate::clock::{Clock, UnixTime};
use crate::frame::PixelFormat;

/// Buffers in the driver: one is being filled, one waits, one covers a late capture thread. Each is a whole picture of memory.
const BUFFERS: u32 = 3;
/// Without a good frame for this long, or four frame intervals, the device is closed and opened again.
const STALL: Duration = Duration::from_secs(5);
/// A stamp older than this is not of this frame.
const MAX_AGE: Duration = Duration::from_secs(10);
/// Wanted size when the settings name none.
const DEFAULT_SIZE: Size = Size { width: 1280, height: 720 };

/// A V4L2 camera.
pub struct V4l2Camera {
    connector: Box<dyn Connector>,
    clock: Arc<dyn Clock>,
    wanted: Wanted,
    /// The one native format that may be chosen; `None`: any.
    only: Option<FourCc>,
    info: CameraInfo,
    /// `YUYV 640x480`, for messages; empty before the first choice.
    mode: String,
    stream: Option<Stream>,
    reopened: bool,
    numbering: Numbering,
    damaged: u64,
}

impl V4l2Camera {
    /// Opens the device, chooses format, size and rate, and starts the stream.
    ///
    /// # Errors
    /// [`CameraError::Unavailable`] when the device is away, busy or refuses for now; [`CameraError::Unusable`] when it is
    /// no camera or has no format that is understood.
    pub fn open(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Self, CameraError> {
        let node = linux::Node(settings.source.clone().into());
        Self::connect(Box::new(node), settings, None, clock)
    }

    /// As [`Self::open`], but with this native format only: a four-character code of V4L2, such as `YUYV` or `NM12`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_format(
        settings: &Settings,
        code: [u8; 4],
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CameraError> {
        let node = linux::Node(settings.source.clone().into());
        Self::connect(Box::new(node), settings, Some(FourCc(code)), clock)
    }

    fn connect(
        connector: Box<dyn Connector>,
        settings: &Settings,
        only: Option<FourCc>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CameraError> {
        let mut camera = Self {
            connector,
            clock,
            only,
            wanted: Wanted { size: wanted_size(settings), fps: settings.fps.map(f64::from) },
            info: CameraInfo {
                source: settings.source.clone(),
                description: String::new(),
                format: PixelFormat::Yuyv,
                width: 0,
                height: 0,
                fps: None,
            },
            mode: String::new(),
            stream: None,
            reopened: false,
            numbering: Numbering::default(),
            damaged: 0,
        };
        camera.stream = Some(camera.start()?);
        Ok(camera)
    }

    /// Opens the device and starts its stream.
    fn start(&mut self) -> Result<Stream, CameraError> {
        self.mode.clear();
        let mut device =
            self.connector.connect().map_err(|error| self.fault(Step::Open, &error))?;
        let identity = device.identity().map_err(|error| self.fault(Step::Identify, &error))?;
        self.refuse_role(identity.role)?;
        let chosen = self.choose_mode(&mut *device)?;
        self.mode = format!("{} {}", chosen.native.code, chosen.size);
        let layout = device
            .set_format(chosen.native.code, chosen.size)
            .map_err(|error| self.fault(Step::SetFormat, &error))?;
        let (native, layout) = self.accept(layout)?;
        let interval = self.set_rate(&mut *device, chosen.interval)?;
        let buffers = device.start(BUFFERS).map_err(|error| self.fault(Step::Start, &error))?;
        if buffers == 0 {
            return Err(self.fault(Step::Start, &io::Error::from_raw_os_error(libc::ENOMEM)));
        }
        self.info.description = format!("{} ({})", identity.card, identity.driver);
        self.info.format = native.format;
        (self.info.width, self.info.height) =
            (layout.size.width as usize, layout.size.height as usize);
        self.info.fps = interval.and_then(Interval::fps).map(|fps| fps as f32);
        self.numbering.stream_restarts();
        let rate = interval.and_then(Interval::fps);
        let four_frames = rate.and_then(|fps| Duration::try_from_secs_f64(4.0 / fps).ok());
        let stall = STALL.max(four_frames.unwrap_or_default());
        Ok(Stream { device, native, layout, stall, alive: self.clock.now() })
    }

    fn refuse_role(&self, role: Role) -> Result<(), CameraError> {
        match role {
            Role::Capture => Ok(()),
            Role::CaptureWithoutStreaming => Err(self.unusable(
                "its driver has no memory-mapped streaming".into(),
                "use another camera or driver",
            )),
            Role::Other => Err(self.unusable(
                "it is no capture device (metadata, output or codec)".into(),
                "set the camera's first node, as `v4l2-ctl --list-devices` shows",
            )),
        }
    }

    /// Lists what the device offers, and chooses.
    fn choose_mode(&self, device: &mut dyn Device) -> Result<Mode, CameraError> {
        let list = |error: io::Error| self.fault(Step::ListFormats, &error);
        let offered = device.formats().map_err(list)?;
        let mut modes = Vec::new();
        let allowed = |code: &FourCc| self.only.is_none_or(|only| only == *code);
        for native in offered.iter().copied().filter(allowed).filter_map(Native::from_code) {
            let mut sizes = device.sizes(native.code).map_err(list)?;
            if sizes.is_empty() {
                // The driver takes any size and answers S_FMT with the nearest one it has.
                let size = self.wanted.size;
                sizes.push(SizeRange { min: size, max: size, step: size });
            }
            for range in sizes {
                let size = nearest(range, self.wanted.size);
                let rates = device.intervals(native.code, size).map_err(list)?;
                let interval = interval_for(&rates, self.wanted.fps_to_reach());
                modes.push(Mode { native, size, interval });
            }
        }
        choose(&modes, self.wanted).ok_or_else(|| {
            let offered: Vec<_> = offered.iter().map(FourCc::to_string).collect();
            self.unusable(
                format!(
                    "offers only {}",
                    if offered.is_empty() { "no format".into() } else { offered.join(", ") }
                ),
                "use a camera or ISP output with NV12, YUYV, MJPEG or GREY",
            )
        })
    }

    /// Checks what the driver made of the format.
    fn accept(&mut self, mut layout: Layout) -> Result<(Native, Layout), CameraError> {
        self.mode = format!("{} {}", layout.format, layout.size);
        let answer = || {
            self.unusable(
                format!(
                    "{}: the driver sets a layout that is not understood ({:?})",
                    self.mode, layout.strides
                ),
                "set another width and height",
            )
        };
        let (width, height) = (layout.size.width as usize, layout.size.height as usize);
        let native = Native::from_code(layout.format).ok_or_else(answer)?;
        let fits =
            width.checked_mul(height).is_some_and(|pixels| (1..=MAX_PIXELS).contains(&pixels));
        if !fits || layout.strides.len() != native.planes {
            return Err(answer());
        }
        let row = native.row_bytes(width);
        for stride in &layout.strides {
            // Some drivers leave it 0 for packed rows.
            if *stride != 0 && (*stride as usize) < row || *stride as usize > row * 4 + 4096 {
                return Err(answer());
            }
        }
        for stride in layout.strides.iter_mut().filter(|stride| **stride == 0) {
            *stride = row as u32;
        }
        Ok((native, layout))
    }

    fn set_rate(
        &self,
        device: &mut dyn Device,
        chosen: Option<Interval>,
    ) -> Result<Option<Interval>, CameraError> {
        let set = match self.wanted.fps {
            Some(fps) => device.set_interval(chosen.unwrap_or(Interval::from_fps(fps))),
            None => device.interval(),
        };
        set.map_err(|error| self.fault(Step::SetRate, &error))
    }

    /// Takes the filled buffer, if it is good. The device must be closed after an error.
    fn take(&mut self, sink: &mut dyn Sink) -> Result<Taken, CameraError> {
        let Some(stream) = &mut self.stream else { return Ok(Taken::Nothing) };
        let filled = match stream.device.dequeue() {
            Ok(filled) => filled,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Taken::Nothing),
            Err(error) => return Err(self.fault(Step::Capture, &error)),
        };
        // Numbered also when damaged: the gap tells that a frame is missing.
        let number = self.numbering.number(filled.sequence);
        let mut frame = if filled.corrupt { None } else { sink.buffer() };
        let unwanted = !filled.corrupt && frame.is_none();
        let good = frame.as_mut().is_some_and(|frame| stream.copy(&filled, frame));
        if let Err(error) = stream.device.requeue(filled.buffer) {
            return Err(self.fault(Step::Capture, &error));
        }
        let now = self.clock.now();
        if unwanted {
            stream.alive = now;
            return Ok(Taken::Unwanted);
        }
        let Some(frame) = frame.filter(|_| good) else {
            self.damaged += 1;
            log::debug!("camera={} frame={number} skipped=damaged", self.info.source);
            return Ok(Taken::Damaged);
        };
        stream.alive = now;
        let age = filled.age.filter(|age| *age <= MAX_AGE).unwrap_or_default();
        frame.captured = now.checked_sub(age).unwrap_or(now);
        let wall = self.clock.wall().as_micros();
        frame.captured_at = UnixTime::from_micros(wall.saturating_sub(age.as_micros() as u64));
        frame.number = number;
        Ok(Taken::Frame)
    }

    fn fault(&self, step: Step, error: &io::Error) -> CameraError {
        explain(&self.info.source, &self.mode, step, error)
    }

    fn unusable(&self, detail: String, cure: &str) -> CameraError {
        CameraError::Unusable { device: self.info.source.clone(), detail, cure: cure.into() }
    }

    /// Waits for frames until one is good.
    fn wait(&mut self, sink: &mut dyn Sink, deadline: Instant) -> Result<Capture, CameraError> {
        loop {
            let Some(stream) = &mut self.stream else { return Ok(Capture::TimedOut) };
            // Polled once even when the deadline has passed, and never beyond the stall.
            let patience =
                deadline.min(stream.stalls_at()).saturating_duration_since(self.clock.now());
            let readiness = stream.device.wait(patience);
            let readiness = readiness.map_err(|error| self.fault(Step::Capture, &error))?;
            let taken = match readiness {
                Readiness::TimedOut => Taken::Nothing,
                Readiness::Filled | Readiness::Broken => self.take(sink)?,
            };
            let failed = match (readiness, taken) {
                (_, Taken::Frame) => {
                    let first_again = std::mem::take(&mut self.reopened);
                    return Ok(if first_again { Capture::Restarted } else { Capture::Frame });
                }
                (_, Taken::Unwanted) => return Ok(Capture::Unwanted),
                (Readiness::Broken, Taken::Nothing) => Some(libc::EIO),
                _ if self.stalled() => Some(libc::ETIMEDOUT),
                _ => None,
            };
            if let Some(code) = failed {
                return Err(self.fault(Step::Capture, &io::Error::from_raw_os_error(code)));
            }
            if self.clock.now() >= deadline {
                return Ok(Capture::TimedOut);
            }
        }
    }

    fn stalled(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.stalls_at() <= self.clock.now())
    }
}

/// The wanted size; of one side given alone, 16:9.
fn wanted_size(settings: &Settings) -> Size {
    let side = |pixels: usize| u32::try_from(pixels).unwrap_or(u32::MAX);
    match (settings.width.map(side), settings.height.map(side)) {
        (Some(width), Some(height)) => Size { width, height },
        (Some(width), None) => Size { width, height: width / 16 * 9 },
        (None, Some(height)) => Size { width: height.saturating_mul(16) / 9, height },
        (None, None) => DEFAULT_SIZE,
    }
}

/// What a filled buffer brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Frame,
    Unwanted,
    Damaged,
    Nothing,
}

impl Camera for V4l2Camera {
    fn info(&self) -> &CameraInfo {
        &self.info
    }

    fn capture(&mut self, sink: &mut dyn Sink, timeout: Duration) -> Result<Capture, CameraError> {
        let deadline = self.clock.now() + timeout;
        if self.stream.is_none() {
            self.stream = Some(self.start()?);
            self.reopened = true;
        }
        // Closed at once: as long as it is open, a device that is plugged in again gets another name.
        self.wait(sink, deadline).inspect_err(|_| self.stream = None)
    }

    fn frames_damaged(&self) -> u64 {
        self.damaged
    }
}

#[cfg(test)]
mod tests;
