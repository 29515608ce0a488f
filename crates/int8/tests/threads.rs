//! An engine with helpers gives the bytes of one without, and no helper is needed for that.

#[expect(dead_code, reason = "shared with the differential tests")]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::Random;
use ocelli_int8::*;

/// A net with layers large enough to be shared: by panels, by tiles, by rows, with sums, groups, joins and tables.
fn net(random: &mut Random) -> Result<Graph, GraphError> {
    let mut builder = GraphBuilder::new();
    let to = Quantisation::new(ElementType::U8, 0.02, 100)?;
    let other = Quantisation::new(ElementType::S8, 0.03, -3)?;
    let x = builder.input(Shape::new(2, 29, 31, 24)?, to, InputForm::QuantisedNhwc)?;
    let wide = builder.conv(x, random.conv(24, 80, 1, Window::square(1, 1, 0)), to)?;
    let deep = builder.conv(wide, random.conv(80, 80, 80, Window::square(3, 1, 1)), other)?;
    let silu = builder.unary(deep, |value| value / (1.0 + (-value).exp()), to)?;
    let narrow = builder.conv(silu, random.conv(80, 24, 1, Window::square(1, 1, 0)), to)?;
    let sum = builder.add(narrow, x, to)?;
    let tiled = builder.conv(sum, random.conv(24, 72, 1, Window::square(3, 1, 1)), to)?;
    let halved = builder.conv(sum, random.conv(24, 72, 3, Window::square(3, 1, 1)), to)?;
    let joined = builder.concat(&[tiled, halved], to)?;
    let less = builder.conv(joined, random.conv(144, 144, 144, Window::square(5, 2, 2)), other)?;
    let few = builder.conv(less, random.conv(144, 500, 1, Window::square(1, 2, 0)), to)?;
    let few = builder.unary(few, f32::tanh, to)?;
    builder.output(few, OutputForm::QuantisedNhwc)?;
    builder.output(joined, OutputForm::QuantisedNhwc)?;
    builder.build()
}

fn run(engine: &mut Engine, picture: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut few, mut joined) = (vec![0; 2 * 8 * 8 * 500], vec![0; 2 * 29 * 31 * 144]);
    let outputs = &mut [Output::U8(&mut few), Output::U8(&mut joined)];
    engine.run(&[Input::U8(picture)], outputs).expect("it fits");
    (few, joined)
}

#[test]
fn helpers_do_not_change_a_byte() {
    let random = &mut Random(11);
    let graph = net(random).expect("in range");
    let started = Arc::new(AtomicUsize::new(0));
    let pools = [2, 3].map(|threads| {
        let started = Arc::clone(&started);
        let count = move |helper| {
            started.fetch_add(helper, Ordering::SeqCst);
        };
        Arc::new(Pool::new(threads, count).expect("the system has threads"))
    });
    for isa in common::instruction_sets() {
        let mut engine = Engine::with_isa(&graph, isa).expect("it fits").expect("it is listed");
        let picture = random.bytes(2 * 29 * 31 * 24);
        let expected = run(&mut engine, &picture);
        for pool in &pools {
            engine.share(pool);
            for _ in 0..common::cases(40).div_ceil(10) {
                assert!(
                    run(&mut engine, &picture) == expected,
                    "{isa}, {} threads",
                    pool.threads()
                );
            }
        }
    }
    drop(pools);
    assert_eq!(started.load(Ordering::SeqCst), 1 + 1 + 2, "each helper started once");
}

/// Two engines in two threads: one of them works alone while the other has the pool.
#[test]
fn engines_may_share_a_pool() {
    let graph = net(&mut Random(5)).expect("in range");
    let pool = Arc::new(Pool::new(2, |_| {}).expect("the system has threads"));
    let picture = Random(6).bytes(2 * 29 * 31 * 24);
    let expected = run(&mut Engine::new(&graph).expect("it fits"), &picture);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut engine = Engine::new(&graph).expect("it fits");
                engine.share(&pool);
                for _ in 0..common::cases(20).div_ceil(5) {
                    assert!(run(&mut engine, &picture) == expected);
                }
            });
        }
    });
}
