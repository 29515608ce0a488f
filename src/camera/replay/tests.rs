//! Replays of files made here: order, rate, loop, caps, and pictures that are damaged or gone.

use std::sync::Mutex;
use std::time::Instant;

use super::*;
use crate::clock::{SystemClock, UnixTime};
use crate::frame::Frame;

/// A clock that stands until it is moved.
struct ManualClock {
    now: Mutex<Instant>,
}

impl ManualClock {
    fn new() -> Arc<Self> {
        Arc::new(Self { now: Mutex::new(SystemClock.now()) })
    }

    fn advance(&self, by: Duration) {
        *self.now.lock().unwrap() += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        *self.now.lock().unwrap()
    }

    fn wall(&self) -> UnixTime {
        UnixTime::from_micros(1_795_251_600_000_000)
    }
}

fn jpeg_file(width: u16, height: u16) -> Vec<u8> {
    let mut file = Vec::new();
    let pixels = vec![90; usize::from(width) * usize::from(height)];
    jpeg_encoder::Encoder::new(&mut file, 80)
        .encode(&pixels, width, height, jpeg_encoder::ColorType::Luma)
        .unwrap();
    file
}

fn png_file(color: png::ColorType, depth: png::BitDepth, width: u32, data: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let height = 1;
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if color == png::ColorType::Indexed {
        encoder.set_palette(vec![1, 2, 3, 40, 50, 60]);
        encoder.set_trns(vec![0, 128]);
    }
    encoder.write_header().unwrap().write_image_data(data).unwrap();
    file
}

fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn open(path: &Path, looped: Loop) -> Result<ReplayCamera, CameraError> {
    let settings = Settings { looped, ..Settings::new(path.to_str().unwrap()) };
    ReplayCamera::open(&settings, ManualClock::new())
}

fn capture(camera: &mut ReplayCamera) -> Result<(Capture, Frame), CameraError> {
    let mut frame = Frame::empty(camera.clock.now());
    camera.capture(&mut frame, Duration::ZERO).map(|capture| (capture, frame))
}

/// Widths of the frames until the end, at most `most`.
fn widths(camera: &mut ReplayCamera, most: usize) -> Vec<usize> {
    let mut found = Vec::new();
    while found.len() < most
        && let (Capture::Frame, frame) = capture(camera).unwrap()
    {
        found.push(frame.width);
    }
    found
}

#[test]
fn a_folder_is_played_in_order_of_names_and_ends() {
    let folder = folder(&[
        ("b.JPG", jpeg_file(20, 8)),
        ("a.jpeg", jpeg_file(10, 8)),
        ("c.png", png_file(png::ColorType::Rgb, png::BitDepth::Eight, 30, &[0; 90])),
        ("notes.md", b"not a picture".to_vec()),
        (".hidden.jpg", jpeg_file(50, 8)),
    ]);
    fs::create_dir(folder.path().join("d.jpg")).unwrap();
    let mut camera = open(folder.path(), Loop::Once).unwrap();
    assert_eq!((camera.info().width, camera.info().format), (10, PixelFormat::Mjpeg));
    assert_eq!(widths(&mut camera, 10), [10, 20, 30]);
    assert_eq!(capture(&mut camera).unwrap().0, Capture::Ended);
    assert_eq!(capture(&mut camera).unwrap().0, Capture::Ended);
}

#[test]
fn a_loop_begins_again_and_numbers_go_on() {
    let folder = folder(&[("1.jpg", jpeg_file(10, 8)), ("2.jpg", jpeg_file(20, 8))]);
    let mut camera = open(folder.path(), Loop::Forever).unwrap();
    assert_eq!(widths(&mut camera, 5), [10, 20, 10, 20, 10]);
    assert_eq!(capture(&mut camera).unwrap().1.number, 5);
}

#[test]
fn jpeg_is_delivered_as_stored() {
    let file = jpeg_file(40, 24);
    let padded = [&file[..], &[0; 100]].concat();
    let folder = folder(&[("picture.jpg", padded)]);
    let mut camera = open(&folder.path().join("picture.jpg"), Loop::Once).unwrap();
    let (_, frame) = capture(&mut camera).unwrap();
    assert_eq!((frame.width, frame.height, frame.stride), (40, 24, 0));
    assert_eq!((frame.format, frame.data), (PixelFormat::Mjpeg, file));
}

#[test]
fn every_kind_of_png_becomes_rgb() {
    use png::BitDepth::{Eight, One, Sixteen};
    use png::ColorType::{Grayscale, GrayscaleAlpha, Indexed, Rgb, Rgba};
    struct Case {
        color: png::ColorType,
        depth: png::BitDepth,
        data: &'static [u8],
        expected: [u8; 6],
    }
    let case = |color, depth, data, expected| Case { color, depth, data, expected };
    let cases = [
        case(Rgb, Eight, &[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]),
        case(Rgb, Sixteen, &[1, 9, 2, 9, 3, 9, 4, 9, 5, 9, 6, 9], [1, 2, 3, 4, 5, 6]),
        case(Rgba, Eight, &[1, 2, 3, 0, 4, 5, 6, 255], [1, 2, 3, 4, 5, 6]),
        case(Grayscale, Eight, &[7, 8], [7, 7, 7, 8, 8, 8]),
        case(Grayscale, One, &[0b0100_0000], [0, 0, 0, 255, 255, 255]),
        case(Grayscale, Sixteen, &[7, 1, 8, 1], [7, 7, 7, 8, 8, 8]),
        case(GrayscaleAlpha, Eight, &[7, 0, 8, 255], [7, 7, 7, 8, 8, 8]),
        case(Indexed, Eight, &[1, 0], [40, 50, 60, 1, 2, 3]),
        case(Indexed, One, &[0b1000_0000], [40, 50, 60, 1, 2, 3]),
    ];
    for Case { color, depth, data, expected } in cases {
        let folder = folder(&[("p.png", png_file(color, depth, 2, data))]);
        let mut camera = open(folder.path(), Loop::Once).unwrap();
        let (_, frame) = capture(&mut camera).unwrap();
        assert_eq!(frame.data, expected, "{color:?} {depth:?}");
        assert_eq!((frame.format, frame.stride), (PixelFormat::Rgb24, 6), "{color:?} {depth:?}");
    }
}

#[test]
fn a_damaged_or_vanished_picture_is_named_and_the_next_one_follows() {
    let whole = jpeg_file(10, 8);
    let png = png_file(png::ColorType::Rgb, png::BitDepth::Eight, 30, &[0; 90]);
    let mut flipped = png.clone();
    flipped[45] ^= 1;
    let bomb = {
        // A header that promises 65535 x 65535 pixels; its checksum is right, its data is missing.
        let mut header = b"IHDR\x00\x00\xff\xff\x00\x00\xff\xff\x08\x02\x00\x00\x00".to_vec();
        header.extend(crc32(&header).to_be_bytes());
        [&PNG_SIGNATURE[..], &[0, 0, 0, 13], &header, &png[33..]].concat()
    };
    let faults: [(&str, Vec<u8>, &str); 7] = [
        ("cut.jpg", whole[..whole.len() - 9].to_vec(), "cut short"),
        ("header.jpg", vec![0xFF, 0xD8, 0xFF, 0xD9], "JPEG"),
        ("text.jpg", b"hello".to_vec(), "neither JPEG nor PNG"),
        ("empty.png", vec![], "neither JPEG nor PNG"),
        ("cut.png", png[..50].to_vec(), "no readable PNG"),
        ("flipped.png", flipped, "no readable PNG"),
        ("bomb.png", bomb, "65535x65535"),
    ];
    for (name, bytes, detail) in faults {
        let folder =
            folder(&[("0.jpg", whole.clone()), (name, bytes), ("z.jpg", jpeg_file(20, 8))]);
        let mut camera = open(folder.path(), Loop::Forever).unwrap();
        assert_eq!(capture(&mut camera).unwrap().1.width, 10);
        let error = capture(&mut camera).unwrap_err();
        assert!(matches!(error, CameraError::Unavailable { .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.contains(name) && message.contains(detail), "{message}");
        assert_eq!(capture(&mut camera).unwrap().1.width, 20, "{name}");
        assert_eq!(camera.frames_damaged(), 1);
    }

    let folder =
        folder(&[("0.jpg", whole), ("gone.jpg", jpeg_file(9, 8)), ("z.jpg", jpeg_file(20, 8))]);
    let mut camera = open(folder.path(), Loop::Once).unwrap();
    fs::remove_file(folder.path().join("gone.jpg")).unwrap();
    assert_eq!(capture(&mut camera).unwrap().1.width, 10);
    assert!(capture(&mut camera).unwrap_err().to_string().contains("gone.jpg"));
    assert_eq!(capture(&mut camera).unwrap().1.width, 20);
    assert_eq!(capture(&mut camera).unwrap().0, Capture::Ended);
}

/// CRC-32 of ISO 3309, as PNG uses it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 * (crc & 1)))
    })
}

#[test]
fn sources_without_a_picture_are_refused_when_opened() {
    struct Case {
        files: Vec<(&'static str, Vec<u8>)>,
        source: &'static str,
        message: &'static str,
    }
    let case = |files, source, message| Case { files, source, message };
    let cases = [
        case(vec![], "", "holds no .jpg"),
        case(vec![("readme.txt", b"x".to_vec())], "", "holds no .jpg"),
        case(vec![("a.jpg", b"x".to_vec())], "", "neither JPEG nor PNG"),
        case(vec![], "missing.jpg", "no such file"),
        case(vec![("list.txt", b"# nothing\n\n".to_vec())], "list.txt", "names no picture"),
        case(vec![("list.txt", b"missing.jpg".to_vec())], "list.txt", "missing.jpg"),
        case(vec![("list.txt", vec![0xC3, 0x28])], "list.txt", "no UTF-8"),
    ];
    for Case { files, source, message } in cases {
        let folder = folder(&files);
        let error = open(&folder.path().join(source), Loop::Once).err();
        let text = error.as_ref().map(ToString::to_string).unwrap_or_default();
        assert!(text.contains(message), "{source}: `{text}` lacks `{message}`");
    }
}

#[test]
fn a_list_is_played_in_its_order_relative_to_itself() {
    let list = b"# test\nb.jpg\n\n  a.jpg \nb.jpg\n".to_vec();
    let folder =
        folder(&[("a.jpg", jpeg_file(10, 8)), ("b.jpg", jpeg_file(20, 8)), ("list.txt", list)]);
    let mut camera = open(&folder.path().join("list.txt"), Loop::Once).unwrap();
    assert_eq!(widths(&mut camera, 9), [20, 10, 20]);
}

#[test]
fn a_file_over_the_cap_is_not_read_into_memory() {
    let folder = folder(&[("a.jpg", jpeg_file(10, 8)), ("huge.jpg", vec![])]);
    let huge = File::options().write(true).open(folder.path().join("huge.jpg")).unwrap();
    huge.set_len(MAX_FILE_BYTES + 1).unwrap();
    let mut camera = open(folder.path(), Loop::Once).unwrap();
    assert_eq!(capture(&mut camera).unwrap().1.width, 10);
    let message = capture(&mut camera).unwrap_err().to_string();
    assert!(message.contains("huge.jpg") && message.contains("larger than 64 MiB"), "{message}");
}

#[test]
fn a_loop_reads_each_picture_once_and_reuses_the_buffer() {
    let folder = folder(&[("1.jpg", jpeg_file(64, 64)), ("2.jpg", jpeg_file(16, 16))]);
    let mut camera = open(folder.path(), Loop::Forever).unwrap();
    let mut frame = Frame::empty(camera.clock.now());
    for _ in 0..2 {
        assert_eq!(camera.capture(&mut frame, Duration::ZERO).unwrap(), Capture::Frame);
    }
    fs::remove_file(folder.path().join("1.jpg")).unwrap();
    fs::remove_file(folder.path().join("2.jpg")).unwrap();
    let (buffer, capacity) = (frame.data.as_ptr(), frame.data.capacity());
    for round in 0..6 {
        assert_eq!(camera.capture(&mut frame, Duration::ZERO).unwrap(), Capture::Frame);
        assert_eq!(frame.width, if round % 2 == 0 { 64 } else { 16 });
        assert_eq!((frame.data.as_ptr(), frame.data.capacity()), (buffer, capacity));
    }
}

#[test]
fn a_rate_is_kept_by_the_clock() {
    let folder = folder(&[("1.jpg", jpeg_file(10, 8))]);
    let clock = ManualClock::new();
    let settings = Settings {
        looped: Loop::Forever,
        fps: Some(10.0),
        ..Settings::new(folder.path().to_str().unwrap())
    };
    let mut camera = ReplayCamera::open(&settings, clock.clone()).unwrap();
    assert_eq!(camera.info().fps, Some(10.0));
    let mut frame = Frame::empty(clock.now());
    let mut captures = String::new();
    for _ in 0..12 {
        captures.push(match camera.capture(&mut frame, Duration::ZERO).unwrap() {
            Capture::Frame => 'F',
            Capture::TimedOut => '.',
            other => panic!("{other:?}"),
        });
        clock.advance(Duration::from_millis(50));
    }
    assert_eq!(captures, "F.F.F.F.F.F.");
    assert_eq!(frame.number, 5);
}
