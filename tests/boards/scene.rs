//! What the virtual camera shows: a picture of the zoo on a 1280x720 stage, as the camera's bytes, and what the host finds in them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ocelli::agent::{Accelerators, ModelSettings};
use ocelli::clock::{Clock, SystemClock};
use ocelli::detection::Findings;
use ocelli::frame::{Frame, PixelFormat};
use ocelli::processor::Processor;
use ocelli::vision::annotate::Picture;
use serde_json::Value;

use crate::support::agent::project;

/// Longest look at a scene on the host.
const PATIENCE: Duration = Duration::from_secs(60);
/// The stage, pixels: what vivid's output has at first.
const STAGE: (usize, usize) = (1280, 720);

/// A picture in the middle of the stage, as high as it, on gray.
pub struct Scene {
    picture: Picture,
}

impl Scene {
    /// From a file in `models/pictures`.
    pub fn new(name: &str) -> Self {
        let file = std::fs::read(project("models/pictures").join(name)).unwrap();
        let source = Picture::decode(&file).unwrap();
        let (width, height) = STAGE;
        let left = (width - source.width * height / source.height) / 2;
        let mut rgb = vec![128; width * height * 3];
        for (at, pixel) in rgb.chunks_exact_mut(3).enumerate() {
            let (x, y) = (at % width, at / width);
            // The centre of a pixel, in pixels of the source.
            let back = |at: usize| (at as f32 + 0.5) * source.height as f32 / height as f32 - 0.5;
            if (left..width - left).contains(&x) {
                pixel.copy_from_slice(&sample(&source, back(x - left), back(y)));
            }
        }
        Self { picture: Picture { width, height, rgb } }
    }

    /// The bytes of a camera with NV12: BT.601, limited range.
    pub fn nv12(&self) -> Vec<u8> {
        let Picture { width, height, rgb } = &self.picture;
        let at = |x: usize, y: usize| {
            let pixel = &rgb[(y * width + x) * 3..][..3];
            [0, 1, 2].map(|channel| f32::from(pixel[channel]))
        };
        let luma = |[r, g, b]: [f32; 3]| 0.299 * r + 0.587 * g + 0.114 * b;
        let mut bytes = Vec::with_capacity(width * height * 3 / 2);
        for y in 0..*height {
            bytes.extend((0..*width).map(|x| (16.5 + luma(at(x, y)) * 219.0 / 255.0) as u8));
        }
        for y in (0..*height).step_by(2) {
            for x in (0..*width).step_by(2) {
                let four = [at(x, y), at(x + 1, y), at(x, y + 1), at(x + 1, y + 1)];
                let [r, _, b] =
                    [0, 1, 2].map(|c| four.iter().map(|pixel| pixel[c]).sum::<f32>() / 4.0);
                let y = four.into_iter().map(luma).sum::<f32>() / 4.0;
                let chroma = |delta: f32, range: f32| (128.5 + delta / range * 224.0 / 255.0) as u8;
                bytes.extend([chroma(b - y, 1.772), chroma(r - y, 1.402)]);
            }
        }
        bytes
    }

    /// What the host finds in the very bytes that the camera shows: the array `classes` or `detections`.
    pub fn expected(&self, package: &Path) -> Value {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let settings = ModelSettings {
            path: package.to_owned(),
            delegates: ocelli::inference::delegate_names(),
            processor: Processor::default(),
            profile: None,
            deadline: PATIENCE,
            accelerators: Accelerators::default(),
        };
        let mut detector = ocelli::agent::load(&settings, &clock).unwrap().detector;
        let (width, height) = (self.picture.width, self.picture.height);
        let (data, format) = (self.nv12(), PixelFormat::Nv12);
        let frame =
            Frame { data, width, height, stride: width, format, ..Frame::empty(clock.now()) };
        let mut found = Findings::Classes(Vec::new());
        detector.detect(&frame, PATIENCE, &*clock, &mut found).unwrap();
        findings(&serde_json::to_value(found).unwrap()).clone()
    }
}

/// The array `classes` or `detections` of a result.
pub fn findings(result: &Value) -> &Value {
    let found = result.get("classes").or(result.get("detections"));
    found.unwrap_or_else(|| panic!("no findings in {result}"))
}

/// Whether two findings say the same: first class and its score, or all objects and where they are.
pub fn agree(one: &Value, other: &Value) -> bool {
    let (one, other) = (one.as_array().unwrap(), other.as_array().unwrap());
    let near = |(a, b): (&Value, &Value)| {
        let score = |value: &Value| value["score"].as_f64().unwrap();
        // 64-bit ARM resamples pictures with more precision than other machines (`NARROW_TAPS`).
        a["label"] == b["label"] && (score(a) - score(b)).abs() <= 0.05
    };
    if one.first().or(other.first()).is_some_and(|first| first.get("box").is_none()) {
        return one.iter().zip(other).next().is_some_and(near);
    }
    // Two that see nothing show nothing.
    !one.is_empty()
        && one.len() == other.len()
        && one.iter().all(|a| other.iter().any(|b| near((a, b)) && overlap(a, b) >= 0.8))
}

/// Intersection over union of two boxes.
fn overlap(one: &Value, other: &Value) -> f64 {
    let side = |value: &Value, from: &str, length: &str| {
        let from = value["box"][from].as_f64().unwrap();
        (from, from + value["box"][length].as_f64().unwrap())
    };
    let shared = |a: (f64, f64), b: (f64, f64)| (a.1.min(b.1) - a.0.max(b.0)).max(0.0);
    let area = |(x, y): ((f64, f64), (f64, f64))| (x.1 - x.0) * (y.1 - y.0);
    let sides = |value: &Value| (side(value, "x", "w"), side(value, "y", "h"));
    let (a, b) = (sides(one), sides(other));
    let both = shared(a.0, b.0) * shared(a.1, b.1);
    both / (area(a) + area(b) - both)
}

/// Bilinear, clamped to the picture.
fn sample(picture: &Picture, x: f32, y: f32) -> [u8; 3] {
    let (x, y) =
        (x.clamp(0.0, (picture.width - 1) as f32), y.clamp(0.0, (picture.height - 1) as f32));
    let (left, top) = (x as usize, y as usize);
    let (right, bottom) = ((left + 1).min(picture.width - 1), (top + 1).min(picture.height - 1));
    let at = |x: usize, y: usize, c: usize| f32::from(picture.rgb[(y * picture.width + x) * 3 + c]);
    let mix = |a: f32, b: f32, part: f32| a + (b - a) * part;
    [0, 1, 2].map(|c| {
        let upper = mix(at(left, top, c), at(right, top, c), x.fract());
        let lower = mix(at(left, bottom, c), at(right, bottom, c), x.fract());
        (mix(upper, lower, y.fract()) + 0.5) as u8
    })
}
