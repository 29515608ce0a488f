//! Time of decoding NanoDet-g's three maps (416 x 416, 80 classes): `cargo bench --bench heads`.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use ocelli::clock::{Clock, SystemClock};
use ocelli::detection::Findings;
use ocelli::tensor::{ElementType, Quantisation, TensorBuffer, TensorSpec, TensorView};
use ocelli::vision::Geometry;
use ocelli::vision::postprocess;
use ocelli_protocol::manifest::{self, Task};

const RUNS: usize = 2000;

fn main() -> io::Result<()> {
    let mut out = io::stdout().lock();
    // Cells whose best class is above the threshold: an empty picture, a usual one, a crowd.
    for cells in [0, 30, 600] {
        for element in [ElementType::F32, ElementType::U8] {
            let mut times = measure(element, cells);
            times.sort_unstable();
            let micros = |time: Duration| time.as_secs_f64() * 1e6;
            let (least, median) = (micros(times[0]), micros(times[RUNS / 2]));
            writeln!(
                out,
                "nanodet {element:3} {cells:4} cells  min {least:7.1} us  median {median:7.1} us"
            )?;
        }
    }
    Ok(())
}

fn measure(element: ElementType, cells: usize) -> Vec<Duration> {
    let kind = manifest::Head::Nanodet {
        strides: vec![8, 16, 32],
        score_threshold: 0.4,
        iou_threshold: 0.6,
    };
    let quantised = element == ElementType::U8;
    let spec = |stride: usize| TensorSpec {
        name: format!("stride{stride}"),
        element,
        shape: vec![1, 124, 416 / stride, 416 / stride],
        quantisation: quantised.then_some(Quantisation { scale: 0.08, zero_point: 150 }),
    };
    let specs = [8, 16, 32].map(spec);
    let tensors = specs.each_ref().map(|spec| fill(spec, cells));
    let labels: Arc<[String]> = (0..80).map(|class| format!("label {class}")).collect();
    let mut head = postprocess::head(&kind, Task::Detection, labels, &specs, 416, 416)
        .expect("a head for these outputs");
    let geometry = Geometry {
        scale_x: 0.325,
        scale_y: 0.325,
        offset_x: 0.0,
        offset_y: 0.0,
        source_width: 1280,
        source_height: 1280,
    };
    let outputs =
        [0, 1, 2].map(|n| TensorView { shape: &specs[n].shape, values: tensors[n].as_values() });
    let mut findings = Findings::Detections(Vec::new());
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let start = SystemClock.now();
        head.decode(&outputs, &geometry, &mut findings).expect("the outputs it was built for");
        times.push(SystemClock.now() - start);
    }
    times
}

/// Logits of -4 with `cells` cells, spread over the largest map, that score above the threshold in one class.
fn fill(spec: &TensorSpec, cells: usize) -> TensorBuffer {
    let area = spec.shape[2] * spec.shape[3];
    let mut steps = vec![100_u8; spec.len()];
    if area == 52 * 52 {
        for n in 0..cells {
            steps[(n * 7) % 80 * area + (n * 97) % area] = 160 + (n % 40) as u8;
        }
    }
    match spec.quantisation {
        Some(_) => TensorBuffer::U8(steps),
        None => {
            TensorBuffer::F32(steps.iter().map(|step| 0.08 * (f32::from(*step) - 150.0)).collect())
        }
    }
}
