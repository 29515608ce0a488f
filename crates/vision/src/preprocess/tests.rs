//! Preprocessing against Pillow's recorded pictures and against plain floating-point arithmetic.

use std::path::PathBuf;

use ocelli_protocol::manifest::{Anchor, Color, Input, Interpolation, Resize};

use super::resample::{Filter, LANES, Spans, rows_to_tile, tile_to_rows};
use super::*;
use crate::tensor::{ElementType, Tensor, TensorSpec, ValuesMut};

/// Pixels 0 to 255 as they are: RGB, stretched, bilinear.
fn plain_input(width: usize, height: usize) -> Input {
    Input {
        tensor: "input".to_owned(),
        width,
        height,
        color: Color::Rgb,
        resize: Resize::Stretch,
        interpolation: Interpolation::Bilinear,
        anchor: None,
        crop_fraction: None,
        fill: None,
        mean: vec![0.0; 3],
        std: vec![1.0; 3],
    }
}

#[expect(clippy::disallowed_methods, reason = "any moment will do")]
fn frame(format: PixelFormat, width: usize, height: usize, stride: usize, data: Vec<u8>) -> Frame {
    Frame { data, width, height, stride, format, ..Frame::empty(std::time::Instant::now()) }
}

fn tensor(input: &Input, element: ElementType) -> Tensor {
    let channels = if input.color == Color::Gray { 1 } else { 3 };
    let shape = vec![1, channels, input.height, input.width];
    Tensor::zeros(TensorSpec { name: "input".to_owned(), element, shape, quantisation: None })
}

fn run(input: &Input, frame: &Frame) -> Result<(Vec<f32>, Geometry), PreprocessError> {
    let mut tensor = tensor(input, ElementType::F32);
    // What was there before must not show.
    if let ValuesMut::F32(values) = tensor.view_mut().values {
        values.fill(f32::NAN);
    }
    let geometry = Preprocessor::new(input).run(frame, &mut tensor.view_mut())?;
    Ok((tensor.view().values.as_f32().unwrap().to_vec(), geometry))
}

/// The recipe's picture, `tests/fixtures/preprocess/make.py`.
fn picture(width: usize, height: usize) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            for c in 0..3 {
                let noise = (x * 7919 + y * 104_729 + c * 1_299_709) as u64 * 2_654_435_761;
                pixels.push(match (x / 16 + y / 16) % 3 {
                    0 => ((x * (3 + c) + y * (5 - c)) % 256) as u8,
                    1 if (x / 7 + y / 5) % 2 == 0 => 0,
                    1 => 255,
                    _ => (noise as u32 >> 24) as u8,
                });
            }
        }
    }
    pixels
}

fn fixture(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/preprocess");
    std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Largest and mean absolute difference.
fn difference<'a>(
    actual: impl IntoIterator<Item = &'a f32>,
    expected: impl IntoIterator<Item = f64>,
) -> (f64, f64) {
    let differences: Vec<f64> = actual
        .into_iter()
        .zip(expected)
        .map(|(&actual, expected)| (f64::from(actual) - expected).abs())
        .collect();
    let largest = differences.iter().copied().fold(0.0, |a, b| if b <= a { a } else { b });
    (largest, differences.iter().sum::<f64>() / differences.len() as f64)
}

/// Interleaved 8-bit pixels in planar order.
fn planar(pixels: &[u8]) -> impl Iterator<Item = f64> {
    (0..3).flat_map(move |c| pixels.iter().skip(c).step_by(3).map(|&pixel| f64::from(pixel)))
}

#[test]
fn rgb_equals_pillow() {
    let cases = String::from_utf8(fixture("cases.txt")).unwrap();
    let mut wrong = Vec::new();
    for case in cases.lines() {
        let words: Vec<&str> = case.split(' ').collect();
        let number = |at: usize| words[at].parse::<usize>().unwrap();
        let (width, height) = (number(1), number(2));
        let resize = match words[5] {
            "letterbox" => Resize::Letterbox,
            "crop" => Resize::Crop,
            _ => Resize::Stretch,
        };
        let input = Input {
            resize,
            interpolation: match words[6] {
                "bicubic" => Interpolation::Bicubic,
                _ => Interpolation::Bilinear,
            },
            anchor: Some(if words[7] == "center" { Anchor::Center } else { Anchor::TopLeft }),
            crop_fraction: Some(0.875),
            fill: Some(words[8].parse().unwrap()),
            ..plain_input(number(3), number(4))
        };
        let frame = frame(PixelFormat::Rgb24, width, height, width * 3, picture(width, height));
        let (values, _) = run(&input, &frame).unwrap();
        let expected = fixture(&format!("{}.bin", words[0]));
        assert_eq!(values.len(), expected.len(), "{case}");
        let (largest, mean) = difference(&values, planar(&expected));
        // Pillow 13 sums rows first where one axis grows and the other shrinks: other roundings in between.
        let limit = if words[0] == "stretch-both-ways" { 0.2 } else { 0.03 };
        if largest.is_nan() || largest > 1.0 || mean.is_nan() || mean > limit {
            wrong.push(format!("{case}: largest {largest}, mean {mean:.4}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn colour_order_mean_and_deviation_follow_the_manifest() {
    let rgb = frame(PixelFormat::Rgb24, 1, 1, 3, vec![10, 100, 200]);
    let gray = frame(PixelFormat::Gray8, 1, 1, 1, vec![77]);
    let cases: [(&Frame, Color, &[f32]); 6] = [
        (&rgb, Color::Rgb, &[10.0, 100.0, 200.0]),
        (&rgb, Color::Bgr, &[200.0, 100.0, 10.0]),
        (&rgb, Color::Gray, &[84.49]),
        (&gray, Color::Rgb, &[77.0, 77.0, 77.0]),
        (&gray, Color::Bgr, &[77.0, 77.0, 77.0]),
        (&gray, Color::Gray, &[77.0]),
    ];
    let (mean, std) = ([10.0, 20.0, 30.0], [2.0, 4.0, 5.0]);
    for (frame, color, pixels) in cases {
        let input = Input { color, mean: mean.into(), std: std.into(), ..plain_input(1, 1) };
        let (values, _) = run(&input, frame).unwrap();
        for (c, (value, pixel)) in values.iter().zip(pixels).enumerate() {
            let expected = (pixel - mean[c]) / std[c];
            assert!((value - expected).abs() < 1e-3, "{:?} {color:?}: {values:?}", frame.format);
        }
    }
}

/// Y, U, V of pixels to red, green, blue in f64, replicated chroma: what OpenCV's conversions do.
fn reference_rgb(format: PixelFormat, width: usize, height: usize, data: &[u8]) -> Vec<[f64; 3]> {
    let yuyv_stride = width.div_ceil(2) * 4;
    let nv12_stride = width.div_ceil(2) * 2;
    let sample = |x: usize, y: usize| match format {
        PixelFormat::Yuyv => {
            let pair = y * yuyv_stride + x / 2 * 4;
            [data[pair + x % 2 * 2], data[pair + 1], data[pair + 3]]
        }
        _ => {
            let pair = (height + y / 2) * nv12_stride + x / 2 * 2;
            [data[y * nv12_stride + x], data[pair], data[pair + 1]]
        }
    };
    let rgb = |at: usize| {
        let [y, u, v] = sample(at % width, at / width).map(f64::from);
        let (y, u, v) = (1.164_383_56 * (y - 16.0), u - 128.0, v - 128.0);
        [y + 1.596_026_79 * v, y - 0.391_762_29 * u - 0.812_967_65 * v, y + 2.017_232_14 * u]
    };
    (0..width * height).map(rgb).collect()
}

/// Triangle filter over the whole picture in f64.
fn reference_stretch(
    pixels: &[[f64; 3]],
    (width, height): (usize, usize),
    (out_width, out_height): (usize, usize),
) -> Vec<f64> {
    let weights = |length: usize, outputs: usize, output: usize| -> Vec<f64> {
        let scale = length as f64 / outputs as f64;
        let centre = (output as f64 + 0.5) * scale;
        let weight =
            |at: usize| (1.0 - ((at as f64 + 0.5 - centre) / scale.max(1.0)).abs()).max(0.0);
        let weights: Vec<f64> = (0..length).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / sum).collect()
    };
    let mut result = Vec::new();
    for c in 0..3 {
        for y in 0..out_height {
            let rows = weights(height, out_height, y);
            for x in 0..out_width {
                let columns = weights(width, out_width, x);
                let mut sum = 0.0;
                for (at, pixel) in pixels.iter().enumerate() {
                    sum += rows[at / width] * columns[at % width] * pixel[c];
                }
                result.push(sum.clamp(0.0, 255.0));
            }
        }
    }
    result
}

#[test]
fn yuv_equals_conversion_in_f64_before_resizing() {
    let sizes = [
        ((64_usize, 48_usize), (20, 15)),
        ((33, 21), (16, 10)),
        ((7, 5), (21, 10)),
        ((1, 1), (3, 2)),
    ];
    let mut wrong = Vec::new();
    for format in [PixelFormat::Yuyv, PixelFormat::Nv12] {
        for ((width, height), (out_width, out_height)) in sizes {
            let pairs = width.div_ceil(2);
            let (stride, rows) = match format {
                PixelFormat::Yuyv => (pairs * 4, height),
                _ => (pairs * 2, height + height.div_ceil(2)),
            };
            // Waves within gamut: the clamp of colours is the one step that does not commute with resizing.
            let byte = |at: usize| {
                let (x, y) = ((at % stride) as f64, (at / stride) as f64);
                (128.0 + 20.0 * (x / 5.0).sin() + 20.0 * (y / 3.0).cos()) as u8
            };
            let data: Vec<u8> = (0..stride * rows).map(byte).collect();
            let pixels = reference_rgb(format, width, height, &data);
            let expected = reference_stretch(&pixels, (width, height), (out_width, out_height));
            let frame = frame(format, width, height, stride, data);
            let (values, _) = run(&plain_input(out_width, out_height), &frame).unwrap();
            let (largest, mean) = difference(&values, expected);
            // Half a step of Y and of chroma at each of two roundings, chroma weighing up to 2.02.
            if largest.is_nan() || largest > 3.0 || mean > 0.7 {
                wrong.push(format!(
                    "{format:?} {width}x{height}: largest {largest:.2}, mean {mean:.2}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_format_shows_the_same_picture_in_every_fit() {
    // A flat colour in each format; rows are padded, and the padding is another colour.
    let (width, height) = (37, 23);
    let flat = |format, stride: usize, pattern: &[u8], used: usize, rows: usize| {
        let line: Vec<u8> = pattern.iter().copied().cycle().take(used).collect();
        let padded = |_| line.iter().copied().chain(vec![255; stride - used]);
        frame(format, width, height, stride, (0..rows).flat_map(padded).collect())
    };
    let mut nv12 = flat(PixelFormat::Nv12, 48, &[120], 38, 23);
    nv12.data.extend(flat(PixelFormat::Nv12, 48, &[90, 160], 38, 12).data);
    let [r, g, b] = normalise::bt601(120, 90, 160).map(|value| value.round() as u8);
    let frames = [
        flat(PixelFormat::Yuyv, 90, &[120, 90, 120, 160], 76, 23),
        nv12,
        flat(PixelFormat::Rgb24, 120, &[r, g, b], 111, 23),
    ];
    let mut wrong = Vec::new();
    for resize in [Resize::Letterbox, Resize::Crop, Resize::Stretch] {
        for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic] {
            for (side, frame) in
                [12, 50].iter().flat_map(|side| frames.iter().map(move |f| (*side, f)))
            {
                let crop_fraction = Some(0.6);
                let fill = Some(9);
                let anchor = Some(Anchor::Center);
                let input = Input {
                    resize,
                    interpolation,
                    crop_fraction,
                    fill,
                    anchor,
                    ..plain_input(side, side)
                };
                let (values, _) = run(&input, frame).unwrap();
                let close = |value: f32, wanted: u8| (value - f32::from(wanted)).abs() <= 1.5;
                for (c, wanted) in [r, g, b].into_iter().enumerate() {
                    let plane = &values[c * side * side..(c + 1) * side * side];
                    let good = plane.iter().all(|&value| close(value, wanted) || value == 9.0);
                    let borders = plane.contains(&9.0);
                    if !good || borders != (resize == Resize::Letterbox) {
                        wrong.push(format!(
                            "{:?} {resize:?} {interpolation:?} {side}",
                            frame.format
                        ));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn geometry_leads_back_to_the_source_picture() {
    let frame = frame(PixelFormat::Gray8, 200, 100, 200, vec![0; 20_000]);
    let fitted = |resize, anchor| Input {
        resize,
        anchor,
        crop_fraction: Some(0.5),
        ..plain_input(100, 100)
    };
    // The input's centre and left top corner, in parts of the source picture.
    let cases = [
        (fitted(Resize::Letterbox, Some(Anchor::TopLeft)), [0.5, 1.0], [0.0, 0.0]),
        (fitted(Resize::Letterbox, Some(Anchor::Center)), [0.5, 0.5], [0.0, -0.5]),
        (fitted(Resize::Stretch, None), [0.5, 0.5], [0.0, 0.0]),
        (fitted(Resize::Crop, None), [0.5, 0.5], [0.375, 0.25]),
    ];
    for (input, centre, corner) in cases {
        let (_, geometry) = run(&input, &frame).unwrap();
        assert_eq!((geometry.source_width, geometry.source_height), (200, 100));
        assert_eq!(geometry.normalise(50.0, 50.0), centre, "{input:?}");
        assert_eq!(geometry.normalise(0.0, 0.0), corner, "{input:?}");
    }
}

#[test]
fn integers_are_those_of_quantize_linear() {
    let gray = frame(PixelFormat::Gray8, 6, 1, 6, vec![0, 1, 3, 5, 128, 255]);
    let input = Input { color: Color::Gray, ..plain_input(6, 1) };
    // Steps of 2: 1, 3 and 5 are halves, which go to the even neighbour before the zero point is added.
    let mut preprocessor =
        Preprocessor::quantised(&input, Quantisation { scale: 2.0, zero_point: -100 });
    let mut bytes = tensor(&input, ElementType::I8);
    preprocessor.run(&gray, &mut bytes.view_mut()).unwrap();
    let expected = [-100, -100, -98, -98, -36, 28];
    assert_eq!(bytes.view().values, crate::tensor::Values::I8(&expected));
    let mut preprocessor =
        Preprocessor::quantised(&input, Quantisation { scale: 0.5, zero_point: 3 });
    let mut bytes = tensor(&input, ElementType::U8);
    preprocessor.run(&gray, &mut bytes.view_mut()).unwrap();
    assert_eq!(bytes.view().values, crate::tensor::Values::U8(&[3, 5, 9, 13, 255, 255]));
}

#[test]
fn jpeg_equals_libjpeg_turbo() {
    let mut wrong = Vec::new();
    for kind in ["420", "422", "444", "progressive", "gray"] {
        let mut pixels = Vec::new();
        let decoded = jpeg::decode(&fixture(&format!("jpeg/{kind}.jpg")), &mut pixels).unwrap();
        assert_eq!((decoded.width, decoded.height), (83, 61), "{kind}");
        let expected = fixture(&format!("jpeg/{kind}.bin"));
        assert_eq!(pixels.len(), expected.len(), "{kind}");
        let differences = pixels.iter().zip(&expected).map(|(a, b)| u32::from(a.abs_diff(*b)));
        let (largest, sum) = differences.fold((0, 0), |(max, sum), d| (d.max(max), sum + d));
        let mean = f64::from(sum) / expected.len() as f64;
        if largest > 4 || mean > 0.5 {
            wrong.push(format!("{kind}: largest {largest}, mean {mean:.3}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn damaged_jpeg_files_are_errors_and_never_panics() {
    let whole = fixture("jpeg/420.jpg");
    let mut pixels = Vec::new();
    let cmyk = jpeg::decode(&fixture("jpeg/cmyk.jpg"), &mut pixels);
    assert!(matches!(cmyk, Err(jpeg::JpegError::Cmyk)), "{cmyk:?}");
    let half = jpeg::decode(&whole[..whole.len() / 2], &mut pixels);
    assert!(matches!(half, Err(jpeg::JpegError::Truncated)), "{half:?}");
    for length in 0..whole.len() {
        assert!(jpeg::decode(&whole[..length], &mut pixels).is_err(), "cut at {length}");
    }
    // A byte changed may still be a picture; it must be one of the size it says.
    for kind in ["420", "progressive", "gray"] {
        let whole = fixture(&format!("jpeg/{kind}.jpg"));
        for at in 0..whole.len() {
            let mut file = whole.clone();
            file[at] = file[at].wrapping_mul(31).wrapping_add(97);
            if let Ok(decoded) = jpeg::decode(&file, &mut pixels) {
                let bytes = if decoded.components == Components::Gray { 1 } else { 3 };
                assert_eq!(pixels.len(), decoded.width * decoded.height * bytes);
            }
        }
    }
}

#[test]
fn refuses_frames_that_are_no_picture() {
    let cases = [
        (PixelFormat::Rgb24, 0, 4, 0, 0, "0x4"),
        (PixelFormat::Rgb24, 4, 4, 11, 48, "stride"),
        (PixelFormat::Rgb24, 4, 4, 12, 47, "47 bytes"),
        (PixelFormat::Yuyv, 5, 4, 10, 40, "stride"),
        (PixelFormat::Nv12, 4, 4, 4, 23, "23 bytes"),
        (PixelFormat::Gray8, 4, 4, usize::MAX, 16, "16 bytes"),
        (PixelFormat::Gray8, 1 << 20, 1, 1 << 20, 1 << 20, "1048576x1"),
        (PixelFormat::Mjpeg, 4, 4, 0, 10, "JPEG"),
    ];
    for (format, width, height, stride, length, named) in cases {
        let frame = frame(format, width, height, stride, vec![0; length]);
        let error = run(&plain_input(4, 4), &frame).unwrap_err();
        assert!(matches!(error, PreprocessError::BadFrame { .. }), "{error}");
        assert!(error.to_string().contains(named), "{named}: {error}");
    }
}

#[test]
fn refuses_tensors_of_another_shape_or_type() {
    let frame = frame(PixelFormat::Gray8, 2, 2, 2, vec![0; 4]);
    for (input, element) in [
        (plain_input(5, 4), ElementType::F32),
        (Input { color: Color::Gray, ..plain_input(4, 4) }, ElementType::F32),
        (plain_input(4, 4), ElementType::U8),
        (plain_input(4, 4), ElementType::I64),
    ] {
        let mut tensor = tensor(&input, element);
        let result = Preprocessor::new(&plain_input(4, 4)).run(&frame, &mut tensor.view_mut());
        assert!(matches!(result, Err(PreprocessError::Shape { .. })), "{element} {result:?}");
    }
}

#[test]
fn sums_of_any_length_and_place_equal_plain_arithmetic() {
    // Spans on both sides of the limit between narrow and wide lanes, rows on both sides of a whole block.
    for (length, outputs, interpolation) in [
        (300, 7, Interpolation::Bilinear),
        (90, 31, Interpolation::Bicubic),
        (9, 40, Interpolation::Bicubic),
        (64, 16, Interpolation::Bilinear),
    ] {
        let spans = Spans::new(interpolation, 3, length, outputs);
        let filter = Filter::new(&spans);
        let samples: Vec<u8> = (0..(length + 3) * 67).map(|at| (at * at / 5 % 256) as u8).collect();
        let mut row = [0; 67];
        for output in 0..outputs {
            filter.sum_rows(output, &samples, 67, &mut row);
            for (x, &actual) in row.iter().enumerate() {
                let sum = spans.sum(output, |at| f64::from(samples[at * 67 + x]));
                let distance = (f64::from(actual) - sum.clamp(0.0, 255.0)).abs();
                assert!(distance < 0.6, "{length} to {outputs}, {output} {x}: {actual} for {sum}");
            }
        }
    }
}

#[test]
fn tiles_turn_rows_on_their_side_and_back() {
    for (rows, width) in [(16, 16), (16, 40), (5, 7), (1, 1), (9, 33)] {
        let samples: Vec<u8> = (0..rows * width).map(|at| (at % 251) as u8).collect();
        let mut tile = vec![[0; LANES]; width];
        rows_to_tile(&samples, width, rows, width, &mut tile);
        for (at, &sample) in samples.iter().enumerate() {
            assert_eq!(tile[at % width][at / width], sample, "{rows}x{width} {at}");
        }
        let mut back = vec![0; samples.len()];
        tile_to_rows(&tile, rows, width, &mut back);
        assert_eq!(back, samples, "{rows}x{width}");
    }
}
