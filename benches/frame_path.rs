//! The frame path without inference: 1280x720 camera frames to a 416x416 letterboxed f32 model input.
//!
//! Prints a JSON line a case, times in microseconds. `benches/frame_path.sh` runs it beside OpenCV.

use std::io::Write as _;
use std::time::{Duration, Instant};

use ocelli::clock::{Clock as _, SystemClock};
use ocelli::frame::{Frame, PixelFormat};
use ocelli::tensor::{ElementType, Quantisation, Tensor, TensorSpec};
use ocelli::vision::preprocess::{Preprocess as _, Preprocessor};
use ocelli_protocol::manifest::{Anchor, Color, Input, Interpolation, Resize};

const WIDTH: usize = 1280;
const HEIGHT: usize = 720;
const ROUNDS: usize = 300;

fn main() -> std::io::Result<()> {
    let cases = [
        ("yuyv", PixelFormat::Yuyv, ElementType::F32, Interpolation::Bilinear),
        ("yuyv-u8", PixelFormat::Yuyv, ElementType::U8, Interpolation::Bilinear),
        ("yuyv-bicubic", PixelFormat::Yuyv, ElementType::F32, Interpolation::Bicubic),
        ("nv12", PixelFormat::Nv12, ElementType::F32, Interpolation::Bilinear),
        ("rgb24", PixelFormat::Rgb24, ElementType::F32, Interpolation::Bilinear),
        ("gray8", PixelFormat::Gray8, ElementType::F32, Interpolation::Bilinear),
        ("mjpeg", PixelFormat::Mjpeg, ElementType::F32, Interpolation::Bilinear),
    ];
    for (name, format, element, interpolation) in cases {
        let mut times = measure(&frame(format), element, interpolation);
        times.sort_unstable();
        let (least, median) = (times[0].as_micros(), times[times.len() / 2].as_micros());
        writeln!(
            std::io::stdout(),
            r#"{{"case":"ocelli-{name}","min_us":{least},"median_us":{median}}}"#
        )?;
    }
    Ok(())
}

fn measure(frame: &Frame, element: ElementType, interpolation: Interpolation) -> Vec<Duration> {
    let input = Input {
        tensor: "input".to_owned(),
        width: 416,
        height: 416,
        color: Color::Bgr,
        resize: Resize::Letterbox,
        interpolation,
        anchor: Some(Anchor::TopLeft),
        crop_fraction: None,
        fill: Some(0),
        mean: vec![103.53, 116.28, 123.675],
        std: vec![57.375, 57.12, 58.395],
    };
    let spec = TensorSpec {
        name: "input".to_owned(),
        element,
        shape: vec![1, 3, 416, 416],
        quantisation: Some(Quantisation { scale: 0.0187, zero_point: 114 }),
    };
    let mut preprocessor = match spec.quantisation {
        Some(quantisation) if element != ElementType::F32 => {
            Preprocessor::quantised(&input, quantisation)
        }
        _ => Preprocessor::new(&input),
    };
    let mut tensor = Tensor::zeros(spec);
    let mut run = || {
        let start = SystemClock.now();
        preprocessor.run(frame, &mut tensor.view_mut()).expect("the frame is well formed");
        SystemClock.now() - start
    };
    run();
    (0..ROUNDS).map(|_| run()).collect()
}

/// A picture with smooth areas, edges and some noise.
fn frame(format: PixelFormat) -> Frame {
    let mut noise = 1_u32;
    let mut sample = |x: usize, y: usize, channel: usize| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let smooth = (x / 6 + y / 4 + channel * 40) % 200 + 16;
        (smooth + (noise >> 28) as usize) as u8
    };
    let row_bytes = match format {
        PixelFormat::Rgb24 | PixelFormat::Mjpeg => WIDTH * 3,
        PixelFormat::Yuyv => WIDTH * 2,
        PixelFormat::Nv12 | PixelFormat::Gray8 => WIDTH,
    };
    let rows = if format == PixelFormat::Nv12 { HEIGHT * 3 / 2 } else { HEIGHT };
    let channels = row_bytes / WIDTH;
    let mut data = Vec::with_capacity(row_bytes * rows);
    for y in 0..rows {
        data.extend((0..row_bytes).map(|at| sample(at / channels, y, at % channels)));
    }
    let (stride, data) = match format {
        PixelFormat::Mjpeg => (0, jpeg(&data)),
        _ => (row_bytes, data),
    };
    Frame { data, width: WIDTH, height: HEIGHT, stride, format, ..Frame::empty(now()) }
}

/// As webcams make them: quality 80, 4:2:2.
fn jpeg(rgb: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut file, 80);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_2_1);
    encoder
        .encode(rgb, WIDTH as u16, HEIGHT as u16, jpeg_encoder::ColorType::Rgb)
        .expect("the picture has the size given");
    file
}

fn now() -> Instant {
    SystemClock.now()
}
