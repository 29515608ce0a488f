//! Heads allocate nothing per picture once they have seen a busy one: counted by the allocator itself.

#[path = "support/allocations.rs"]
mod allocations;

use std::sync::Arc;

use allocations::{Watched, during, note};
use ocelli::detection::Findings;
use ocelli::tensor::{ElementType, TensorSpec, TensorView, Values};
use ocelli::vision::Geometry;
use ocelli::vision::postprocess::{self, Head};
use ocelli_protocol::manifest::{self, Task};

#[global_allocator]
static ALLOCATOR: Watched = Watched(note);

#[test]
fn decoding_allocates_nothing_in_steady_state() {
    let (score_threshold, iou_threshold) = (0.4, 0.6);
    let softmax = manifest::Head::Softmax { probabilities: false, top_k: 5 };
    let nanodet = manifest::Head::Nanodet { strides: vec![8, 16], score_threshold, iou_threshold };
    let raw = manifest::Head::Yolov8 { strides: vec![8], score_threshold, iou_threshold };
    let decoded = manifest::Head::Yolov8 { strides: vec![], score_threshold, iou_threshold };
    let centerface = manifest::Head::Centerface { score_threshold, iou_threshold };
    let cases: [(manifest::Head, usize, &[&[usize]]); 5] = [
        (softmax, 50, &[&[1, 50]]),
        (nanodet, 6, &[&[1, 50, 16, 16], &[1, 50, 8, 8]]),
        (raw, 6, &[&[1, 70, 16, 16]]),
        (decoded, 6, &[&[1, 10, 336]]),
        (centerface, 1, &[&[1, 1, 32, 32], &[1, 2, 32, 32], &[1, 2, 32, 32], &[1, 10, 32, 32]]),
    ];
    for (kind, classes, shapes) in cases {
        let specs: Vec<TensorSpec> = shapes.iter().map(float_spec).collect();
        let labels: Arc<[String]> = (0..classes).map(|class| format!("label {class}")).collect();
        let softmax = matches!(kind, manifest::Head::Softmax { .. });
        let task = if softmax { Task::Classification } else { Task::Detection };
        let head = postprocess::head(&kind, task, labels, &specs, 128, 128);
        let (most, least) = steady_state(head.expect("a head for these outputs"), &specs);
        assert!(most > 0 && (softmax || least == 0), "{kind:?}: busy {most}, quiet {least}");
    }
}

/// Alternates busy and quiet pictures; gives what was found in them.
fn steady_state(mut head: Box<dyn Head>, specs: &[TensorSpec]) -> (usize, usize) {
    let geometry = Geometry {
        scale_x: 1.0,
        scale_y: 1.0,
        offset_x: 0.0,
        offset_y: 0.0,
        source_width: 128,
        source_height: 128,
    };
    let pictures = [4.0_f32, 0.5, -20.0].map(|peak| fill(specs, peak));
    let views = pictures
        .each_ref()
        .map(|tensors| specs.iter().zip(tensors).map(as_view).collect::<Vec<_>>());
    let mut findings = Findings::Detections(Vec::new());
    let mut counts = [0; 3];
    for round in 0..4 {
        for (outputs, count) in views.iter().zip(&mut counts) {
            let (result, requests) = during(|| head.decode(outputs, &geometry, &mut findings));
            result.expect("the outputs it was built for");
            assert!(round == 0 || requests.count == 0, "{requests:?} in round {round}");
            *count = match &findings {
                Findings::Detections(found) => found.len(),
                Findings::Classes(found) => found.len(),
            };
        }
    }
    (counts[0], counts[2])
}

fn as_view<'a>((spec, values): (&'a TensorSpec, &'a Vec<f32>)) -> TensorView<'a> {
    TensorView { shape: &spec.shape, values: Values::F32(values) }
}

fn float_spec(shape: &&[usize]) -> TensorSpec {
    let shape = shape.to_vec();
    TensorSpec { name: "output".into(), element: ElementType::F32, shape, quantisation: None }
}

/// Values that rise to `peak` in a pattern.
fn fill(specs: &[TensorSpec], peak: f32) -> Vec<Vec<f32>> {
    let value = |at: usize| peak - (at * 37 % 101) as f32 / 20.0;
    specs.iter().map(|spec| (0..spec.len()).map(value).collect()).collect()
}
