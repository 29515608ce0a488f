//! The camera against a scripted device: format choice, damaged buffers, unplug and replug, and every refusal.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use super::device::{Filled, Identity, IntervalRange, Payload};
use super::*;
use crate::clock::SystemClock;
use crate::frame::Frame;

/// A device as the script of a test has it, shared between test and camera.
struct World {
    now: Instant,
    /// What opening fails with.
    open: Option<i32>,
    identity: Result<Role, i32>,
    formats: Vec<(FourCc, Vec<SizeRange>)>,
    rates: Vec<u32>,
    /// Layout that the driver sets, whatever is asked.
    layout: Option<Layout>,
    set_format: Option<i32>,
    start: Option<i32>,
    events: VecDeque<Event>,
    /// Bytes of the planes of the one buffer.
    planes: Vec<Vec<u8>>,
    /// Devices that are open.
    open_devices: usize,
    queued: i64,
    asked: Vec<String>,
}

/// What happens next in the stream.
enum Event {
    Frame(Filled),
    /// Dequeue fails.
    Fault(i32),
    /// Poll reports an error, and dequeue finds nothing.
    Broken,
    /// Poll is woken, and dequeue finds nothing.
    Spurious,
    /// Nothing for this long.
    Silence(Duration),
}

#[derive(Clone)]
struct Script(Arc<Mutex<World>>);

impl Script {
    fn new() -> Self {
        let discrete = |width, height| {
            let size = Size { width, height };
            SizeRange { min: size, max: size, step: size }
        };
        Self(Arc::new(Mutex::new(World {
            now: SystemClock.now(),
            open: None,
            identity: Ok(Role::Capture),
            formats: vec![(FourCc(*b"YUYV"), vec![discrete(4, 2), discrete(1280, 720)])],
            rates: vec![30, 10],
            layout: None,
            set_format: None,
            start: None,
            events: VecDeque::new(),
            planes: vec![(0..=255).collect()],
            open_devices: 0,
            queued: 0,
            asked: Vec::new(),
        })))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    fn offer(self, code: &[u8; 4], layout: Layout, planes: Vec<Vec<u8>>) -> Self {
        {
            let mut world = self.world();
            let sizes = world.formats[0].1.clone();
            world.formats = vec![(FourCc(*code), sizes)];
            (world.layout, world.planes) = (Some(layout), planes);
        }
        self
    }

    fn plays(&self, events: impl IntoIterator<Item = Event>) {
        self.world().events.extend(events);
    }

    fn open(&self) -> Result<V4l2Camera, CameraError> {
        self.open_only(None)
    }

    fn open_only(&self, only: Option<FourCc>) -> Result<V4l2Camera, CameraError> {
        let settings = Settings {
            width: Some(4),
            height: Some(2),
            fps: Some(10.0),
            ..Settings::new("/dev/video7")
        };
        V4l2Camera::connect(Box::new(self.clone()), &settings, only, Arc::new(self.clone()))
    }
}

impl Clock for Script {
    fn now(&self) -> Instant {
        self.world().now
    }

    fn wall(&self) -> UnixTime {
        UnixTime::from_micros(50_000_000)
    }
}

struct FakeDevice(Script);

impl Drop for FakeDevice {
    fn drop(&mut self) {
        let mut world = self.0.world();
        world.open_devices -= 1;
        world.queued = 0;
    }
}

fn answer<T>(code: Option<i32>, value: T) -> io::Result<T> {
    code.map_or(Ok(value), |code| Err(io::Error::from_raw_os_error(code)))
}

impl Connector for Script {
    fn connect(&self) -> io::Result<Box<dyn Device>> {
        let mut world = self.world();
        world.asked.clear();
        answer(world.open, ())?;
        world.open_devices += 1;
        Ok(Box::new(FakeDevice(self.clone())))
    }
}

impl Device for FakeDevice {
    fn identity(&mut self) -> io::Result<Identity> {
        let role = self.0.world().identity.map_err(io::Error::from_raw_os_error)?;
        Ok(Identity { driver: "fake".into(), card: "Scripted".into(), role })
    }

    fn formats(&mut self) -> io::Result<Vec<FourCc>> {
        Ok(self.0.world().formats.iter().map(|(code, _)| *code).collect())
    }

    fn sizes(&mut self, format: FourCc) -> io::Result<Vec<SizeRange>> {
        let world = self.0.world();
        let found = world.formats.iter().find(|(code, _)| *code == format);
        Ok(found.map(|(_, sizes)| sizes.clone()).unwrap_or_default())
    }

    fn intervals(&mut self, _: FourCc, _: Size) -> io::Result<Vec<IntervalRange>> {
        let interval = |fps| Interval { numerator: 1, denominator: fps };
        let rates = &self.0.world().rates;
        Ok(rates
            .iter()
            .map(|fps| IntervalRange { min: interval(*fps), max: interval(*fps) })
            .collect())
    }

    fn set_format(&mut self, format: FourCc, size: Size) -> io::Result<Layout> {
        let mut world = self.0.world();
        world.asked.push(format!("{format} {size}"));
        let packed = Layout { format, size, strides: vec![size.width * 2] };
        answer(world.set_format, world.layout.clone().unwrap_or(packed))
    }

    fn set_interval(&mut self, interval: Interval) -> io::Result<Option<Interval>> {
        self.0.world().asked.push(format!("{}/{}", interval.numerator, interval.denominator));
        Ok(Some(interval))
    }

    fn interval(&mut self) -> io::Result<Option<Interval>> {
        Ok(None)
    }

    fn start(&mut self, buffers: u32) -> io::Result<u32> {
        let mut world = self.0.world();
        world.queued = i64::from(buffers);
        answer(world.start, buffers)
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<Readiness> {
        let mut world = self.0.world();
        let silence = match world.events.pop_front() {
            None => Duration::MAX,
            Some(Event::Silence(silence)) => silence,
            Some(Event::Broken) => return Ok(Readiness::Broken),
            Some(other) => {
                world.events.push_front(other);
                return Ok(Readiness::Filled);
            }
        };
        if silence > timeout {
            world.events.push_front(Event::Silence(silence - timeout));
        }
        world.now += silence.min(timeout);
        Ok(Readiness::TimedOut)
    }

    fn dequeue(&mut self) -> io::Result<Filled> {
        let mut world = self.0.world();
        match world.events.pop_front() {
            Some(Event::Frame(filled)) => {
                world.queued -= 1;
                Ok(filled)
            }
            Some(Event::Fault(code)) => Err(io::Error::from_raw_os_error(code)),
            Some(Event::Spurious) | None => Err(io::ErrorKind::WouldBlock.into()),
            Some(other) => {
                world.events.push_front(other);
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
    }

    fn copy(&self, _: u32, plane: usize, range: Range<usize>, into: &mut Vec<u8>) {
        let world = self.0.world();
        let bytes = &world.planes[plane];
        into.extend_from_slice(&bytes[range.start.min(bytes.len())..range.end.min(bytes.len())]);
    }

    fn requeue(&mut self, _: u32) -> io::Result<()> {
        self.0.world().queued += 1;
        Ok(())
    }
}

fn filled(sequence: u32) -> Filled {
    let whole = Payload { offset: 0, length: 16 };
    Filled { buffer: 0, planes: [whole; 2], corrupt: false, sequence, age: None }
}

fn frame(sequence: u32) -> Event {
    Event::Frame(filled(sequence))
}

const SECOND: Duration = Duration::from_secs(1);

fn capture(camera: &mut V4l2Camera) -> Result<(Capture, Frame), CameraError> {
    let mut frame = Frame::empty(camera.clock.now());
    camera.capture(&mut frame, SECOND).map(|capture| (capture, frame))
}

#[test]
fn asks_for_the_best_mode_and_delivers_its_frames() {
    let script = Script::new();
    let mut camera = script.open().unwrap();
    assert_eq!(script.world().asked, ["YUYV 4x2", "1/10"]);
    let info = camera.info().clone();
    assert_eq!((info.width, info.height, info.fps), (4, 2, Some(10.0)));
    assert_eq!((&*info.source, &*info.description), ("/dev/video7", "Scripted (fake)"));

    let late = Filled { age: Some(Duration::from_millis(30)), ..filled(5) };
    script.plays([frame(3), Event::Frame(late)]);
    let (first, one) = capture(&mut camera).unwrap();
    let (_, two) = capture(&mut camera).unwrap();
    assert_eq!((first, one.number, two.number), (Capture::Frame, 0, 2));
    assert_eq!((one.format, one.stride, one.width, one.height), (PixelFormat::Yuyv, 8, 4, 2));
    assert_eq!(one.data, (0..16).collect::<Vec<_>>());
    let now = script.world().now;
    assert_eq!(
        (now - one.captured, now - two.captured),
        (Duration::ZERO, Duration::from_millis(30))
    );
    assert_eq!(two.captured_at, UnixTime::from_micros(49_970_000));
    assert_eq!(script.world().queued, i64::from(BUFFERS), "every buffer is given back");
}

#[test]
fn a_frame_that_nobody_wants_is_given_back_and_counted() {
    struct Refusing;
    impl Sink for Refusing {
        fn buffer(&mut self) -> Option<&mut Frame> {
            None
        }
    }
    let script = Script::new();
    let mut camera = script.open().unwrap();
    script.plays([frame(3), frame(4)]);
    assert_eq!(camera.capture(&mut Refusing, SECOND).unwrap(), Capture::Unwanted);
    assert_eq!(script.world().queued, i64::from(BUFFERS), "the buffer is given back");
    assert_eq!((capture(&mut camera).unwrap().1.number, camera.frames_damaged()), (1, 0));
}

#[test]
fn a_stamp_that_cannot_be_is_not_believed() {
    let script = Script::new();
    let mut camera = script.open().unwrap();
    script.plays([Event::Frame(Filled { age: Some(Duration::from_secs(3600)), ..filled(0) })]);
    let (_, frame) = capture(&mut camera).unwrap();
    assert_eq!(frame.captured, script.world().now);
}

#[test]
fn every_layout_is_delivered_as_rows_of_one_stride() {
    struct Case {
        name: &'static str,
        code: &'static [u8; 4],
        strides: Vec<u32>,
        planes: Vec<Vec<u8>>,
        payloads: [Payload; 2],
        format: PixelFormat,
        stride: usize,
        expected: Vec<u8>,
    }
    let upto = |length| Payload { offset: 0, length };
    let cases = [
        Case {
            name: "GREY, packed rows without a stride",
            code: b"GREY",
            strides: vec![0],
            planes: vec![(0..8).collect()],
            payloads: [upto(8), upto(0)],
            format: PixelFormat::Gray8,
            stride: 4,
            expected: (0..8).collect(),
        },
        Case {
            name: "GREY, padded rows, the last one without padding",
            code: b"GREY",
            strides: vec![6],
            planes: vec![(0..10).collect()],
            payloads: [upto(10), upto(0)],
            format: PixelFormat::Gray8,
            stride: 6,
            expected: (0..10).chain([0, 0]).collect(),
        },
        Case {
            name: "NV12, one plane",
            code: b"NV12",
            strides: vec![4],
            planes: vec![(0..12).collect()],
            payloads: [upto(12), upto(0)],
            format: PixelFormat::Nv12,
            stride: 4,
            expected: (0..12).collect(),
        },
        Case {
            name: "NV12, two planes, payload behind an offset",
            code: b"NM12",
            strides: vec![4, 4],
            planes: vec![(0..20).collect(), (100..120).collect()],
            payloads: [Payload { offset: 2, length: 8 }, Payload { offset: 3, length: 4 }],
            format: PixelFormat::Nv12,
            stride: 4,
            expected: (2..10).chain(103..107).collect(),
        },
        Case {
            name: "NV12, two planes of different strides",
            code: b"NM12",
            strides: vec![6, 8],
            planes: vec![(0..12).collect(), (100..108).collect()],
            payloads: [upto(12), upto(8)],
            format: PixelFormat::Nv12,
            stride: 6,
            expected: (0..10).chain([0, 0]).chain(100..104).chain([0, 0]).collect(),
        },
        Case {
            name: "MJPEG, padded",
            code: b"MJPG",
            strides: vec![0],
            planes: vec![vec![0xFF, 0xD8, 1, 2, 0xFF, 0xD9, 0, 0, 0]],
            payloads: [upto(9), upto(0)],
            format: PixelFormat::Mjpeg,
            stride: 0,
            expected: vec![0xFF, 0xD8, 1, 2, 0xFF, 0xD9],
        },
    ];
    for case in cases {
        let size = Size { width: 4, height: 2 };
        let layout = Layout { format: FourCc(*case.code), size, strides: case.strides };
        let script = Script::new().offer(case.code, layout, case.planes);
        let mut camera = script.open().unwrap();
        script.plays([Event::Frame(Filled { planes: case.payloads, ..filled(0) })]);
        let (_, frame) = capture(&mut camera).unwrap();
        assert_eq!((frame.format, frame.stride), (case.format, case.stride), "{}", case.name);
        // Bytes of padding are whatever the driver left there, or zero.
        assert_eq!(frame.data.len(), case.expected.len(), "{}", case.name);
        let row = Native::from_code(FourCc(*case.code)).unwrap().row_bytes(4);
        let stride = case.stride.max(1);
        let picture = |bytes: &[u8]| -> Vec<u8> {
            if row == 0 {
                return bytes.to_vec();
            }
            bytes.chunks(stride).flat_map(|bytes| bytes[..row].to_vec()).collect()
        };
        assert_eq!(picture(&frame.data), picture(&case.expected), "{}", case.name);
    }
}

#[test]
fn damaged_buffers_are_skipped_counted_and_given_back() {
    let script = Script::new();
    let mut camera = script.open().unwrap();
    let short = Payload { offset: 0, length: 15 };
    script.plays([
        Event::Frame(Filled { corrupt: true, ..filled(0) }),
        Event::Frame(Filled { planes: [short; 2], ..filled(1) }),
        Event::Spurious,
        Event::Frame(Filled { planes: [Payload::default(); 2], ..filled(2) }),
        frame(3),
    ]);
    let (outcome, frame) = capture(&mut camera).unwrap();
    assert_eq!((outcome, frame.number), (Capture::Frame, 3));
    assert_eq!(camera.frames_damaged(), 3);
    assert_eq!(script.world().queued, i64::from(BUFFERS));
}

#[test]
fn a_jpeg_that_was_cut_is_skipped() {
    let size = Size { width: 4, height: 2 };
    let layout = Layout { format: FourCc(*b"MJPG"), size, strides: vec![0] };
    let planes = vec![vec![0xFF, 0xD8, 1, 2, 3, 4, 0xFF, 0xD9]];
    let script = Script::new().offer(b"MJPG", layout, planes);
    let mut camera = script.open().unwrap();
    let cut = Filled { planes: [Payload { offset: 0, length: 7 }; 2], ..filled(0) };
    let whole = Filled { planes: [Payload { offset: 0, length: 8 }; 2], ..filled(1) };
    script.plays([Event::Frame(cut), Event::Frame(whole)]);
    assert_eq!(capture(&mut camera).unwrap().1.data.len(), 8);
    assert_eq!(camera.frames_damaged(), 1);
}

#[test]
fn unplug_closes_the_device_and_replug_restarts_the_stream() {
    let script = Script::new();
    let mut camera = script.open().unwrap();
    script.plays([frame(0), frame(1), Event::Fault(libc::ENODEV)]);
    assert_eq!(capture(&mut camera).unwrap().1.number, 0);
    assert_eq!(capture(&mut camera).unwrap().1.number, 1);
    let message = capture(&mut camera).unwrap_err().to_string();
    assert!(message.contains("/dev/video7: YUYV 4x2 stopped: it was unplugged; plug"), "{message}");
    assert_eq!(script.world().open_devices, 0, "closed, so that the name is free for the replug");

    script.world().open = Some(libc::ENOENT);
    for _ in 0..3 {
        let error = capture(&mut camera).unwrap_err();
        assert!(matches!(error, CameraError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("no such device"), "{error}");
    }

    // Another camera comes back: larger, gray.
    script.world().open = None;
    let gray =
        Layout { format: FourCc(*b"GREY"), size: Size { width: 8, height: 2 }, strides: vec![8] };
    let script = script.offer(b"GREY", gray, vec![vec![9; 16]]);
    script.plays([Event::Silence(SECOND * 2), frame(0), frame(1)]);
    assert_eq!(capture(&mut camera).unwrap().0, Capture::TimedOut);
    assert_eq!(capture(&mut camera).unwrap().0, Capture::TimedOut);
    let (outcome, first) = capture(&mut camera).unwrap();
    assert_eq!((outcome, first.number, first.width), (Capture::Restarted, 2, 8));
    assert_eq!((camera.info().format, camera.info().width), (PixelFormat::Gray8, 8));
    assert_eq!(capture(&mut camera).unwrap().0, Capture::Frame);
}

#[test]
fn any_fault_of_the_stream_closes_and_reopens() {
    for (fault, detail) in [
        (Event::Fault(libc::EIO), "transfer failed"),
        (Event::Fault(libc::EINVAL), "rejects"),
        (Event::Broken, "transfer failed"),
    ] {
        let script = Script::new();
        let mut camera = script.open().unwrap();
        script.plays([fault]);
        let error = capture(&mut camera).unwrap_err();
        assert!(matches!(error, CameraError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains(detail), "{error}");
        assert_eq!(script.world().open_devices, 0);
        script.plays([frame(0)]);
        assert_eq!(capture(&mut camera).unwrap().0, Capture::Restarted);
    }
}

#[test]
fn a_silent_stream_is_reopened_after_the_stall_time() {
    let script = Script::new();
    let mut camera = script.open().unwrap();
    let begin = script.world().now;
    let stalled = loop {
        match capture(&mut camera) {
            Ok((outcome, _)) => assert_eq!(outcome, Capture::TimedOut),
            Err(error) => break error,
        }
    };
    assert!(stalled.to_string().contains("does not answer"), "{stalled}");
    assert_eq!(script.world().now - begin, STALL);
    script.world().events.clear();
    script.plays([frame(0)]);
    assert_eq!(capture(&mut camera).unwrap().0, Capture::Restarted);
}

#[test]
fn a_late_caller_gets_its_frame_instead_of_a_stall() {
    let script = Script::new();
    let mut camera = script.open().unwrap();
    script.world().now += STALL * 2;
    script.plays([frame(0)]);
    assert_eq!(capture(&mut camera).unwrap().0, Capture::Frame);
}

#[test]
fn a_stream_of_damaged_frames_does_not_hold_the_caller() {
    let script = Script::new();
    let mut camera = script.open().unwrap();
    for sequence in 0..100 {
        let step = Duration::from_millis(30);
        let damaged = Filled { corrupt: true, ..filled(sequence) };
        script.plays([Event::Silence(step), Event::Frame(damaged)]);
    }
    let begin = script.world().now;
    assert_eq!(capture(&mut camera).unwrap().0, Capture::TimedOut);
    let held = script.world().now - begin;
    assert!(held <= SECOND + Duration::from_millis(30), "{held:?}");
    assert!(camera.frames_damaged() >= 30);
}

#[test]
fn every_refusal_names_the_device_and_the_cure() {
    struct Case {
        name: &'static str,
        set: fn(&mut World),
        unusable: bool,
        says: &'static [&'static str],
    }
    let case = |name, set, unusable, says| Case { name, set, unusable, says };
    let cases = [
        case("absent", |w| w.open = Some(libc::ENOENT), false, &["no such device", "ls /dev"]),
        case("forbidden", |w| w.open = Some(libc::EACCES), false, &["permission", "`video`"]),
        case("busy", |w| w.set_format = Some(libc::EBUSY), false, &["YUYV 4x2", "fuser"]),
        case("bandwidth", |w| w.start = Some(libc::ENOSPC), false, &["YUYV 4x2", "bandwidth"]),
        case("no camera", |w| w.identity = Err(libc::ENOTTY), true, &["no V4L2", "set the path"]),
        case("output", |w| w.identity = Ok(Role::Other), true, &["no capture", "v4l2-ctl"]),
        case(
            "read() only",
            |w| w.identity = Ok(Role::CaptureWithoutStreaming),
            true,
            &["no memory-mapped streaming", "another camera"],
        ),
        case(
            "format",
            |w| w.formats[0].0 = FourCc(*b"BA81"),
            true,
            &["offers only BA81", "NV12, YUYV, MJPEG or GREY"],
        ),
        case("no format", |w| w.formats.clear(), true, &["offers only no format"]),
        case(
            "another format set",
            |w| w.layout = Some(layout_of(b"RGGB", 4, vec![4])),
            true,
            &["RGGB 4x2", "not understood"],
        ),
        case(
            "stride below the row",
            |w| w.layout = Some(layout_of(b"YUYV", 4, vec![7])),
            true,
            &["YUYV 4x2", "not understood"],
        ),
        case(
            "planes missing",
            |w| w.layout = Some(layout_of(b"NM12", 4, vec![4])),
            true,
            &["NM12 4x2", "not understood"],
        ),
        case(
            "too large",
            |w| w.layout = Some(layout_of(b"GREY", u32::MAX, vec![0])),
            true,
            &["GREY 4294967295x2", "not understood"],
        ),
    ];
    for Case { name, set, unusable, says } in cases {
        let script = Script::new();
        set(&mut script.world());
        let error = script.open().err().unwrap_or_else(|| panic!("{name}: opened"));
        let message = error.to_string();
        assert_eq!(matches!(error, CameraError::Unusable { .. }), unusable, "{name}: {message}");
        for part in ["/dev/video7"].iter().chain(says) {
            assert!(message.contains(part), "{name}: no `{part}` in `{message}`");
        }
        assert_eq!(script.world().open_devices, 0, "{name}: left open");
    }
}

fn layout_of(format: &[u8; 4], width: u32, strides: Vec<u32>) -> Layout {
    Layout { format: FourCc(*format), size: Size { width, height: 2 }, strides }
}

#[test]
fn a_driver_without_a_list_of_sizes_is_asked_for_the_wanted_one() {
    let script = Script::new();
    script.world().formats[0].1.clear();
    script.world().rates.clear();
    script.open().unwrap();
    assert_eq!(script.world().asked, ["YUYV 4x2", "1/10"]);
}

#[test]
fn one_wanted_side_implies_the_other() {
    let wanted = |width, height| {
        let size = wanted_size(&Settings { width, height, ..Settings::new("") });
        (size.width, size.height)
    };
    assert_eq!(wanted(None, None), (1280, 720));
    assert_eq!(wanted(Some(640), None), (640, 360));
    assert_eq!(wanted(None, Some(1080)), (1920, 1080));
    assert_eq!(wanted(Some(640), Some(480)), (640, 480));
}

#[test]
fn a_native_format_can_be_forced() {
    let script = Script::new();
    let sizes = script.world().formats[0].1.clone();
    script.world().formats.insert(0, (FourCc(*b"NV12"), sizes));
    script.open_only(Some(FourCc(*b"YUYV"))).unwrap();
    assert_eq!(script.world().asked[0], "YUYV 4x2");
    let error = script.open_only(Some(FourCc(*b"MJPG"))).err();
    assert!(matches!(error, Some(CameraError::Unusable { .. })), "{error:?}");
}
