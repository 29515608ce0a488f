//! The kernel's V4L2 interface as of `linux/videodev2.h`: structures, constants, and requests bound to their structures.
//!
//! Layouts are those of the kernel for 64-bit and for 32-bit with 64-bit time (`__kernel_v4l2_timeval`, Linux 5.6 on), whatever the
//! C library's own `timeval` is: request numbers carry the size, so the kernel knows which one it gets.

#![expect(unsafe_code, reason = "the kernel is called here")]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct v4l2_capability`.
#[repr(C)]
pub(super) struct Capability {
    pub(super) driver: [u8; 16],
    pub(super) card: [u8; 32],
    pub(super) bus_info: [u8; 32],
    pub(super) version: u32,
    pub(super) capabilities: u32,
    pub(super) device_caps: u32,
    pub(super) reserved: [u32; 3],
}

/// `struct v4l2_fmtdesc`.
#[repr(C)]
pub(super) struct FormatDescription {
    pub(super) index: u32,
    pub(super) kind: u32,
    pub(super) flags: u32,
    pub(super) description: [u8; 32],
    pub(super) pixelformat: [u8; 4],
    pub(super) mbus_code: u32,
    pub(super) reserved: [u32; 3],
}

/// `struct v4l2_frmsizeenum`; `size` holds a discrete size in its first two elements, else min, max, step of width and then of height.
#[repr(C)]
pub(super) struct FrameSize {
    pub(super) index: u32,
    pub(super) pixelformat: [u8; 4],
    pub(super) kind: u32,
    pub(super) size: [u32; 6],
    pub(super) reserved: [u32; 2],
}

/// `struct v4l2_frmivalenum`; `interval` holds a discrete fraction in its first element, else min, max, step.
#[repr(C)]
pub(super) struct FrameInterval {
    pub(super) index: u32,
    pub(super) pixelformat: [u8; 4],
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) kind: u32,
    pub(super) interval: [Fraction; 3],
    pub(super) reserved: [u32; 2],
}

/// `struct v4l2_fract`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Fraction {
    pub(super) numerator: u32,
    pub(super) denominator: u32,
}

/// `struct v4l2_pix_format`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct PixFormat {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) pixelformat: [u8; 4],
    pub(super) field: u32,
    pub(super) bytesperline: u32,
    pub(super) sizeimage: u32,
    pub(super) colorspace: u32,
    pub(super) private: u32,
    pub(super) flags: u32,
    pub(super) ycbcr_enc: u32,
    pub(super) quantization: u32,
    pub(super) xfer_func: u32,
}

/// `struct v4l2_plane_pix_format`, packed in the kernel.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub(super) struct PlanePixFormat {
    pub(super) sizeimage: u32,
    pub(super) bytesperline: u32,
    pub(super) reserved: [u16; 6],
}

/// `struct v4l2_pix_format_mplane`, packed in the kernel.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub(super) struct PixFormatMplane {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) pixelformat: [u8; 4],
    pub(super) field: u32,
    pub(super) colorspace: u32,
    pub(super) plane_fmt: [PlanePixFormat; MAX_PLANES],
    pub(super) num_planes: u8,
    pub(super) flags: u8,
    pub(super) ycbcr_enc: u8,
    pub(super) quantization: u8,
    pub(super) xfer_func: u8,
    pub(super) reserved: [u8; 7],
}

/// `struct v4l2_format`.
#[repr(C)]
pub(super) struct Format {
    pub(super) kind: u32,
    pub(super) fmt: FormatUnion,
}

/// The union in `struct v4l2_format`. Any bytes are valid in each member; `words` gives the kernel's alignment (its `v4l2_window`
/// has pointers).
#[repr(C)]
pub(super) union FormatUnion {
    pub(super) pix: PixFormat,
    pub(super) pix_mp: PixFormatMplane,
    words: [usize; 200 / size_of::<usize>()],
}

/// `struct v4l2_streamparm` with its `v4l2_captureparm`.
#[repr(C)]
pub(super) struct StreamParameters {
    pub(super) kind: u32,
    pub(super) capability: u32,
    pub(super) capturemode: u32,
    pub(super) timeperframe: Fraction,
    pub(super) rest: [u32; 46],
}

/// `struct v4l2_requestbuffers`.
#[repr(C)]
pub(super) struct RequestBuffers {
    pub(super) count: u32,
    pub(super) kind: u32,
    pub(super) memory: u32,
    pub(super) capabilities: u32,
    pub(super) flags: u8,
    pub(super) reserved: [u8; 3],
}

/// `struct v4l2_buffer`.
#[repr(C)]
pub(super) struct Buffer {
    pub(super) index: u32,
    pub(super) kind: u32,
    pub(super) bytesused: u32,
    pub(super) flags: u32,
    pub(super) field: u32,
    pub(super) timestamp: Timestamp,
    pub(super) timecode: [u32; 4],
    pub(super) sequence: u32,
    pub(super) memory: u32,
    pub(super) m: BufferUnion,
    pub(super) length: u32,
    pub(super) reserved2: u32,
    pub(super) request_fd: i32,
}

/// The union in `struct v4l2_buffer`.
#[repr(C)]
pub(super) union BufferUnion {
    pub(super) offset: u32,
    pub(super) planes: *mut Plane,
    word: usize,
}

/// `struct __kernel_v4l2_timeval`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Timestamp {
    pub(super) seconds: i64,
    pub(super) microseconds: i64,
}

/// `struct v4l2_plane`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Plane {
    pub(super) bytesused: u32,
    pub(super) length: u32,
    /// The union `m`, of which mapped buffers use `mem_offset`, its first four bytes.
    pub(super) m: PlaneUnion,
    pub(super) data_offset: u32,
    pub(super) reserved: [u32; 11],
}

/// The union in `struct v4l2_plane`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) union PlaneUnion {
    pub(super) mem_offset: u32,
    word: usize,
}

// Sizes as the kernel has them. They are part of the request numbers: a wrong one would be refused with ENOTTY.
const _: () = {
    const LONG: bool = size_of::<usize>() == 8;
    // i386 aligns 64-bit integers to 4 bytes; ARM EABI to 8.
    const PADDED: bool = LONG || align_of::<i64>() == 8;
    assert!(size_of::<Capability>() == 104);
    assert!(size_of::<FormatDescription>() == 64);
    assert!(size_of::<FrameSize>() == 44);
    assert!(size_of::<FrameInterval>() == 52);
    assert!(size_of::<PixFormat>() == 48);
    assert!(size_of::<PlanePixFormat>() == 20);
    assert!(size_of::<PixFormatMplane>() == 192);
    assert!(size_of::<Format>() == if LONG { 208 } else { 204 });
    assert!(size_of::<StreamParameters>() == 204);
    assert!(size_of::<RequestBuffers>() == 20);
    assert!(size_of::<Plane>() == if LONG { 64 } else { 60 });
    assert!(
        size_of::<Buffer>()
            == if LONG {
                88
            } else if PADDED {
                80
            } else {
                76
            }
    );
    assert!(std::mem::offset_of!(Buffer, timestamp) == if PADDED { 24 } else { 20 });
    assert!(std::mem::offset_of!(Buffer, m) == if PADDED { 64 } else { 60 });
    assert!(std::mem::offset_of!(Format, fmt) == size_of::<usize>());
    // As a C compiler prints them, with 64-bit time.
    assert!(S_FMT.0 == if LONG { 0xc0d0_5605 } else { 0xc0cc_5605 });
    assert!(
        DQBUF.0
            == if LONG {
                0xc058_5611
            } else if PADDED {
                0xc050_5611
            } else {
                0xc04c_5611
            }
    );
    assert!(STREAMON.0 == 0x4004_5612);
};

/// `VIDEO_MAX_PLANES`.
pub(super) const MAX_PLANES: usize = 8;
pub(super) const BUF_TYPE_VIDEO_CAPTURE: u32 = 1;
pub(super) const BUF_TYPE_VIDEO_CAPTURE_MPLANE: u32 = 9;
pub(super) const MEMORY_MMAP: u32 = 1;
pub(super) const FIELD_NONE: u32 = 1;
pub(super) const CAP_VIDEO_CAPTURE: u32 = 0x0000_0001;
pub(super) const CAP_VIDEO_CAPTURE_MPLANE: u32 = 0x0000_1000;
pub(super) const CAP_STREAMING: u32 = 0x0400_0000;
pub(super) const CAP_DEVICE_CAPS: u32 = 0x8000_0000;
pub(super) const CAP_TIMEPERFRAME: u32 = 0x1000;
pub(super) const BUF_FLAG_ERROR: u32 = 0x0000_0040;
pub(super) const BUF_FLAG_TIMESTAMP_MASK: u32 = 0x0000_e000;
pub(super) const BUF_FLAG_TIMESTAMP_MONOTONIC: u32 = 0x0000_2000;
/// `kind` of a discrete size or interval.
pub(super) const TYPE_DISCRETE: u32 = 1;

pub(super) const QUERYCAP: Request<Capability> = Request::new(READ, 0);
pub(super) const ENUM_FMT: Request<FormatDescription> = Request::new(READ | WRITE, 2);
pub(super) const S_FMT: Request<Format> = Request::new(READ | WRITE, 5);
pub(super) const REQBUFS: Request<RequestBuffers> = Request::new(READ | WRITE, 8);
pub(super) const STREAMON: Request<i32> = Request::new(WRITE, 18);
pub(super) const STREAMOFF: Request<i32> = Request::new(WRITE, 19);
pub(super) const G_PARM: Request<StreamParameters> = Request::new(READ | WRITE, 21);
pub(super) const S_PARM: Request<StreamParameters> = Request::new(READ | WRITE, 22);
pub(super) const ENUM_FRAMESIZES: Request<FrameSize> = Request::new(READ | WRITE, 74);
pub(super) const ENUM_FRAMEINTERVALS: Request<FrameInterval> = Request::new(READ | WRITE, 75);
const QUERYBUF: Request<Buffer> = Request::new(READ | WRITE, 9);
const QBUF: Request<Buffer> = Request::new(READ | WRITE, 15);
const DQBUF: Request<Buffer> = Request::new(READ | WRITE, 17);

const WRITE: u32 = 1;
const READ: u32 = 2;

/// A request number, bound to the structure that the kernel reads and writes for it.
///
/// Built only in this file, so that [`call`] is safe: the size in the number is the size of `T`, and no `T` of a public request has
/// pointers.
pub(super) struct Request<T>(u32, PhantomData<T>);

impl<T> Request<T> {
    // `_IOC` of asm-generic/ioctl.h, which x86 and ARM use.
    const fn new(direction: u32, number: u32) -> Self {
        assert!(size_of::<T>() < 1 << 14, "14 bits for the size");
        Self(
            direction << 30 | (size_of::<T>() as u32) << 16 | (b'V' as u32) << 8 | number,
            PhantomData,
        )
    }
}

/// Structures for which all zeros is a valid value, and a sensible start: the kernel wants reserved fields zero.
///
/// # Safety
/// All bytes zero must be a valid `Self`.
pub(super) unsafe trait Zeroed: Sized {
    /// All bytes zero.
    fn zeroed() -> Self {
        // SAFETY: the implementor promises that zeros are valid.
        unsafe { std::mem::zeroed() }
    }
}

// SAFETY: integers and arrays of them.
unsafe impl Zeroed for Capability {}
// SAFETY: integers and arrays of them.
unsafe impl Zeroed for FormatDescription {}
// SAFETY: integers and arrays of them.
unsafe impl Zeroed for FrameSize {}
// SAFETY: integers and arrays of them.
unsafe impl Zeroed for FrameInterval {}
// SAFETY: integers and a union of integers.
unsafe impl Zeroed for Format {}
// SAFETY: integers and arrays of them.
unsafe impl Zeroed for StreamParameters {}
// SAFETY: integers and arrays of them.
unsafe impl Zeroed for RequestBuffers {}
// SAFETY: integers and a union whose pointer may be null.
unsafe impl Zeroed for Buffer {}
// SAFETY: integers and a union of integers.
unsafe impl Zeroed for Plane {}

/// Asks the kernel; repeats when a signal interrupts.
pub(super) fn call<T>(
    fd: BorrowedFd<'_>,
    request: &Request<T>,
    argument: &mut T,
) -> io::Result<()> {
    loop {
        // SAFETY: `argument` is a live, exclusive `T`, whose size the request number carries (see `Request`).
        // The cast is needed because musl takes the number as an int, glibc as an unsigned long.
        let result =
            unsafe { libc::ioctl(fd.as_raw_fd(), request.0 as _, std::ptr::from_mut(argument)) };
        if result != -1 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// What to do with a buffer.
#[derive(Clone, Copy)]
pub(super) enum BufferRequest {
    Query,
    Queue,
    Dequeue,
}

/// Asks the kernel about a mapped buffer of the stream of this `kind`; the planes matter to the multi-planar interface only.
pub(super) fn call_buffer(
    fd: BorrowedFd<'_>,
    request: BufferRequest,
    kind: u32,
    index: u32,
) -> io::Result<(Buffer, [Plane; MAX_PLANES])> {
    let mut planes = [Plane::zeroed(); MAX_PLANES];
    let mut buffer = Buffer { index, kind, memory: MEMORY_MMAP, ..Buffer::zeroed() };
    if kind == BUF_TYPE_VIDEO_CAPTURE_MPLANE {
        // The kernel writes at most `length` planes, during the call only.
        buffer.m = BufferUnion { planes: planes.as_mut_ptr() };
        buffer.length = MAX_PLANES as u32;
    }
    let number = match request {
        BufferRequest::Query => QUERYBUF,
        BufferRequest::Queue => QBUF,
        BufferRequest::Dequeue => DQBUF,
    };
    call(fd, &number, &mut buffer)?;
    if kind == BUF_TYPE_VIDEO_CAPTURE_MPLANE {
        buffer.m = BufferUnion { word: 0 };
    }
    Ok((buffer, planes))
}
