//! The real device: V4L2 memory-mapped streaming, single- and multi-planar. Knows no policy.

#![expect(unsafe_code, reason = "the driver's buffers are mapped here")]

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::time::Duration;

use super::device::{
    Connector, Device, Filled, FourCc, Identity, Interval, IntervalRange, Layout, MAX_PLANES,
    Payload, Readiness, Role, Size, SizeRange,
};
use super::sys::{self, BufferRequest, Zeroed};

/// Most entries read of a list; a driver that never ends one must not stop the agent.
const MAX_LISTED: u32 = 256;

/// Opens a device node by its path.
pub(super) struct Node(pub(super) PathBuf);

impl Connector for Node {
    fn connect(&self) -> io::Result<Box<dyn Device>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(&self.0)?;
        Ok(Box::new(LinuxDevice { file, api: Api::SinglePlanar, planes: 1, buffers: Vec::new() }))
    }
}

/// Which of V4L2's two interfaces the driver speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Api {
    SinglePlanar,
    MultiPlanar,
}

struct LinuxDevice {
    file: File,
    api: Api,
    /// Memory planes of a buffer, as the set format has them.
    planes: usize,
    buffers: Vec<Vec<Mapping>>,
}

impl LinuxDevice {
    fn kind(&self) -> u32 {
        match self.api {
            Api::SinglePlanar => sys::BUF_TYPE_VIDEO_CAPTURE,
            Api::MultiPlanar => sys::BUF_TYPE_VIDEO_CAPTURE_MPLANE,
        }
    }

    fn call<T>(&self, request: &sys::Request<T>, argument: &mut T) -> io::Result<()> {
        sys::call(self.file.as_fd(), request, argument)
    }

    /// Reads a list by index until the driver says that it ends.
    fn list<T>(&self, mut entry: impl FnMut(&Self, u32) -> io::Result<T>) -> io::Result<Vec<T>> {
        let mut found = Vec::new();
        for index in 0..MAX_LISTED {
            match entry(self, index) {
                Ok(value) => found.push(value),
                // EINVAL is the end; ENOTTY and ENODATA say that the driver has no such list.
                Err(error) if ends_list(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn buffer_call(
        &self,
        request: BufferRequest,
        index: u32,
    ) -> io::Result<(sys::Buffer, [sys::Plane; sys::MAX_PLANES])> {
        sys::call_buffer(self.file.as_fd(), request, self.kind(), index)
    }

    fn map(&self, index: u32) -> io::Result<Vec<Mapping>> {
        let (buffer, planes) = self.buffer_call(BufferRequest::Query, index)?;
        match self.api {
            Api::SinglePlanar => {
                // SAFETY: single-planar buffers have an offset, and every bit pattern of it is valid.
                let offset = unsafe { buffer.m.offset };
                Ok(vec![Mapping::new(&self.file, offset, buffer.length as usize)?])
            }
            Api::MultiPlanar => planes[..self.planes]
                .iter()
                .map(|plane| {
                    // SAFETY: mapped planes have an offset, and every bit pattern of it is valid.
                    let offset = unsafe { plane.m.mem_offset };
                    Mapping::new(&self.file, offset, plane.length as usize)
                })
                .collect(),
        }
    }

    fn stream_parameters(&self) -> sys::StreamParameters {
        sys::StreamParameters { kind: self.kind(), ..sys::StreamParameters::zeroed() }
    }
}

fn ends_list(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTTY | libc::ENODATA))
}

impl Device for LinuxDevice {
    fn identity(&mut self) -> io::Result<Identity> {
        let mut answer = sys::Capability::zeroed();
        self.call(&sys::QUERYCAP, &mut answer)?;
        // `capabilities` are those of all nodes of the device, `device_caps` those of this one.
        let own = match answer.capabilities & sys::CAP_DEVICE_CAPS {
            0 => answer.capabilities,
            _ => answer.device_caps,
        };
        let single = own & sys::CAP_VIDEO_CAPTURE != 0;
        let multi = own & sys::CAP_VIDEO_CAPTURE_MPLANE != 0;
        self.api = if multi && !single { Api::MultiPlanar } else { Api::SinglePlanar };
        let role = match (single || multi, own & sys::CAP_STREAMING != 0) {
            (false, _) => Role::Other,
            (true, false) => Role::CaptureWithoutStreaming,
            (true, true) => Role::Capture,
        };
        Ok(Identity { driver: text(&answer.driver), card: text(&answer.card), role })
    }

    fn formats(&mut self) -> io::Result<Vec<FourCc>> {
        self.list(|device, index| {
            let mut entry = sys::FormatDescription::zeroed();
            (entry.index, entry.kind) = (index, device.kind());
            device.call(&sys::ENUM_FMT, &mut entry)?;
            Ok(FourCc(entry.pixelformat))
        })
    }

    fn sizes(&mut self, format: FourCc) -> io::Result<Vec<SizeRange>> {
        let mut stepwise = false;
        self.list(|device, index| {
            // A stepwise list has one entry; some drivers answer the same for every index.
            if stepwise {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            let mut entry = sys::FrameSize::zeroed();
            (entry.index, entry.pixelformat) = (index, format.0);
            device.call(&sys::ENUM_FRAMESIZES, &mut entry)?;
            stepwise = entry.kind != sys::TYPE_DISCRETE;
            let size = |width: usize, height: usize| Size {
                width: entry.size[width],
                height: entry.size[height],
            };
            Ok(match stepwise {
                false => SizeRange { min: size(0, 1), max: size(0, 1), step: size(0, 1) },
                true => SizeRange { min: size(0, 3), max: size(1, 4), step: size(2, 5) },
            })
        })
    }

    fn intervals(&mut self, format: FourCc, size: Size) -> io::Result<Vec<IntervalRange>> {
        let mut stepwise = false;
        self.list(|device, index| {
            if stepwise {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            let mut entry = sys::FrameInterval::zeroed();
            (entry.index, entry.pixelformat) = (index, format.0);
            (entry.width, entry.height) = (size.width, size.height);
            device.call(&sys::ENUM_FRAMEINTERVALS, &mut entry)?;
            stepwise = entry.kind != sys::TYPE_DISCRETE;
            let [min, max, _] = entry.interval.map(interval_of);
            Ok(if stepwise { IntervalRange { min, max } } else { IntervalRange { min, max: min } })
        })
    }

    fn set_format(&mut self, format: FourCc, size: Size) -> io::Result<Layout> {
        let mut request = sys::Format::zeroed();
        request.kind = self.kind();
        match self.api {
            Api::SinglePlanar => {
                // SAFETY: zeros, just written, are a valid `PixFormat`.
                let pix = unsafe { &mut request.fmt.pix };
                (pix.width, pix.height) = (size.width, size.height);
                (pix.pixelformat, pix.field) = (format.0, sys::FIELD_NONE);
                self.call(&sys::S_FMT, &mut request)?;
                // SAFETY: every bit pattern is a valid `PixFormat`.
                let pix = unsafe { request.fmt.pix };
                self.planes = 1;
                let size = Size { width: pix.width, height: pix.height };
                Ok(Layout {
                    format: FourCc(pix.pixelformat),
                    size,
                    strides: vec![pix.bytesperline],
                })
            }
            Api::MultiPlanar => {
                // SAFETY: zeros, just written, are a valid `PixFormatMplane`.
                let mut pix = unsafe { request.fmt.pix_mp };
                (pix.width, pix.height) = (size.width, size.height);
                (pix.pixelformat, pix.field) = (format.0, sys::FIELD_NONE);
                request.fmt.pix_mp = pix;
                self.call(&sys::S_FMT, &mut request)?;
                // SAFETY: every bit pattern is a valid `PixFormatMplane`.
                let pix = unsafe { request.fmt.pix_mp };
                self.planes = usize::from(pix.num_planes).clamp(1, sys::MAX_PLANES);
                let plane_formats = pix.plane_fmt;
                let strides = plane_formats[..self.planes].iter().map(|plane| plane.bytesperline);
                let size = Size { width: pix.width, height: pix.height };
                Ok(Layout { format: FourCc(pix.pixelformat), size, strides: strides.collect() })
            }
        }
    }

    fn set_interval(&mut self, interval: Interval) -> io::Result<Option<Interval>> {
        let mut parameters = self.stream_parameters();
        let Interval { numerator, denominator } = interval;
        parameters.timeperframe = sys::Fraction { numerator, denominator };
        match self.call(&sys::S_PARM, &mut parameters) {
            Ok(()) if parameters.capability & sys::CAP_TIMEPERFRAME == 0 => Ok(None),
            Ok(()) => Ok(Some(interval_of(parameters.timeperframe))),
            Err(error) if ends_list(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn interval(&mut self) -> io::Result<Option<Interval>> {
        let mut parameters = self.stream_parameters();
        match self.call(&sys::G_PARM, &mut parameters) {
            Ok(()) => Ok(Some(interval_of(parameters.timeperframe))),
            Err(error) if ends_list(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn start(&mut self, buffers: u32) -> io::Result<u32> {
        let mut request = sys::RequestBuffers { count: buffers, ..sys::RequestBuffers::zeroed() };
        (request.kind, request.memory) = (self.kind(), sys::MEMORY_MMAP);
        self.call(&sys::REQBUFS, &mut request)?;
        for index in 0..request.count {
            let mappings = self.map(index)?;
            self.buffers.push(mappings);
            self.requeue(index)?;
        }
        self.call(&sys::STREAMON, &mut self.kind().cast_signed())?;
        Ok(request.count)
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<Readiness> {
        let mut poll = libc::pollfd { fd: self.file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // Rounded up, so that a rest below a millisecond does not become a busy loop.
        let millis = timeout.as_micros().div_ceil(1000);
        let millis = libc::c_int::try_from(millis).unwrap_or(libc::c_int::MAX);
        // SAFETY: `poll` is one live, exclusive pollfd.
        let result = unsafe { libc::poll(&raw mut poll, 1, millis) };
        if result < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok(Readiness::TimedOut),
                _ => Err(error),
            };
        }
        Ok(match (result, poll.revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL)) {
            (0, _) => Readiness::TimedOut,
            (_, 0) => Readiness::Filled,
            _ => Readiness::Broken,
        })
    }

    fn dequeue(&mut self) -> io::Result<Filled> {
        let (buffer, planes) = self.buffer_call(BufferRequest::Dequeue, 0)?;
        let mut payloads = [Payload::default(); MAX_PLANES];
        match self.api {
            Api::SinglePlanar => payloads[0].length = buffer.bytesused as usize,
            Api::MultiPlanar => {
                for (payload, plane) in payloads.iter_mut().zip(&planes[..self.planes]) {
                    payload.offset = plane.data_offset as usize;
                    payload.length = plane.bytesused.saturating_sub(plane.data_offset) as usize;
                }
            }
        }
        let clock = buffer.flags & sys::BUF_FLAG_TIMESTAMP_MASK;
        let monotonic = clock == sys::BUF_FLAG_TIMESTAMP_MONOTONIC;
        Ok(Filled {
            buffer: buffer.index,
            planes: payloads,
            corrupt: buffer.flags & sys::BUF_FLAG_ERROR != 0,
            sequence: buffer.sequence,
            age: if monotonic { age(buffer.timestamp) } else { None },
        })
    }

    fn copy(&self, buffer: u32, plane: usize, range: Range<usize>, into: &mut Vec<u8>) {
        if let Some(mapping) =
            self.buffers.get(buffer as usize).and_then(|planes| planes.get(plane))
        {
            mapping.append_to(range, into);
        }
    }

    fn requeue(&mut self, buffer: u32) -> io::Result<()> {
        self.buffer_call(BufferRequest::Queue, buffer).map(|_| ())
    }
}

impl Drop for LinuxDevice {
    fn drop(&mut self) {
        // Fails when the device is gone, and then there is nothing left to stop.
        let _ = self.call(&sys::STREAMOFF, &mut self.kind().cast_signed());
    }
}

/// A buffer of the driver in our address space, readable.
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is owned by this value alone; nothing in it is bound to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(file: &File, offset: u32, length: usize) -> io::Result<Self> {
        // The kernel's offsets of V4L2 buffers end at 2 GiB, so they fit a 32-bit off_t as well.
        let offset = offset as libc::off_t;
        // SAFETY: a new mapping at an address that the kernel chooses; it replaces none of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { start, length })
    }

    /// Copies once, front to back: these pages may be uncached on ARM.
    fn append_to(&self, range: Range<usize>, into: &mut Vec<u8>) {
        let end = range.end.min(self.length);
        let length = end.saturating_sub(range.start);
        into.reserve(length);
        // SAFETY: `range.start + length <= self.length` when length is not 0, so the source lies in the mapping, which lives as long
        // as `self`; the target has room for `length` more bytes and lies in our own heap, apart from it. Should a broken driver
        // still write, the bytes are torn, but any byte is a valid u8.
        unsafe {
            if length > 0 {
                let target = into.as_mut_ptr().add(into.len());
                std::ptr::copy_nonoverlapping(self.start.as_ptr().add(range.start), target, length);
                into.set_len(into.len() + length);
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what mmap returned, unmapped once, and no reference into it is ever handed out.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert_eq!(result, 0, "munmap fails only for wrong arguments");
    }
}

fn interval_of(fraction: sys::Fraction) -> Interval {
    Interval { numerator: fraction.numerator, denominator: fraction.denominator }
}

/// A string of the kernel: up to the first zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Time since a stamp of the monotonic clock; `None` for one in the future.
fn age(stamp: sys::Timestamp) -> Option<Duration> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a live, exclusive timespec.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) } != 0 {
        return None;
    }
    let seconds = u64::try_from(now.tv_sec).ok()?;
    let now = Duration::new(seconds, u32::try_from(now.tv_nsec).ok()?);
    let micros = u32::try_from(stamp.microseconds).ok()?;
    let stamp = Duration::new(u64::try_from(stamp.seconds).ok()?, micros.checked_mul(1000)?);
    now.checked_sub(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_no_camera_answers_enotty() {
        let mut null = Node("/dev/null".into()).connect().unwrap();
        let error = null.identity().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }

    #[test]
    fn a_mapping_gives_only_its_own_bytes() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, b"0123456789").unwrap();
        let mapping = Mapping::new(&file, 0, 10).unwrap();
        let cases: [(Range<usize>, &[u8]); 5] =
            [(0..10, b"0123456789"), (3..5, b"34"), (8..20, b"89"), (10..12, b""), (20..30, b"")];
        for (range, expected) in cases {
            let mut bytes = b"x".to_vec();
            mapping.append_to(range.clone(), &mut bytes);
            assert_eq!(bytes, [b"x", expected].concat(), "{range:?}");
        }
    }

    #[test]
    fn age_of_a_stamp_in_the_future_is_unknown() {
        assert_eq!(age(sys::Timestamp { seconds: i64::MAX, microseconds: 0 }), None);
        assert_eq!(age(sys::Timestamp { seconds: -1, microseconds: 0 }), None);
        assert!(age(sys::Timestamp { seconds: 0, microseconds: 1 }).is_some());
    }
}
