//! What goes through real values: quantising, means, pictures of a new size.

use super::{Form, Function, Lanes, centred, each, limit, start};
use crate::kernels::Run;
use crate::kernels::runs::{Blend, Runs, Windows};
use crate::numerics::{Mean, Quantiser};
use crate::tensor::{ElementType, Quantisation};

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
