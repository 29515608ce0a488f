//! Random tensors and graphs for the tests, from a seed.

use ocelli_int8::reference;
use ocelli_int8::*;

/// SplitMix64: small, seeded, the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Within `low..=high`.
    pub(crate) fn within(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1) as u64) as i64
    }

    pub(crate) fn size(&mut self, low: usize, high: usize) -> usize {
        self.within(low as i64, high as i64) as usize
    }

    pub(crate) fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.size(0, values.len() - 1)]
    }

    /// Scales with few bits, so that ties happen.
    pub(crate) fn scale(&mut self) -> f32 {
        self.within(1, 48) as f32 / self.one_of(&[64.0, 100.0, 512.0])
    }

    pub(crate) fn quantisation(&mut self) -> Quantisation {
        if self.within(0, 1) == 0 {
            let zero = self.one_of(&[0, 0, 128, 255, 7, 131]);
            Quantisation::new(ElementType::U8, self.scale(), zero).unwrap()
        } else {
            let zero = self.one_of(&[0, 0, -128, 127, -5]);
            Quantisation::new(ElementType::S8, self.scale(), zero).unwrap()
        }
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        // Runs of extremes make the sums that a saturating instruction would cut.
        let extreme = self.within(0, 3) == 0;
        let any = |random: &mut Self| {
            if extreme { random.one_of(&[0u8, 127, 128, 255]) } else { random.next() as u8 }
        };
        (0..length).map(|_| any(self)).collect()
    }

    pub(crate) fn weights(&mut self, length: usize) -> Vec<i8> {
        self.bytes(length).into_iter().map(|byte| byte as i8).collect()
    }

    /// A convolution for `input` channels whose results neither vanish nor all saturate.
    pub(crate) fn conv(
        &mut self,
        input: usize,
        channels: usize,
        groups: usize,
        window: Window,
    ) -> Conv {
        let depth = window.kernel[0] * window.kernel[1] * (input / groups);
        let scales = if self.within(0, 1) == 0 { 1 } else { channels };
        let size = 1.0 / (depth as f32).sqrt() / 64.0;
        Conv {
            channels,
            window,
            groups,
            weights: self.weights(channels * depth),
            weight_scales: (0..scales).map(|_| self.scale() * size).collect(),
            bias: match self.within(0, 2) {
                0 => Vec::new(),
                _ => (0..channels).map(|_| self.within(-20_000, 20_000) as i32).collect(),
            },
        }
    }
}

/// Runs a graph of one stored NHWC input through the reference and every instruction set of this machine, and
/// compares all outputs byte for byte.
pub(crate) fn assert_same(graph: &Graph, random: &mut Random) {
    let (input, _) = graph.inputs().next().unwrap();
    let bytes = random.bytes(input.shape.elements());
    let signed: Vec<i8> = bytes.iter().map(|&byte| byte as i8).collect();
    let given = match input.quantisation.element() {
        ElementType::U8 => Input::U8(&bytes),
        ElementType::S8 => Input::S8(&signed),
    };
    let expected = outputs(graph, |outputs| {
        reference::run(graph, &[given], outputs).unwrap();
    });
    for isa in ["scalar", "avx2"] {
        let Some(mut engine) = Engine::with_isa(graph, isa).unwrap() else { continue };
        // Twice: the second run meets what the first left in the arena.
        for run in 0..2 {
            let found = outputs(graph, |outputs| engine.run(&[given], outputs).unwrap());
            for (index, (expected, found)) in expected.iter().zip(&found).enumerate() {
                let wrong = expected.iter().zip(found).position(|(a, b)| a != b);
                if let Some(at) = wrong {
                    panic!(
                        "{isa}, run {run}, output {index}: {} instead of {} at {at}\n{:#?}",
                        found[at],
                        expected[at],
                        engine.layers()
                    );
                }
            }
        }
    }
}

fn outputs(graph: &Graph, run: impl FnOnce(&mut [Output<'_>])) -> Vec<Vec<u8>> {
    let mut unsigned: Vec<Vec<u8>> =
        graph.outputs().map(|(tensor, _)| vec![0; tensor.shape.elements()]).collect();
    let mut signed: Vec<Vec<i8>> = unsigned.iter().map(|bytes| vec![0; bytes.len()]).collect();
    let mut views: Vec<Output<'_>> = graph
        .outputs()
        .zip(unsigned.iter_mut().zip(&mut signed))
        .map(|((tensor, _), (unsigned, signed))| match tensor.quantisation.element() {
            ElementType::U8 => Output::U8(unsigned),
            ElementType::S8 => Output::S8(signed),
        })
        .collect();
    run(&mut views);
    drop(views);
    for ((tensor, _), (unsigned, signed)) in graph.outputs().zip(unsigned.iter_mut().zip(signed)) {
        if tensor.quantisation.element() == ElementType::S8 {
            *unsigned = signed.into_iter().map(|value| value as u8).collect();
        }
    }
    unsigned
}
