//! Every head against recorded model outputs and an independent reference (tests/fixtures/heads), and against
//! outputs that no model should give.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ocelli::detection::{Classification, Detection, Findings};
use ocelli::tensor::{ElementType, Quantisation, TensorBuffer, TensorSpec, TensorView};
use ocelli::vision::Geometry;
use ocelli::vision::postprocess::{self, Head, HeadError, MOST_DETECTIONS};
use ocelli_protocol::manifest::{self, Task};
use proptest::prelude::*;
use serde_json::Value;

const CASES: [&str; 5] = ["softmax", "nanodet", "centerface", "yolov8-raw", "yolov8-decoded"];

/// A recorded case.
#[derive(Clone)]
struct Case {
    head: manifest::Head,
    task: Task,
    labels: Arc<[String]>,
    input: [usize; 2],
    geometry: Geometry,
    specs: Vec<TensorSpec>,
    tensors: Vec<TensorBuffer>,
    expected: Vec<Value>,
}

impl Case {
    fn read(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/heads").join(name);
        let text = fs::read_to_string(folder.join("case.json")).unwrap();
        let case: Value = serde_json::from_str(&text).unwrap();
        let head: manifest::Head = serde_json::from_value(case["head"].clone()).unwrap();
        let softmax = matches!(head, manifest::Head::Softmax { .. });
        let read_one = |output: &Value| {
            let name = output["name"].as_str().unwrap().to_owned();
            let shape: Vec<usize> = serde_json::from_value(output["shape"].clone()).unwrap();
            let values = read_output(&folder, &name, &shape, &output["background"]);
            let spec = TensorSpec { name, element: ElementType::F32, shape, quantisation: None };
            (spec, TensorBuffer::F32(values))
        };
        let (specs, tensors) = case["outputs"].as_array().unwrap().iter().map(read_one).unzip();
        let geometry = &case["geometry"];
        Self {
            head,
            task: if softmax { Task::Classification } else { Task::Detection },
            labels: labels(case["classes"].as_u64().unwrap() as usize),
            input: serde_json::from_value(case["input"].clone()).unwrap(),
            geometry: Geometry {
                scale_x: float(&geometry["scale"]),
                scale_y: float(&geometry["scale"]),
                offset_x: float(&geometry["offset"][0]),
                offset_y: float(&geometry["offset"][1]),
                source_width: geometry["width"].as_u64().unwrap() as usize,
                source_height: geometry["height"].as_u64().unwrap() as usize,
            },
            specs,
            tensors,
            expected: case["expected"].as_array().unwrap().clone(),
        }
    }

    fn build(&self) -> Result<Box<dyn Head>, HeadError> {
        let [width, height] = self.input;
        let labels = Arc::clone(&self.labels);
        postprocess::head(&self.head, self.task, labels, &self.specs, width, height)
    }

    fn refusal(&self) -> HeadError {
        self.build().err().expect("must be refused")
    }

    fn views(&self) -> Vec<TensorView<'_>> {
        let view = |(spec, tensor)| view(spec, tensor);
        self.specs.iter().zip(&self.tensors).map(view).collect()
    }

    fn decode(&self) -> Findings {
        let mut findings = Findings::Detections(Vec::new());
        self.build().unwrap().decode(&self.views(), &self.geometry, &mut findings).unwrap();
        findings
    }

    /// The same outputs in bytes, and the reals that those bytes stand for.
    fn quantised(&self, element: ElementType) -> (Self, Self) {
        let (mut bytes, mut reals) = (self.clone(), self.clone());
        for index in 0..self.specs.len() {
            let values = floats(&self.tensors[index]);
            let low = values.iter().copied().fold(0.0, f32::min);
            let high = values.iter().copied().fold(0.0, f32::max);
            let scale = (high - low) / 255.0;
            let least = if element == ElementType::I8 { -128 } else { 0 };
            let zero_point = (least as f32 - low / scale).round() as i32;
            let quantise = |value: &f32| {
                ((value / scale).round() as i32 + zero_point).clamp(least, least + 255)
            };
            let steps: Vec<i32> = values.iter().map(quantise).collect();
            let real = |step: &i32| scale * (step - zero_point) as f32;
            reals.tensors[index] = TensorBuffer::F32(steps.iter().map(real).collect());
            bytes.tensors[index] = if element == ElementType::I8 {
                TensorBuffer::I8(steps.iter().map(|step| *step as i8).collect())
            } else {
                TensorBuffer::U8(steps.iter().map(|step| *step as u8).collect())
            };
            bytes.specs[index].element = element;
            bytes.specs[index].quantisation = Some(Quantisation { scale, zero_point });
        }
        (bytes, reals)
    }
}

fn view<'a>(spec: &'a TensorSpec, tensor: &'a TensorBuffer) -> TensorView<'a> {
    TensorView { shape: &spec.shape, values: tensor.as_values() }
}

fn labels(count: usize) -> Arc<[String]> {
    (0..count).map(|class| format!("label {class}")).collect()
}

fn float(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}

fn floats(tensor: &TensorBuffer) -> &[f32] {
    tensor.as_values().as_f32().expect("recorded as floats")
}

fn floats_mut(tensor: &mut TensorBuffer) -> &mut Vec<f32> {
    let TensorBuffer::F32(values) = tensor else { panic!("recorded as floats") };
    values
}

fn detections(findings: &Findings) -> &[Detection] {
    let Findings::Detections(detections) = findings else { panic!("no detections") };
    detections
}

fn classes(findings: &Findings) -> &[Classification] {
    let Findings::Classes(classes) = findings else { panic!("no classes") };
    classes
}

/// A dense output, or one given by its cells over a background.
fn read_output(folder: &Path, name: &str, shape: &[usize], background: &Value) -> Vec<f32> {
    if background.is_null() {
        let (recorded, values) = read_npy(&folder.join(format!("{name}.npy")), f32::from_le_bytes);
        assert_eq!(recorded, shape);
        return values;
    }
    let (_, cells) = read_npy(&folder.join(format!("{name}.cells.npy")), i32::from_le_bytes);
    let (recorded, values) =
        read_npy(&folder.join(format!("{name}.values.npy")), f32::from_le_bytes);
    let (channels, width, area) = (shape[1], shape[3], shape[2] * shape[3]);
    assert_eq!(recorded, [cells.len() / 2, channels]);
    let mut output: Vec<f32> = background
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|value| std::iter::repeat_n(float(value), area))
        .collect();
    for (cell, row) in cells.chunks_exact(2).zip(values.chunks_exact(channels)) {
        let at = cell[0] as usize * width + cell[1] as usize;
        for (channel, value) in row.iter().enumerate() {
            output[channel * area + at] = *value;
        }
    }
    output
}

/// A NumPy file of format 1 with little-endian 4-byte elements in C order: shape and values.
fn read_npy<T>(path: &Path, parse: fn([u8; 4]) -> T) -> (Vec<usize>, Vec<T>) {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(bytes[..8], *b"\x93NUMPY\x01\x00", "{}", path.display());
    let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..end]).unwrap();
    assert!(header.contains("'<f4'") || header.contains("'<i4'"), "{header}");
    assert!(header.contains("'fortran_order': False"), "{header}");
    let shape = header.split(['(', ')']).nth(1).expect("a shape");
    let shape: Vec<usize> =
        shape.split(',').filter_map(|length| length.trim().parse().ok()).collect();
    let elements = bytes[end..].chunks_exact(4);
    let values: Vec<T> = elements.map(|four| parse(four.try_into().unwrap())).collect();
    assert_eq!(values.len(), shape.iter().product::<usize>());
    (shape, values)
}

/// Same findings in the same order, within what float32 loses against float64.
fn assert_as_expected(name: &str, findings: &Findings, expected: &[Value]) {
    if let Findings::Classes(classes) = findings {
        assert_eq!(classes.len(), expected.len(), "{name}");
        for (found, expected) in classes.iter().zip(expected) {
            assert_eq!(expected["class"], found.class, "{name}");
            assert_eq!(found.label, format!("label {}", found.class), "{name}");
            assert!((found.score - float(&expected["score"])).abs() < 1e-5, "{name}: {found:?}");
        }
        return;
    }
    let found = detections(findings);
    assert_eq!(found.len(), expected.len(), "{name}: {found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(expected["class"], found.class, "{name}");
        assert_eq!(found.label, format!("label {}", found.class), "{name}");
        assert!((found.score - float(&expected["score"])).abs() < 1e-5, "{name}: {found:?}");
        let corner = |side| float(&expected["box"][side]);
        let found_box = found.bounding_box;
        for (side, value) in [found_box.x, found_box.y, found_box.w, found_box.h].iter().enumerate()
        {
            assert!((value - corner(side)).abs() < 1e-5, "{name}: {found:?}, expected {expected}");
        }
        let points = expected["landmarks"].as_array().map_or(&[][..], |points| points);
        assert_eq!(found.landmarks.len(), points.len(), "{name}");
        for (found, point) in found.landmarks.iter().zip(points) {
            for axis in [0, 1] {
                assert!((found[axis] - float(&point[axis])).abs() < 1e-5, "{name}: {found:?}");
            }
        }
    }
}

#[test]
fn recorded_outputs_give_the_reference_findings() {
    for name in CASES {
        let case = Case::read(name);
        assert!(!case.expected.is_empty(), "{name}");
        assert_as_expected(name, &case.decode(), &case.expected);
    }
}

#[test]
fn a_face_has_eyes_above_nose_above_mouth() {
    let findings = Case::read("centerface").decode();
    let [face] = detections(&findings) else { panic!("one face expected") };
    let [left_eye, right_eye, nose, left_mouth, right_mouth] = face.landmarks[..] else {
        panic!("five points expected")
    };
    assert!(left_eye[0] < right_eye[0] && left_mouth[0] < right_mouth[0], "{face:?}");
    assert!(left_eye[1] < nose[1] && right_eye[1] < nose[1], "{face:?}");
    assert!(nose[1] < left_mouth[1] && nose[1] < right_mouth[1], "{face:?}");
}

#[test]
fn both_forms_of_yolov8_give_the_same_detections() {
    let (raw, decoded) = (Case::read("yolov8-raw"), Case::read("yolov8-decoded"));
    assert_as_expected("raw", &raw.decode(), &decoded.expected);
    let mut transposed = decoded.clone();
    let [_, channels, anchors] = decoded.specs[0].shape[..] else { panic!("rank 3") };
    let values = floats(&decoded.tensors[0]);
    let turned = (0..anchors * channels).map(|at| values[at % channels * anchors + at / channels]);
    transposed.tensors[0] = TensorBuffer::F32(turned.collect());
    transposed.specs[0].shape = vec![1, anchors, channels];
    assert_eq!(transposed.decode(), decoded.decode());
}

#[test]
fn bytes_decode_as_the_reals_they_stand_for() {
    for name in CASES {
        for element in [ElementType::U8, ElementType::I8] {
            let (bytes, reals) = Case::read(name).quantised(element);
            let found = bytes.decode();
            assert_eq!(found, reals.decode(), "{name} {element}");
            let empty = match &found {
                Findings::Detections(detections) => detections.is_empty(),
                Findings::Classes(classes) => classes.is_empty(),
            };
            // One scale for pixels and probabilities leaves no step for the latter.
            assert_eq!(empty, name == "yolov8-decoded", "{name} {element}");
        }
    }
}

#[test]
fn centerface_finds_its_outputs_by_name() {
    let case = Case::read("centerface");
    let mut turned = case.clone();
    turned.specs.reverse();
    turned.tensors.reverse();
    assert_eq!(turned.decode(), case.decode());
    let mut unnamed = case.clone();
    for (spec, name) in unnamed.specs.iter_mut().zip(["537", "538", "539", "540"]) {
        spec.name = name.into();
    }
    assert_eq!(unnamed.decode(), case.decode());
}

#[test]
fn nothing_of_an_earlier_picture_stays() {
    for name in CASES {
        let case = Case::read(name);
        let mut quiet = case.clone();
        for tensor in &mut quiet.tensors {
            floats_mut(tensor).fill(-9.0);
        }
        let mut head = case.build().unwrap();
        let mut findings = Findings::Classes(Vec::new());
        for _ in 0..2 {
            head.decode(&case.views(), &case.geometry, &mut findings).unwrap();
            assert_as_expected(name, &findings, &case.expected);
            head.decode(&quiet.views(), &case.geometry, &mut findings).unwrap();
            match &findings {
                Findings::Detections(found) => assert!(found.is_empty(), "{name}: {found:?}"),
                Findings::Classes(found) => assert!(found.iter().all(|one| one.score < 0.01)),
            }
        }
    }
}

#[test]
fn a_classifier_takes_probabilities_and_large_logits() {
    let case = |head, values: &[f32]| {
        let mut case = Case::read("softmax");
        case.head = head;
        case.labels = labels(values.len());
        case.specs[0].shape = vec![1, values.len(), 1, 1];
        case.tensors[0] = TensorBuffer::F32(values.to_vec());
        case
    };
    let scores = |case: Case| -> Vec<(usize, f32)> {
        classes(&case.decode()).iter().map(|found| (found.class, found.score)).collect()
    };
    let given = manifest::Head::Softmax { probabilities: true, top_k: 2 };
    assert_eq!(scores(case(given, &[0.25, 0.7, 0.05])), [(1, 0.7), (0, 0.25)]);
    let logits = manifest::Head::Softmax { probabilities: false, top_k: 9 };
    assert_eq!(
        scores(case(logits.clone(), &[1e30, 1e30, -1e30])),
        [(0, 0.5), (1, 0.5), (2, 0.0)],
        "no overflow, lower class first, top_k above the number of classes"
    );
    let damaged = [f32::NAN, 2.0, f32::INFINITY, 2.0, f32::NEG_INFINITY];
    assert_eq!(scores(case(logits.clone(), &damaged)), [(1, 0.5), (3, 0.5)]);
    assert_eq!(scores(case(logits, &[f32::NAN; 3])), []);
}

#[test]
fn a_picture_full_of_noise_is_bounded() {
    for name in ["nanodet", "centerface", "yolov8-raw", "yolov8-decoded"] {
        let mut case = Case::read(name);
        for (n, tensor) in case.tensors.iter_mut().enumerate() {
            for (at, value) in floats_mut(tensor).iter_mut().enumerate() {
                *value = ((at * 7919 + n) % 1000) as f32 / 250.0;
            }
        }
        let findings = case.decode();
        let found = detections(&findings);
        assert!(!found.is_empty() && found.len() <= MOST_DETECTIONS, "{name}: {}", found.len());
        assert_sound(name, &findings);
    }
}

/// Scores 0 to 1, best first; boxes within the picture and not empty.
fn assert_sound(name: &str, findings: &Findings) {
    let Findings::Detections(found) = findings else {
        let found = classes(findings);
        assert!(found.is_sorted_by(|a, b| a.score >= b.score), "{name}");
        assert!(found.iter().all(|one| (0.0..=1.0).contains(&one.score)), "{name}: {found:?}");
        return;
    };
    assert!(found.is_sorted_by(|a, b| a.score >= b.score), "{name}");
    for one in found {
        let area = one.bounding_box;
        let within = |low: f32, size: f32| low >= 0.0 && size > 0.0 && low + size <= 1.000_001;
        assert!((0.0..=1.0).contains(&one.score), "{name}: {one:?}");
        assert!(within(area.x, area.w) && within(area.y, area.h), "{name}: {one:?}");
        assert!(one.landmarks.iter().flatten().all(|value| value.is_finite()), "{name}: {one:?}");
    }
}

fn nasty() -> impl Strategy<Value = f32> {
    prop_oneof![
        Just(f32::NAN),
        Just(f32::INFINITY),
        Just(f32::NEG_INFINITY),
        Just(f32::MAX),
        Just(f32::MIN),
        -300.0_f32..300.0,
        0.0_f32..1.0,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_output_upsets_a_head(
        which in 0..CASES.len(),
        values in prop::collection::vec(nasty(), 1..97),
        some in 1_usize..40,
    ) {
        let mut case = Case::read(CASES[which]);
        for tensor in &mut case.tensors {
            // Every `some`-th value of an otherwise real output.
            let damaged = floats_mut(tensor).iter_mut().step_by(some);
            for (value, nasty) in damaged.zip(values.iter().cycle()) {
                *value = *nasty;
            }
        }
        assert_sound(CASES[which], &case.decode());
    }
}

#[test]
fn outputs_that_do_not_fit_are_refused_and_named() {
    type Damage = fn(&mut Case);
    let drop_one: Damage = |case| drop(case.specs.pop());
    let add_one: Damage = |case| case.specs.push(case.specs[0].clone());
    let integers: Damage = |case| case.specs[0].element = ElementType::I64;
    let bare_bytes: Damage = |case| case.specs[0].element = ElementType::U8;
    let batch: Damage = |case| case.specs[0].shape[0] = 2;
    let smaller: Damage = |case| case.specs[0].shape[2] -= 1;
    let rank: Damage = |case| case.specs[0].shape.truncate(2);
    let cases: &[(&str, &str, Damage, &str)] = &[
        ("softmax", "no output", drop_one, "expects one output f32 [1, 1000]"),
        ("softmax", "two outputs", add_one, "expects one output f32 [1, 1000]"),
        ("softmax", "integers", integers, "logits i64 [1, 1000]"),
        ("softmax", "bytes without a scale", bare_bytes, "with scale and zero point"),
        ("softmax", "two rows", batch, "logits f32 [2, 1000]"),
        ("nanodet", "a map less", drop_one, "3 outputs [1, C, 52, 52] for stride 8"),
        ("nanodet", "a map more", add_one, "3 outputs"),
        ("nanodet", "another grid", smaller, "C = 112 or 124 (80 labels and 4 x 8 or 11 bins)"),
        ("nanodet", "another rank", rank, "stride8 f32 [1, 124]"),
        ("nanodet", "integers", integers, "stride8 to be f32"),
        (
            "yolov8-raw",
            "a map less",
            drop_one,
            "[1, C, 4, 5] for stride 32, C = 69 (64 and 5 labels)",
        ),
        ("yolov8-raw", "batch of two", batch, "stride8 f32 [2, 69, 16, 20]"),
        ("yolov8-decoded", "no output", drop_one, "strides in the manifest"),
        ("yolov8-decoded", "another rank", rank, "one output [1, 9, anchors] or [1, anchors, 9]"),
        ("centerface", "no landmarks", drop_one, "landmarks [1, 10, 80, 80]"),
        ("centerface", "another grid", smaller, "heatmap [1, 1, 80, 80]"),
    ];
    for (name, damage, apply, said) in cases {
        let mut case = Case::read(name);
        apply(&mut case);
        let error = case.refusal();
        let message = error.to_string();
        assert!(matches!(error, HeadError::Outputs { .. }), "{name}, {damage}: {message}");
        assert!(message.contains(said), "{name}, {damage}: {message}");
    }
}

#[test]
fn labels_that_do_not_fit_are_refused_and_counted() {
    let cases = [
        ("softmax", 999, "labels.txt has 999 labels, the model tells 1000 classes apart"),
        ("softmax", 0, "labels.txt has 0 labels, the model tells 1000 classes apart"),
        ("nanodet", 79, "expects maps with 111 or 123 (79 labels and 4 x 8 or 11 bins) channels"),
        ("nanodet", 0, "expects maps with 32 or 44 (0 labels"),
        ("yolov8-raw", 4, "labels.txt has 4 labels, the model tells 5 classes apart"),
        ("yolov8-decoded", 80, "labels.txt has 80 labels, the model tells 5 classes apart"),
        ("centerface", 2, "labels.txt has 2 labels, the model tells 1 classes apart"),
    ];
    for (name, count, said) in cases {
        let mut case = Case::read(name);
        case.labels = labels(count);
        let message = case.refusal().to_string();
        assert!(message.contains(said), "{name}: {message}");
    }
}

#[test]
fn settings_that_do_not_fit_are_refused_and_named() {
    let nanodet = |strides: &[usize], score_threshold, iou_threshold| manifest::Head::Nanodet {
        strides: strides.to_vec(),
        score_threshold,
        iou_threshold,
    };
    let face = manifest::Head::Centerface { score_threshold: -0.1, iou_threshold: 0.3 };
    let softmax = manifest::Head::Softmax { probabilities: false, top_k: 0 };
    let cases = [
        ("nanodet", nanodet(&[], 0.4, 0.6), "strides is []"),
        ("nanodet", nanodet(&[8, 0, 32], 0.4, 0.6), "strides is [8, 0, 32]"),
        ("nanodet", nanodet(&[8, 16, 32], 40.0, 0.6), "score_threshold is 40"),
        ("nanodet", nanodet(&[8, 16, 32], 0.4, f32::NAN), "iou_threshold is NaN"),
        ("centerface", face, "score_threshold is -0.1, it must be 0 to 1"),
        ("softmax", softmax, "top_k is 0, it must be 1 or more"),
    ];
    for (name, head, said) in cases {
        let mut case = Case::read(name);
        case.head = head;
        let error = case.refusal();
        assert!(matches!(error, HeadError::Setting { .. }), "{name}: {error}");
        assert!(error.to_string().contains(said), "{name}: {error}");
    }
    let mut case = Case::read("nanodet");
    case.task = Task::Classification;
    let message = case.refusal().to_string();
    assert_eq!(message, "head nanodet: task is classification, it must be detection");
}

#[test]
fn a_run_with_other_outputs_is_an_error() {
    for name in CASES {
        let case = Case::read(name);
        let mut head = case.build().unwrap();
        let mut findings = Findings::Detections(Vec::new());
        let right = case.views();
        let halved: Vec<usize> = case.specs[0].shape.iter().map(|length| length / 2).collect();
        let bytes = TensorBuffer::zeros(ElementType::U8, case.specs[0].len());
        let short = TensorBuffer::zeros(ElementType::F32, 1);
        let mut reshaped = right.clone();
        reshaped[0].shape = &halved;
        let mut retyped = right.clone();
        retyped[0] = view(&case.specs[0], &bytes);
        let mut shortened = right.clone();
        shortened[0] = view(&case.specs[0], &short);
        let more: Vec<_> = right.iter().copied().chain([right[0]]).collect();
        let wrong = [
            ("shape", reshaped),
            ("type", retyped),
            ("length", shortened),
            ("count", more),
            ("none", Vec::new()),
        ];
        for (what, outputs) in wrong {
            let error = head.decode(&outputs, &case.geometry, &mut findings).unwrap_err();
            assert!(matches!(error, HeadError::Outputs { .. }), "{name}, {what}: {error}");
        }
        head.decode(&right, &case.geometry, &mut findings).unwrap();
    }
}
