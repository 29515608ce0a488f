//! Element-wise loops of x86, written once for registers of 8 and of 16 lanes.
//!
//! Four registers of results become bytes at once. Runs are walked block by block: what belongs to a block of channels,
//! such as the factors of a product, is fetched once for all pixels.

mod pairs;
mod reals;

pub(crate) use pairs::{add, mul};
pub(crate) use reals::{average, blend, blend_reals, dequantise, quantise};

use crate::kernels::Run;
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

#[inline(always)]
unsafe fn limit<L: Lanes>(value: L::Reals, [low, high]: [L::Reals; 2]) -> L::Reals {
    // SAFETY: by contract.
    unsafe { L::lower(L::higher(value, low), high) }
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
