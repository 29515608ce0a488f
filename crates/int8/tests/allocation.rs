//! A run allocates nothing: counted by the allocator itself.
#![expect(unsafe_code, reason = "an allocator that counts is an unsafe trait; it only forwards")]

#[path = "common/mod.rs"]
#[expect(dead_code, reason = "shared with the differential tests")]
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::Random;
use ocelli_int8::*;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn no_run_allocates() {
    let graph = every_operator().unwrap();
    for isa in common::instruction_sets() {
        let Some(mut engine) = Engine::with_isa(&graph, isa).unwrap() else { continue };
        let picture = vec![0.5; 16 * 16 * 3];
        let mut scores = vec![0.0; graph.outputs().next().unwrap().0.shape.elements()];
        let before = ALLOCATIONS.get();
        for _ in 0..2 {
            let outputs = &mut [Output::F32(&mut scores)];
            engine.run(&[Input::F32(&picture)], outputs).unwrap();
        }
        assert_eq!(ALLOCATIONS.get() - before, 0, "{isa}");
        assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-4, "softmax adds up to one");
    }
}

/// A net with each kind of step.
fn every_operator() -> Result<Graph, GraphError> {
    let random = &mut Random(3);
    let mut builder = GraphBuilder::new();
    let to = Quantisation::new(ElementType::U8, 0.02, 100)?;
    let other = Quantisation::new(ElementType::S8, 0.03, -3)?;
    let x = builder.input(Shape::new(1, 16, 16, 3)?, to, InputForm::F32Nchw)?;
    let stem = builder.conv(x, random.conv(3, 12, 1, Window::square(3, 2, 1)), to)?;
    let grouped = builder.conv(stem, random.conv(12, 12, 3, Window::square(3, 1, 1)), other)?;
    let wide = builder.conv(stem, random.conv(12, 12, 12, Window::square(5, 1, 2)), to)?;
    let wide = builder.unary(wide, f32::tanh, to)?;
    let point = builder.conv(wide, random.conv(12, 12, 1, Window::square(1, 1, 0)), other)?;
    let sum = builder.add(point, grouped, to)?;
    let joined = builder.concat(&[sum, wide, grouped], to)?;
    let part = builder.slice(joined, 7, 20)?;
    let gate = builder.global_average_pool(part, to)?;
    let gated = builder.mul(part, gate, other)?;
    let shifted = builder.add(gated, gate, other)?;
    let pooled = builder.max_pool(shifted, Window::square(2, 2, 0))?;
    let mean = builder.average_pool(pooled, Window::square(3, 1, 1), CountPadding::Include, to)?;
    let size = [7, 9];
    let (scales, coordinates) = ([1.75, 2.25], Coordinates::HalfPixel);
    let mode = Interpolation::Bilinear;
    let larger = builder.resize(mean, Resize { size, scales, mode, coordinates })?;
    let padded = builder.pad(larger, [1, 1, 1, 1], 100)?;
    let flat = builder.reshape(padded, Shape::vector(1, 9 * 11 * 20)?)?;
    let conv = random.conv(9 * 11 * 20, 10, 1, Window::square(1, 1, 0));
    let Conv { channels, weights, weight_scales, bias, .. } = conv;
    let layer = FullyConnected { channels, weights, weight_scales, bias };
    let y = builder.fully_connected(flat, layer, to)?;
    builder.output(y, OutputForm::SoftmaxNchw)?;
    builder.build()
}
