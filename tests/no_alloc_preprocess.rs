//! Preprocessing allocates for the first frame of a size, and never again. MJPEG is the exception: the decoder takes
//! its tables and rows anew for each picture, and the test bounds how much.

#[path = "support/allocations.rs"]
mod allocations;

use allocations::{Requests, Watched, during, note};
use ocelli::clock::{Clock as _, SystemClock};
use ocelli::frame::{Frame, PixelFormat};
use ocelli::tensor::{ElementType, Quantisation, Tensor, TensorSpec};
use ocelli::vision::preprocess::{Preprocess as _, Preprocessor};
use ocelli_protocol::manifest::{Anchor, Color, Input, Interpolation, Resize};

#[global_allocator]
static ALLOCATOR: Watched = Watched(note);

#[test]
fn frames_after_the_first_do_not_allocate() {
    let (width, height) = (320, 240);
    let jpeg = {
        let mut file = Vec::new();
        let encoder = jpeg_encoder::Encoder::new(&mut file, 80);
        let pixels = vec![90; width * height * 3];
        encoder
            .encode(&pixels, width as u16, height as u16, jpeg_encoder::ColorType::Rgb)
            .expect("the size is the pixels'");
        file
    };
    let formats = [
        (PixelFormat::Rgb24, width * 3, vec![1; width * height * 3]),
        (PixelFormat::Gray8, width, vec![1; width * height]),
        (PixelFormat::Yuyv, width * 2, vec![1; width * height * 2]),
        (PixelFormat::Nv12, width, vec![1; width * height * 3 / 2]),
        (PixelFormat::Mjpeg, 0, jpeg),
    ];
    for (format, stride, data) in formats {
        let empty = Frame::empty(SystemClock.now());
        let frame = Frame { data, width, height, stride, format, ..empty };
        for resize in [Resize::Letterbox, Resize::Crop, Resize::Stretch] {
            for element in [ElementType::F32, ElementType::U8, ElementType::I8] {
                let Requests { count, bytes } = requests_of_second_run(&frame, resize, element);
                match format {
                    PixelFormat::Mjpeg => assert!(
                        bytes < 1024 * 1024,
                        "MJPEG {width}x{height}: {count} allocations, {bytes} bytes"
                    ),
                    _ => assert_eq!(count, 0, "{format:?} {resize:?} {element}: {bytes} bytes"),
                }
            }
        }
    }
}

fn requests_of_second_run(frame: &Frame, resize: Resize, element: ElementType) -> Requests {
    let input = Input {
        tensor: "input".to_owned(),
        width: 96,
        height: 96,
        color: Color::Bgr,
        resize,
        interpolation: Interpolation::Bicubic,
        anchor: Some(Anchor::Center),
        crop_fraction: Some(0.875),
        fill: Some(114),
        mean: vec![0.0; 3],
        std: vec![1.0; 3],
    };
    let quantisation = Quantisation { scale: 1.0, zero_point: 0 };
    let shape = vec![1, 3, 96, 96];
    let spec = TensorSpec { name: "input".to_owned(), element, shape, quantisation: None };
    let mut tensor = Tensor::zeros(spec);
    let mut preprocessor = Preprocessor::quantised(&input, quantisation);
    preprocessor.run(frame, &mut tensor.view_mut()).expect("a picture");
    let (result, requests) = during(|| preprocessor.run(frame, &mut tensor.view_mut()));
    result.expect("a picture");
    requests
}
