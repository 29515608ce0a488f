//! Separable resampling of 8-bit samples with Pillow's filters: each output sample is a weighted sum of a span of
//! input samples, antialiased when shrinking. Plain Rust in a form that the compiler turns into SIMD.
//!
//! Rows are summed lane by lane. Columns are summed the same way, on a [`Tile`]: sixteen rows turned on their side, so
//! that one sample of all sixteen lies together.

use ocelli_protocol::manifest::Interpolation;

/// Rows that are resampled horizontally at once.
pub(super) const LANES: usize = 16;
/// Samples that are resampled vertically at once.
const BLOCK: usize = 64;
/// Longest span summed in 16-bit lanes, where rounding errors stay below a tenth of a step. A 64-bit ARM core
/// multiplies and adds into 32-bit lanes in one instruction; there the wide form is the faster one as well.
const NARROW_TAPS: usize = if cfg!(target_arch = "aarch64") { 0 } else { 16 };

/// Weights in floating point, one span of input samples for each output sample.
#[derive(Debug, Clone)]
pub(super) struct Spans(Vec<(usize, Vec<f64>)>);

impl Spans {
    /// Spans that resample `length` input samples, the first of which has the index `start`, to `outputs` samples.
    ///
    /// Same arithmetic as `precompute_coeffs` in Pillow's `Resample.c`: no sample outside is touched, weights of a
    /// span add up to 1.
    pub(super) fn new(
        interpolation: Interpolation,
        start: usize,
        length: usize,
        outputs: usize,
    ) -> Self {
        let scale = length as f64 / outputs as f64;
        let stretch = scale.max(1.0);
        let (kernel, reach): (fn(f64) -> f64, f64) = match interpolation {
            Interpolation::Bilinear => (triangle, 1.0),
            Interpolation::Bicubic => (catmull_rom, 2.0),
        };
        let support = reach * stretch;
        let span = |output: usize| {
            let centre = (output as f64 + 0.5) * scale;
            // A negative value becomes 0: casts saturate.
            let first = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(length);
            let weight = |at: usize| kernel((at as f64 - centre + 0.5) / stretch);
            let weights: Vec<f64> = (first..end).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            (start + first, weights.iter().map(|weight| weight / sum).collect())
        };
        Self((0..outputs).map(span).collect())
    }

    /// Spans over a plane that has one sample where these have two: each sample of that plane stands for both.
    pub(super) fn halved(&self) -> Self {
        let halve = |(first, weights): &(usize, Vec<f64>)| {
            let mut sums = vec![0.0; (first % 2 + weights.len()).div_ceil(2)];
            for (at, weight) in weights.iter().enumerate() {
                sums[(first % 2 + at) / 2] += weight;
            }
            (first / 2, sums)
        };
        Self(self.0.iter().map(halve).collect())
    }

    /// One output sample in floating point: the reference of the fixed-point sums.
    #[cfg(test)]
    pub(super) fn sum(&self, output: usize, sample: impl Fn(usize) -> f64) -> f64 {
        let (first, weights) = &self.0[output];
        weights.iter().enumerate().map(|(tap, weight)| weight * sample(first + tap)).sum()
    }
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

/// The cubic convolution kernel with a = -0.5.
fn catmull_rom(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Weights in fixed point.
#[derive(Debug)]
pub(super) struct Filter {
    /// First input sample and place in `weights` of each output's span.
    spans: Vec<(usize, std::ops::Range<usize>)>,
    weights: Vec<i16>,
    /// 1.0 is `1 << shift`.
    shift: u32,
    precision: Precision,
}

/// Width of the lanes that sums are made in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Precision {
    Narrow,
    Wide,
}

impl Filter {
    /// The same weights in fixed point, each span adding up to 1 again.
    pub(super) fn new(spans: &Spans) -> Self {
        let longest = spans.0.iter().map(|(_, weights)| weights.len()).max().unwrap_or(0);
        let largest = spans.0.iter().flat_map(|(_, weights)| weights).copied().fold(0.0, f64::max);
        // Where a weight is near 1 the picture grows, which is cheap; there exact halves are frequent and want exact
        // sums.
        let precision = if longest <= NARROW_TAPS && largest < 0.9 {
            Precision::Narrow
        } else {
            Precision::Wide
        };
        let most_bits = match precision {
            Precision::Narrow => 15,
            // Sums of 255 stay below 2^31.
            Precision::Wide => 22,
        };
        // A weight at a picture's edge may lie above 1, none reaches 2.
        let fits = |shift: &u32| largest * f64::from(1 << shift) < 32767.0;
        let shift = (14..=most_bits).rfind(fits).unwrap_or(14);
        let mut filter = Self {
            spans: Vec::with_capacity(spans.0.len()),
            weights: Vec::new(),
            shift,
            precision,
        };
        for (first, weights) in &spans.0 {
            let begin = filter.weights.len();
            filter.spans.push((*first, begin..begin + weights.len()));
            filter.weights.extend(fixed_point(weights, shift));
        }
        filter
    }

    /// Number of output samples.
    pub(super) fn outputs(&self) -> usize {
        self.spans.len()
    }

    fn span(&self, output: usize) -> (usize, &[i16]) {
        let (first, range) = &self.spans[output];
        (*first, &self.weights[range.clone()])
    }

    /// Writes one output row; `samples` starts with input row 0.
    pub(super) fn sum_rows(&self, output: usize, samples: &[u8], stride: usize, result: &mut [u8]) {
        let (first, weights) = self.span(output);
        let rows = &samples[first * stride..];
        let (blocks, rest) = result.as_chunks_mut::<BLOCK>();
        let done = blocks.len() * BLOCK;
        for (at, block) in blocks.iter_mut().enumerate() {
            *block = self.sum(weights, |tap| lanes(rows, tap * stride + at * BLOCK));
        }
        for (at, sample) in rest.iter_mut().enumerate() {
            [*sample] = self.sum(weights, |tap| lanes(rows, tap * stride + done + at));
        }
    }

    /// Writes every output column; the input samples are `tile[offset]`, `tile[offset + step]`, ….
    pub(super) fn sum_columns(
        &self,
        tile: &[[u8; LANES]],
        step: usize,
        offset: usize,
        result: &mut [[u8; LANES]],
    ) {
        for (output, column) in result.iter_mut().enumerate().take(self.outputs()) {
            let (first, weights) = self.span(output);
            let columns = &tile[first * step + offset..];
            *column = self.sum(weights, |tap| &columns[tap * step]);
        }
    }

    #[inline(always)]
    fn sum<'a, const N: usize>(
        &self,
        weights: &[i16],
        lanes: impl Fn(usize) -> &'a [u8; N],
    ) -> [u8; N] {
        match self.precision {
            Precision::Narrow => sum_narrow(weights, self.shift, lanes),
            Precision::Wide => sum_wide(weights, self.shift, lanes),
        }
    }
}

/// Rounds weights so that they add up to `1 << shift`, as near as 16 bits allow.
fn fixed_point(weights: &[f64], shift: u32) -> impl Iterator<Item = i16> {
    let one = f64::from(1 << shift);
    let mut rounded: Vec<i32> =
        weights.iter().map(|weight| (weight * one).round() as i32).collect();
    let missing = (1 << shift) - rounded.iter().sum::<i32>();
    if let Some(largest) = rounded.iter_mut().max() {
        *largest += missing;
    }
    rounded.into_iter().map(|weight| i16::try_from(weight).unwrap_or(i16::MAX))
}

fn lanes<const N: usize>(samples: &[u8], at: usize) -> &[u8; N] {
    samples[at..].first_chunk().expect("the plan's spans end inside the planes it was made for")
}

fn lanes_mut<const N: usize>(samples: &mut [u8], at: usize) -> &mut [u8; N] {
    samples[at..].first_chunk_mut().expect("the plan's rows are as long as its filters say")
}

/// High halves of 16-bit products: half the instructions of [`sum_wide`] where only these can be had in one.
///
/// Samples are taken as -128 to 127 in the upper byte; put like that, and not as a plain shift, the compiler sees
/// that both factors have 16 bits.
#[inline(always)]
fn sum_narrow<'a, const N: usize>(
    weights: &[i16],
    shift: u32,
    lanes: impl Fn(usize) -> &'a [u8; N],
) -> [u8; N] {
    // Bits of a sum behind the point: -128 to 127 with a bicubic overshoot still fits.
    let fraction = shift - 8;
    // Each product loses half a unit on average.
    let bias = (weights.len() / 2) as i16 + (1 << (fraction - 1));
    let mut sums = [bias; N];
    for (tap, &weight) in weights.iter().enumerate() {
        for (sum, &sample) in sums.iter_mut().zip(lanes(tap)) {
            let centred = i16::from((sample ^ 0x80) as i8) << 8;
            let product = (i32::from(centred) * i32::from(weight)) >> 16;
            *sum = sum.wrapping_add(product as i16);
        }
    }
    sums.map(|sum| (sum >> fraction).clamp(-128, 127) as u8 ^ 0x80)
}

#[inline(always)]
fn sum_wide<'a, const N: usize>(
    weights: &[i16],
    shift: u32,
    lanes: impl Fn(usize) -> &'a [u8; N],
) -> [u8; N] {
    let mut sums = [1_i32 << (shift - 1); N];
    for (tap, &weight) in weights.iter().enumerate() {
        for (sum, &sample) in sums.iter_mut().zip(lanes(tap)) {
            *sum = sum.wrapping_add(i32::from(i16::from(sample)) * i32::from(weight));
        }
    }
    sums.map(|sum| (sum >> shift).clamp(0, 255) as u8)
}

/// Turns up to [`LANES`] rows on their side: `tile[x][row]`. Lanes without a row hold nothing of use.
pub(super) fn rows_to_tile(
    samples: &[u8],
    stride: usize,
    rows: usize,
    width: usize,
    tile: &mut [[u8; LANES]],
) {
    let mut block = [[0; LANES]; LANES];
    let (whole, rest) = tile[..width].as_chunks_mut::<LANES>();
    let left = whole.len() * LANES;
    for (part, columns) in whole.iter_mut().enumerate() {
        for (row, line) in block.iter_mut().enumerate().take(rows) {
            *line = *lanes(samples, row * stride + part * LANES);
        }
        *columns = transposed(&block);
    }
    for (row, line) in block.iter_mut().enumerate().take(rows) {
        let begin = row * stride + left;
        line[..rest.len()].copy_from_slice(&samples[begin..begin + rest.len()]);
    }
    rest.copy_from_slice(&transposed(&block)[..rest.len()]);
}

/// Turns a tile back into rows that are `width` samples wide and apart.
pub(super) fn tile_to_rows(tile: &[[u8; LANES]], rows: usize, width: usize, samples: &mut [u8]) {
    let mut block = [[0; LANES]; LANES];
    let (whole, rest) = tile[..width].as_chunks::<LANES>();
    let left = whole.len() * LANES;
    for (part, columns) in whole.iter().enumerate() {
        let lines = transposed(columns);
        for (row, line) in lines.iter().enumerate().take(rows) {
            let begin = row * width + part * LANES;
            *lanes_mut(samples, begin) = *line;
        }
    }
    block[..rest.len()].copy_from_slice(rest);
    for (row, line) in transposed(&block).iter().enumerate().take(rows) {
        let begin = row * width + left;
        samples[begin..begin + rest.len()].copy_from_slice(&line[..rest.len()]);
    }
}

/// Transposes by four perfect shuffles, each of which is a handful of vector unpacks.
fn transposed(block: &[[u8; LANES]; LANES]) -> [[u8; LANES]; LANES] {
    let shuffle = |from: &[[u8; LANES]; LANES]| {
        let mut to = [[0; LANES]; LANES];
        let (upper, lower) = from.as_flattened().split_at(LANES * LANES / 2);
        for ((pair, &a), &b) in
            to.as_flattened_mut().as_chunks_mut().0.iter_mut().zip(upper).zip(lower)
        {
            *pair = [a, b];
        }
        to
    };
    shuffle(&shuffle(&shuffle(&shuffle(block))))
}
