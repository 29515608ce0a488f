//! Element-wise loops of x86, written once for registers of 8 and of 16 lanes.
//!
//! Four registers of results become bytes at once. Runs are walked block by block: what belongs to a block of channels,
//! such as the factors of a product, is fetched once for all pixels.

use crate::kernels::Run;
use crate::kernels::runs::{Blend, Runs, Windows};
use crate::numerics::{AddRule, Mean, MulRule, Quantiser};
use crate::tensor::{ElementType, Quantisation};

/// Registers of 32-bit lanes. Every method needs its machine's instructions.
pub(crate) trait Lanes {
    const COUNT: usize;
    type Words: Copy;
    type Reals: Copy;

    /// The first `count` of so many bytes; the other lanes are anything.
    ///
    /// # Safety
    /// `count` bytes, at least 1, are readable at `from`.
    unsafe fn widen(from: *const u8, count: usize, element: ElementType) -> Self::Words;

    /// As [`Lanes::widen`].
    ///
    /// # Safety
    /// `count` values, at least 1, are readable at `from`.
    unsafe fn load(from: *const f32, count: usize) -> Self::Reals;

    /// # Safety
    /// `count` values, at least 1, are writable at `to`.
    unsafe fn save(to: *mut f32, values: Self::Reals, count: usize);

    /// Words, plus a zero point if there is one, to bytes of a type, saturated.
    ///
    /// # Safety
    /// `count` bytes, at least 1, are writable at `to`.
    unsafe fn store(to: *mut u8, words: Self::Words, count: usize, form: Form);

    /// # Safety
    /// All the bytes are writable at `to`.
    unsafe fn store_four(to: *mut u8, words: [Self::Words; 4], form: Form);

    unsafe fn splat(value: f32) -> Self::Reals;
    unsafe fn real(words: Self::Words) -> Self::Reals;
    unsafe fn add(a: Self::Reals, b: Self::Reals) -> Self::Reals;
    unsafe fn mul(a: Self::Reals, b: Self::Reals) -> Self::Reals;
    unsafe fn div(a: Self::Reals, b: Self::Reals) -> Self::Reals;
    /// `a · b + c`, rounded once.
    unsafe fn fused(a: Self::Reals, b: Self::Reals, c: Self::Reals) -> Self::Reals;
    /// The lower of two; the first one when it is NaN.
    unsafe fn lower(value: Self::Reals, other: Self::Reals) -> Self::Reals;
    /// The higher of two; the second one when the first is NaN.
    unsafe fn higher(value: Self::Reals, other: Self::Reals) -> Self::Reals;
    /// To the nearest, ties to even; the least word for what no word can hold.
    unsafe fn round(values: Self::Reals) -> Self::Words;
    /// Towards zero.
    unsafe fn cut(values: Self::Reals) -> Self::Words;
    unsafe fn plus(words: Self::Words, number: i32) -> Self::Words;
}

/// How words become bytes.
#[derive(Clone, Copy)]
pub(crate) struct Form {
    pub(crate) element: ElementType,
    /// What is added to words once they have been saturated to 16 bits.
    pub(crate) zero_point: Option<i16>,
}

impl Form {
    /// Of words that have their zero point.
    fn complete(element: ElementType) -> Self {
        Self { element, zero_point: None }
    }
}

/// What a run of the output holds.
trait Function<L: Lanes> {
    /// What is the same for a block of all runs.
    type Fixed: Copy;

    /// # Safety
    /// Bytes at..at + count lie in the run, and the machine has the instructions.
    unsafe fn fix(&self, at: usize, count: usize) -> Self::Fixed;

    /// # Safety
    /// As for `fix`; the run exists.
    unsafe fn value(&self, fixed: Self::Fixed, run: usize, at: usize, count: usize) -> L::Words;
}

/// # Safety
/// Runs of `length` bytes, at distances of `step`, are writable at `y`; `function` holds for all of them; the machine
/// has the instructions.
#[inline(always)]
unsafe fn each<L: Lanes, F: Function<L>>(
    function: &F,
    y: *mut u8,
    [length, count, step]: [usize; 3],
    form: Form,
) {
    let [second, third, fourth] = [L::COUNT, 2 * L::COUNT, 3 * L::COUNT];
    let mut at = 0;
    // SAFETY: by contract.
    unsafe {
        while at + 4 * L::COUNT <= length {
            let a = function.fix(at, L::COUNT);
            let b = function.fix(at + second, L::COUNT);
            let c = function.fix(at + third, L::COUNT);
            let d = function.fix(at + fourth, L::COUNT);
            for run in 0..count {
                let words = [
                    function.value(a, run, at, L::COUNT),
                    function.value(b, run, at + second, L::COUNT),
                    function.value(c, run, at + third, L::COUNT),
                    function.value(d, run, at + fourth, L::COUNT),
                ];
                L::store_four(y.add(run * step + at), words, form);
            }
            at += 4 * L::COUNT;
        }
        while at + L::COUNT <= length {
            let fixed = function.fix(at, L::COUNT);
            for run in 0..count {
                let words = function.value(fixed, run, at, L::COUNT);
                L::store(y.add(run * step + at), words, L::COUNT, form);
            }
            at += L::COUNT;
        }
        if at < length {
            let rest = length - at;
            let fixed = function.fix(at, rest);
            for run in 0..count {
                let words = function.value(fixed, run, at, rest);
                L::store(y.add(run * step + at), words, rest, form);
            }
        }
    }
}

fn start(run: Run<'_>) -> *const u8 {
    run.as_ptr().cast()
}

/// `SATURATE` as the rule says: limits are those of the bytes.
struct Sum<'a, L: Lanes, const SATURATE: bool> {
    rule: &'a AddRule,
    x: [*const u8; 2],
    steps: [usize; 2],
    ratios: [L::Reals; 2],
    fixed: L::Reals,
    limits: [L::Reals; 2],
}

impl<L: Lanes, const SATURATE: bool> Function<L> for Sum<'_, L, SATURATE> {
    type Fixed = ();

    #[inline(always)]
    unsafe fn fix(&self, _: usize, _: usize) {}

    #[inline(always)]
    unsafe fn value(&self, (): (), run: usize, at: usize, count: usize) -> L::Words {
        // SAFETY: by contract.
        unsafe {
            let a = self.x[0].add(run * self.steps[0] + at);
            let b = self.x[1].add(run * self.steps[1] + at);
            let a = L::real(L::widen(a, count, self.rule.element_a));
            let b = L::real(L::widen(b, count, self.rule.element_b));
            let sum = L::fused(a, self.ratios[0], L::fused(b, self.ratios[1], self.fixed));
            match SATURATE {
                true => L::round(sum),
                false => L::round(limit::<L>(sum, self.limits)),
            }
        }
    }
}

#[inline(always)]
unsafe fn limit<L: Lanes>(value: L::Reals, [low, high]: [L::Reals; 2]) -> L::Reals {
    // SAFETY: by contract.
    unsafe { L::lower(L::higher(value, low), high) }
}

/// # Safety
/// The runs lie in what is readable at `x` and writable at `y`; the machine has the instructions.
#[inline(always)]
pub(crate) unsafe fn add<L: Lanes>(rule: &AddRule, x: [Run<'_>; 2], y: Run<'_>, runs: &Runs<3>) {
    // SAFETY: by contract.
    unsafe {
        match rule.saturates() {
            true => sum::<L, true>(rule, x, y, runs),
            false => sum::<L, false>(rule, x, y, runs),
        }
    }
}

/// # Safety
/// As for [`add`].
#[inline(always)]
unsafe fn sum<L: Lanes, const SATURATE: bool>(
    rule: &AddRule,
    x: [Run<'_>; 2],
    y: Run<'_>,
    runs: &Runs<3>,
) {
    let [a, b, step] = runs.steps;
    let element = if rule.low < 0 { ElementType::S8 } else { ElementType::U8 };
    // SAFETY: by contract.
    unsafe {
        let sum = Sum::<L, SATURATE> {
            rule,
            x: x.map(start),
            steps: [a, b],
            ratios: [L::splat(rule.ratio_a), L::splat(rule.ratio_b)],
            fixed: L::splat(rule.fixed),
            limits: [L::splat(rule.low as f32), L::splat(rule.high as f32)],
        };
        let (y, form) = (start(y).cast_mut(), Form::complete(element));
        each(&sum, y, [runs.length, runs.count, step], form);
    }
}

/// A product of integers, exact in f32 as it has 17 bits, to stored values. `SATURATE` as the rule says.
struct Scale<L: Lanes, const SATURATE: bool> {
    ratio: L::Reals,
    zero: L::Reals,
    limits: [L::Reals; 2],
}

impl<L: Lanes, const SATURATE: bool> Scale<L, SATURATE> {
    #[inline(always)]
    unsafe fn of(&self, product: L::Reals) -> L::Words {
        // SAFETY: by contract.
        unsafe {
            let value = L::add(L::mul(product, self.ratio), self.zero);
            match SATURATE {
                true => L::round(value),
                false => L::round(limit::<L>(value, self.limits)),
            }
        }
    }
}

/// Stored values less their zero point.
///
/// # Safety
/// As for [`Lanes::widen`].
#[inline(always)]
unsafe fn centred<L: Lanes>(from: *const u8, count: usize, of: &Quantisation) -> L::Reals {
    // SAFETY: by contract.
    unsafe { L::real(L::plus(L::widen(from, count, of.element()), -of.zero_point())) }
}

/// Products of tensors of one shape.
struct ByRuns<'a, L: Lanes, const SATURATE: bool> {
    rule: &'a MulRule,
    scale: Scale<L, SATURATE>,
    x: [*const u8; 2],
    steps: [usize; 2],
}

impl<L: Lanes, const SATURATE: bool> Function<L> for ByRuns<'_, L, SATURATE> {
    type Fixed = ();

    #[inline(always)]
    unsafe fn fix(&self, _: usize, _: usize) {}

    #[inline(always)]
    unsafe fn value(&self, (): (), run: usize, at: usize, count: usize) -> L::Words {
        // SAFETY: by contract.
        unsafe {
            let a = self.x[0].add(run * self.steps[0] + at);
            let b = self.x[1].add(run * self.steps[1] + at);
            let a = centred::<L>(a, count, &self.rule.a);
            self.scale.of(L::mul(a, centred::<L>(b, count, &self.rule.b)))
        }
    }
}

/// Products of each run with the same one.
struct ByOne<'a, L: Lanes, const SATURATE: bool> {
    rule: &'a MulRule,
    scale: Scale<L, SATURATE>,
    x: [*const u8; 2],
    step: usize,
}

impl<L: Lanes, const SATURATE: bool> Function<L> for ByOne<'_, L, SATURATE> {
    /// The factor, and what it makes of the other one's zero point.
    type Fixed = (L::Reals, L::Reals);

    #[inline(always)]
    unsafe fn fix(&self, at: usize, count: usize) -> (L::Reals, L::Reals) {
        // SAFETY: by contract.
        unsafe {
            let b = centred::<L>(self.x[1].add(at), count, &self.rule.b);
            (b, L::mul(b, L::splat(-self.rule.a.zero_point() as f32)))
        }
    }

    #[inline(always)]
    unsafe fn value(
        &self,
        (b, zero): (L::Reals, L::Reals),
        run: usize,
        at: usize,
        count: usize,
    ) -> L::Words {
        // SAFETY: by contract.
        unsafe {
            let a = self.x[0].add(run * self.step + at);
            let a = L::real(L::widen(a, count, self.rule.a.element()));
            self.scale.of(L::fused(a, b, zero))
        }
    }
}

/// # Safety
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn mul<L: Lanes>(rule: &MulRule, x: [Run<'_>; 2], y: Run<'_>, runs: &Runs<3>) {
    // SAFETY: by contract.
    unsafe {
        match rule.saturates() {
            true => product::<L, true>(rule, x, y, runs),
            false => product::<L, false>(rule, x, y, runs),
        }
    }
}

/// # Safety
/// As for [`add`].
#[inline(always)]
unsafe fn product<L: Lanes, const SATURATE: bool>(
    rule: &MulRule,
    x: [Run<'_>; 2],
    y: Run<'_>,
    runs: &Runs<3>,
) {
    let [a, b, step] = runs.steps;
    let (low, high) = rule.y.range();
    let extent = [runs.length, runs.count, step];
    let (x, y, form) = (x.map(start), start(y).cast_mut(), Form::complete(rule.y.element()));
    // SAFETY: by contract.
    unsafe {
        let scale = Scale::<L, SATURATE> {
            ratio: L::splat(rule.ratio),
            zero: L::splat(rule.y.zero_point() as f32),
            limits: [L::splat(low as f32), L::splat(high as f32)],
        };
        match b {
            0 => each(&ByOne { rule, scale, x, step: a }, y, extent, form),
            _ => each(&ByRuns { rule, scale, x, steps: [a, b] }, y, extent, form),
        }
    }
}

struct Means<'a, L: Lanes> {
    x: *const u8,
    step: usize,
    taps: &'a [usize],
    from: Quantisation,
    from_scale: L::Reals,
    count: L::Reals,
    scale: L::Reals,
    zero: L::Reals,
    limits: [L::Reals; 2],
}

impl<L: Lanes> Function<L> for Means<'_, L> {
    type Fixed = ();

    #[inline(always)]
    unsafe fn fix(&self, _: usize, _: usize) {}

    #[inline(always)]
    unsafe fn value(&self, (): (), run: usize, at: usize, count: usize) -> L::Words {
        // SAFETY: by contract.
        unsafe {
            let x = self.x.add(run * self.step + at);
            let mut sum = L::splat(0.0);
            for &tap in self.taps {
                let value = centred::<L>(x.add(tap), count, &self.from);
                sum = L::add(sum, L::mul(value, self.from_scale));
            }
            let mean = L::div(L::div(sum, self.count), self.scale);
            let value = L::add(mean, self.zero);
            L::round(limit::<L>(value, self.limits))
        }
    }
}

/// # Safety
/// The windows have been checked; the machine has the instructions.
#[inline(always)]
pub(crate) unsafe fn average<L: Lanes>(mean: &Mean, windows: &Windows<'_>) {
    let Mean { from, to, count } = mean;
    let (low, high) = to.range();
    let Runs { length, count: runs, steps } = windows.runs;
    // SAFETY: by contract.
    unsafe {
        let means = Means::<L> {
            x: start(windows.x),
            step: steps[0],
            taps: windows.taps,
            from: *from,
            from_scale: L::splat(from.scale()),
            count: L::splat(*count as f32),
            scale: L::splat(to.scale()),
            zero: L::splat(to.zero_point() as f32),
            limits: [L::splat(low as f32), L::splat(high as f32)],
        };
        let y = start(windows.y).cast_mut();
        each(&means, y, [length, runs, steps[1]], Form::complete(to.element()));
    }
}

/// Real to stored values, less the zero point.
struct Stored<L: Lanes> {
    /// Above the greatest stored value, and in the range of words.
    high: L::Reals,
    scale: L::Reals,
    inverse: [L::Reals; 2],
}

impl<L: Lanes> Stored<L> {
    #[inline(always)]
    unsafe fn new(quantiser: &Quantiser) -> Self {
        let to = quantiser.to();
        let [high, low] = quantiser.inverse().unwrap_or_default();
        // SAFETY: by contract.
        unsafe {
            Self {
                high: L::splat(Quantiser::LIMIT * to.scale()),
                scale: L::splat(to.scale()),
                inverse: [L::splat(high), L::splat(low)],
            }
        }
    }

    /// For NaN, and far below zero, the word is the least one, which saturates to the lowest byte. Values that may be
    /// as far above are to be limited.
    #[inline(always)]
    unsafe fn of<const INVERSE: bool, const LIMIT: bool>(&self, value: L::Reals) -> L::Words {
        // SAFETY: by contract.
        unsafe {
            let value = if LIMIT { L::lower(value, self.high) } else { value };
            let [high, low] = self.inverse;
            let scaled = match INVERSE {
                true => L::fused(value, high, L::mul(value, low)),
                false => L::div(value, self.scale),
            };
            L::round(scaled)
        }
    }
}

struct Quantise<'a, L: Lanes, const INVERSE: bool> {
    stored: &'a Stored<L>,
    values: *const f32,
}

impl<L: Lanes, const INVERSE: bool> Function<L> for Quantise<'_, L, INVERSE> {
    type Fixed = ();

    #[inline(always)]
    unsafe fn fix(&self, _: usize, _: usize) {}

    #[inline(always)]
    unsafe fn value(&self, (): (), _: usize, at: usize, count: usize) -> L::Words {
        // SAFETY: by contract.
        unsafe { self.stored.of::<INVERSE, true>(L::load(self.values.add(at), count)) }
    }
}

/// # Safety
/// The machine has the instructions.
#[inline(always)]
pub(crate) unsafe fn quantise<L: Lanes>(to: &Quantiser, values: &[f32], bytes: &mut [u8]) {
    let extent = [bytes.len().min(values.len()), 1, 0];
    let (values, y, form) = (values.as_ptr(), bytes.as_mut_ptr(), form(to.to()));
    // SAFETY: so many values and bytes are there.
    unsafe {
        let stored = &Stored::<L>::new(to);
        match to.inverse() {
            Some(_) => each(&Quantise::<L, true> { stored, values }, y, extent, form),
            None => each(&Quantise::<L, false> { stored, values }, y, extent, form),
        }
    }
}

/// # Safety
/// The machine has the instructions.
#[inline(always)]
pub(crate) unsafe fn dequantise<L: Lanes>(from: &Quantisation, x: Run<'_>, reals: &mut [f32]) {
    let length = x.len().min(reals.len());
    // SAFETY: so many bytes and values are there.
    unsafe {
        let scale = L::splat(from.scale());
        for at in (0..length).step_by(L::COUNT) {
            let count = L::COUNT.min(length - at);
            let value = centred::<L>(start(x).add(at), count, from);
            L::save(reals.as_mut_ptr().add(at), L::mul(value, scale), count);
        }
    }
}

/// How the words of [`Stored`] become bytes.
fn form(to: &Quantisation) -> Form {
    Form { element: to.element(), zero_point: Some(to.zero_point() as i16) }
}

/// The four neighbours of a pixel, and the four weights or pairs of weights.
#[inline(always)]
unsafe fn neighbours<L: Lanes>(
    blend: &Blend<'_>,
    column: usize,
    at: usize,
    count: usize,
) -> [L::Reals; 4] {
    // SAFETY: as for `value`; the call has been checked.
    unsafe {
        let [near, far] = blend.columns.get_unchecked(column).at;
        let [near, far] = [near * blend.channels + at, far * blend.channels + at];
        let [up, down] = blend.rows.map(<[f32]>::as_ptr);
        [
            L::load(up.add(near), count),
            L::load(up.add(far), count),
            L::load(down.add(near), count),
            L::load(down.add(far), count),
        ]
    }
}

struct BlendStored<'a>(&'a Blend<'a>);

impl<L: Lanes> Function<L> for BlendStored<'_> {
    type Fixed = ();

    #[inline(always)]
    unsafe fn fix(&self, _: usize, _: usize) {}

    #[inline(always)]
    unsafe fn value(&self, (): (), run: usize, at: usize, count: usize) -> L::Words {
        // SAFETY: by contract.
        unsafe {
            let [a, b, c, d] = neighbours::<L>(self.0, run, at, count);
            let [near, far] = self.0.columns.get_unchecked(run).weights;
            let [near, far] = [L::splat(near), L::splat(far)];
            let [up, down] = self.0.weights;
            let upper = L::add(L::mul(near, a), L::mul(far, b));
            let lower = L::add(L::mul(near, c), L::mul(far, d));
            L::cut(L::add(L::mul(L::splat(up), upper), L::mul(L::splat(down), lower)))
        }
    }
}

/// `SIMPLE` where there is an inverse, and no result is beyond the range of i32.
struct BlendReal<'a, L: Lanes, const SIMPLE: bool> {
    blend: &'a Blend<'a>,
    stored: &'a Stored<L>,
}

impl<L: Lanes, const SIMPLE: bool> Function<L> for BlendReal<'_, L, SIMPLE> {
    type Fixed = ();

    #[inline(always)]
    unsafe fn fix(&self, _: usize, _: usize) {}

    #[inline(always)]
    unsafe fn value(&self, (): (), run: usize, at: usize, count: usize) -> L::Words {
        // SAFETY: by contract.
        unsafe {
            let [a, b, c, d] = neighbours::<L>(self.blend, run, at, count);
            let [near, far] = self.blend.columns.get_unchecked(run).weights;
            let [up, down] = self.blend.weights;
            let sum = L::mul(L::splat(near * up), a);
            let sum = L::add(sum, L::mul(L::splat(far * up), b));
            let sum = L::add(sum, L::mul(L::splat(near * down), c));
            let sum = L::add(sum, L::mul(L::splat(far * down), d));
            match SIMPLE {
                true => self.stored.of::<true, false>(sum),
                false => self.stored.of::<false, true>(sum),
            }
        }
    }
}

/// # Safety
/// The call has been checked; the machine has the instructions.
#[inline(always)]
pub(crate) unsafe fn blend<L: Lanes>(blend: &Blend<'_>, element: ElementType, y: Run<'_>) {
    let extent = [blend.channels, blend.columns.len(), blend.step];
    // SAFETY: by contract.
    unsafe {
        each::<L, _>(&BlendStored(blend), start(y).cast_mut(), extent, Form::complete(element))
    };
}

/// # Safety
/// As for [`blend`].
#[inline(always)]
pub(crate) unsafe fn blend_reals<L: Lanes>(blend: &Blend<'_>, to: &Quantiser, y: Run<'_>) {
    let extent = [blend.channels, blend.columns.len(), blend.step];
    let (y, form) = (start(y).cast_mut(), form(to.to()));
    // SAFETY: by contract.
    unsafe {
        let stored = &Stored::<L>::new(to);
        match to.inverse().is_some() && blend.greatest < 1e6 * to.to().scale() {
            true => each(&BlendReal::<L, true> { blend, stored }, y, extent, form),
            false => each(&BlendReal::<L, false> { blend, stored }, y, extent, form),
        }
    }
}

/// The functions of a table, for some lanes and the features they need.
macro_rules! functions {
    ($lanes:ty, $features:literal) => {
        pub(crate) fn add(rule: &AddRule, x: [Run<'_>; 2], y: Run<'_>, runs: &Runs<3>) {
            #[target_feature(enable = $features)]
            unsafe fn inner(rule: &AddRule, x: [Run<'_>; 2], y: Run<'_>, runs: &Runs<3>) {
                // SAFETY: compiled for the features; checked below.
                unsafe { lanes::add::<$lanes>(rule, x, y, runs) }
            }
            runs.check([x[0], x[1], y]);
            // SAFETY: the table is handed out only on machines with the features; the runs were checked.
            unsafe { inner(rule, x, y, runs) }
        }

        pub(crate) fn mul(rule: &MulRule, x: [Run<'_>; 2], y: Run<'_>, runs: &Runs<3>) {
            #[target_feature(enable = $features)]
            unsafe fn inner(rule: &MulRule, x: [Run<'_>; 2], y: Run<'_>, runs: &Runs<3>) {
                // SAFETY: as above.
                unsafe { lanes::mul::<$lanes>(rule, x, y, runs) }
            }
            runs.check([x[0], x[1], y]);
            // SAFETY: as above.
            unsafe { inner(rule, x, y, runs) }
        }

        pub(crate) fn average(mean: &Mean, windows: &Windows<'_>) {
            #[target_feature(enable = $features)]
            unsafe fn inner(mean: &Mean, windows: &Windows<'_>) {
                // SAFETY: as above.
                unsafe { lanes::average::<$lanes>(mean, windows) }
            }
            windows.check();
            // SAFETY: as above.
            unsafe { inner(mean, windows) }
        }

        pub(crate) fn quantise(to: &Quantiser, values: &[f32], bytes: &mut [u8]) {
            #[target_feature(enable = $features)]
            fn inner(to: &Quantiser, values: &[f32], bytes: &mut [u8]) {
                // SAFETY: compiled for the features.
                unsafe { lanes::quantise::<$lanes>(to, values, bytes) }
            }
            // SAFETY: the table is handed out only on machines with the features.
            unsafe { inner(to, values, bytes) }
        }

        pub(crate) fn dequantise(from: &Quantisation, x: Run<'_>, reals: &mut [f32]) {
            #[target_feature(enable = $features)]
            fn inner(from: &Quantisation, x: Run<'_>, reals: &mut [f32]) {
                // SAFETY: compiled for the features.
                unsafe { lanes::dequantise::<$lanes>(from, x, reals) }
            }
            // SAFETY: the table is handed out only on machines with the features.
            unsafe { inner(from, x, reals) }
        }

        pub(crate) fn blend(blend: &Blend<'_>, element: ElementType, y: Run<'_>) {
            #[target_feature(enable = $features)]
            unsafe fn inner(blend: &Blend<'_>, element: ElementType, y: Run<'_>) {
                // SAFETY: compiled for the features; checked below.
                unsafe { lanes::blend::<$lanes>(blend, element, y) }
            }
            blend.check(y);
            // SAFETY: the table is handed out only on machines with the features; the call was checked.
            unsafe { inner(blend, element, y) }
        }

        pub(crate) fn blend_reals(blend: &Blend<'_>, to: &Quantiser, y: Run<'_>) {
            #[target_feature(enable = $features)]
            unsafe fn inner(blend: &Blend<'_>, to: &Quantiser, y: Run<'_>) {
                // SAFETY: as above.
                unsafe { lanes::blend_reals::<$lanes>(blend, to, y) }
            }
            blend.check(y);
            // SAFETY: as above.
            unsafe { inner(blend, to, y) }
        }
    };
}

pub(crate) use functions;
