//! Sums and products of two tensors, or of a tensor and a vector.

use super::{Form, Function, Lanes, centred, each, limit, start};
use crate::kernels::Run;
use crate::kernels::runs::Runs;
use crate::numerics::{AddRule, MulRule};
use crate::tensor::ElementType;

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
