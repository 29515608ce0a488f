//! Random quantisations, bytes and convolutions for tests and benches, from a seed.

use ocelli_int8::*;

/// The instruction sets to try: all of this machine, or the one that `OCELLI_ISA` names.
pub(crate) fn instruction_sets() -> impl Iterator<Item = &'static str> {
    let only = std::env::var("OCELLI_ISA").ok();
    let known = |only: &str| Engine::instruction_sets().any(|isa| isa == only);
    assert!(only.as_deref().is_none_or(known), "this machine lacks {only:?}");
    Engine::instruction_sets().filter(move |isa| only.as_deref().is_none_or(|only| only == *isa))
}

/// Random cases of a test: as many as given, or what `OCELLI_CASES` says (emulators are slow).
pub(crate) fn cases(usual: u32) -> u32 {
    let given = std::env::var("OCELLI_CASES").ok();
    given.map_or(usual, |given| given.parse().expect("OCELLI_CASES is a number"))
}

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
            Quantisation::new(ElementType::U8, self.scale(), zero).expect("in range")
        } else {
            let zero = self.one_of(&[0, 0, -128, 127, -5]);
            Quantisation::new(ElementType::S8, self.scale(), zero).expect("in range")
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
