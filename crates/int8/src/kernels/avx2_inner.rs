//! Sums of products with AVX2 by Winograd's inner product (S. Winograd, A New Algorithm for Inner Product, 1968): half the
//! multiplications and more additions instead, which have four ports where multiplications have two.
//!
//! With x of a row and w of a channel, for each four depths:
//! x₀w₀ + x₁w₁ + x₂w₂ + x₃w₃ = (x₀ + w₂)(x₂ + w₀) + (x₁ + w₃)(x₃ + w₁) − (x₀x₂ + x₁x₃) − (w₀w₂ + w₁w₃).
//! The third term is the same for all channels ([`own`]), the last one for all rows: the bias holds it ([`super::cross`]). Sums may
//! wrap: what comes out is right modulo 2³².

use std::arch::x86_64::*;
use std::ops::Range;

use crate::kernels::aligned;
use crate::kernels::avx2::{Strip, strips};
use crate::kernels::avx2_leave::{ANY, Constants, Leave, SIGNED, SUM, UNSIGNED, by_height, leave};
use crate::kernels::{BLOCK, Multiply, PAIRS_STEP, PANEL_ROWS};

/// Rows of a tile: 4 · 2 sums, 4 weights, 2 inputs and 2 products fill 16 registers.
pub(crate) const ROWS: usize = 4;
/// In less depth the epilogues of more tiles cost more than is gained.
const LEAST_DEPTH: usize = 64;
/// For fewer channels the rows' own products cost too much.
const FEWEST_CHANNELS: usize = 32;

/// Depths at a time: their weights for a block and a tile's rows stay in the first-level cache.
const PIECE: usize = 512;

/// Sums of a block between two pieces of depth, for each row.
type Kept = [[[i32; 8]; 2]; PANEL_ROWS];

pub(crate) fn pays(depth: usize, channels: usize) -> bool {
    depth >= LEAST_DEPTH && channels >= FEWEST_CHANNELS
}

/// [`super::avx2`]'s multiplication, for weights that are [`crossed`](super::PackedWeights::crossed).
///
/// # Safety
/// The machine has AVX2 and FMA; the call has passed [`Multiply::check`].
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn blocks(call: &Multiply<'_>) {
    let count = call.outputs.len();
    let (depth, stride) = (call.weights.depth, call.panel_stride);
    assert!(stride >= depth.next_multiple_of(16) && count * stride * 2 <= call.panel.len());
    clear_rest(call);
    let mut all = [0; PANEL_ROWS];
    let own = &mut all[..count];
    // SAFETY: whole rows are readable, as just checked; steps of depth are whole.
    unsafe { self::own(call.panel.as_ptr().cast(), stride, depth, own) };
    let (strips, constants) = (strips(count, ROWS), Constants::new(call.epilogue));
    let pieces = depth.div_ceil(PIECE);
    let mut kept: Option<Kept> = if pieces > 1 { Some([[[0; 8]; 2]; PANEL_ROWS]) } else { None };
    let kept = kept.as_mut().map_or(std::ptr::null_mut(), |kept| kept.as_mut_ptr());
    let piece = |nth: usize| (nth * depth / pieces).next_multiple_of(2 * PAIRS_STEP).min(depth);
    for channel in call.channels.clone().step_by(BLOCK) {
        let leave = Leave::new(call, channel);
        for nth in 0..pieces {
            let depths = piece(nth)..piece(nth + 1);
            let next = if depths.end < depth { channel } else { channel + BLOCK };
            let next = next * depth + depths.end % depth * BLOCK;
            let next = call.weights.values.words().as_ptr().wrapping_add(next);
            let part = Part { channel, depths, own, next };
            for strip in &strips {
                // SAFETY: the strip's rows exist; the block starts at a channel that exists.
                unsafe {
                    let constants = &constants;
                    by_height!(
                        leave,
                        strip,
                        [4, 3, 2, 1],
                        tiles(call, constants, strip, &part, kept)
                    );
                }
            }
        }
    }
}

/// What tiles have in common.
struct Part<'a> {
    channel: usize,
    depths: Range<usize>,
    /// The products of each row's own values.
    own: &'a [i32],
    /// The weights after these.
    next: *const i16,
}

/// Weights for a tile to ask for while it multiplies by others: its part of what follows `next`, as many as it has itself. Each asks
/// for half of them, so that the first two tiles of a block have asked for the next one.
#[inline(always)]
pub(crate) fn ahead(tile: usize, next: *const i16, depth: usize) -> Option<*const i16> {
    (tile < 2).then(|| next.wrapping_add(tile * depth / 2 * BLOCK))
}

/// The products of each row's own values, as they enter its sums: one of `to` for each row.
///
/// # Safety
/// The machine has AVX2. Rows of `depth` values, `stride` apart, are readable up to the next multiple of 16; `depth` is a multiple
/// of [`PAIRS_STEP`].
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn own(rows: *const i16, stride: usize, depth: usize, to: &mut [i32]) {
    /// Where 16 values are kept: from 16 − n on, for n of them.
    static KEPT: [i16; 32] = {
        let mut kept = [0; 32];
        let mut at = 0;
        while at < 16 {
            kept[at] = -1;
            at += 1;
        }
        kept
    };
    let whole = depth / 16 * 16;
    let last = to.len().saturating_sub(1);
    for (nth, to) in to.chunks_mut(4).enumerate() {
        // SAFETY: rows up to the last one, by contract; 16 masks follow `16 − rest`.
        unsafe {
            let kept = _mm256_loadu_si256(KEPT.as_ptr().add(16 - depth % 16).cast());
            let sums: [__m256i; 4] = std::array::from_fn(|row| {
                let row = rows.add((4 * nth + row).min(last) * stride);
                let product = |values| _mm256_madd_epi16(values, _mm256_srli_epi64::<32>(values));
                let mut sum = _mm256_setzero_si256();
                for at in (0..whole).step_by(16) {
                    let values = _mm256_loadu_si256(row.add(at).cast());
                    sum = _mm256_add_epi32(sum, product(values));
                }
                if whole < depth {
                    let values = _mm256_loadu_si256(row.add(whole).cast());
                    sum = _mm256_add_epi32(sum, product(_mm256_and_si256(values, kept)));
                }
                sum
            });
            // The odd words of each are zero.
            let joined = |a, b| _mm256_or_si256(a, _mm256_slli_epi64::<32>(b));
            let (first, second) = (joined(sums[0], sums[1]), joined(sums[2], sums[3]));
            let sums = _mm256_add_epi32(
                _mm256_unpacklo_epi64(first, second),
                _mm256_unpackhi_epi64(first, second),
            );
            let sums =
                _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            let mut found = [0; 4];
            _mm_storeu_si128(found.as_mut_ptr().cast(), sums);
            to.copy_from_slice(&found[..to.len()]);
        }
    }
}

/// Values that fill up a row's depth meet weights of zero, but must not be so great that a sum of two leaves i16.
fn clear_rest(call: &Multiply<'_>) {
    let rest = call.weights.depth_given..call.weights.depth;
    if !rest.is_empty() {
        let panel = aligned::words(call.panel);
        for row in 0..call.outputs.len() {
            panel[row * call.panel_stride..][rest.clone()].iter().for_each(|value| value.set(0));
        }
    }
}

/// Tiles of `ROWS` panel rows times `HALVES` · 8 channels, over some depths: the first ones start with the bias, the last ones leave; in
/// between sums are kept.
///
/// # Safety
/// As for [`super::avx2`]'s; the part's `own` has one product for each row, and `kept` a place, unless the part has all depths.
#[target_feature(enable = "avx2,fma")]
unsafe fn tiles<const ROWS: usize, const HALVES: usize, const LEAVE: u8>(
    call: &Multiply<'_>,
    constants: &Constants,
    strip: &Strip,
    part: &Part<'_>,
    kept: *mut [[i32; 8]; 2],
) {
    let (depth, stride) = (call.weights.depth, call.panel_stride);
    let (channel, depths) = (part.channel, part.depths.clone());
    // SAFETY: check() gave panel rows · stride >= row · stride + depth values, whole blocks of weights and bias.
    unsafe {
        let bias = call.epilogue.bias.as_ptr().add(channel);
        let bias: [__m256i; HALVES] =
            std::array::from_fn(|half| _mm256_loadu_si256(bias.add(8 * half).cast()));
        let weights = call.weights.values.words().as_ptr().add(channel * depth);
        for nth in 0..strip.tiles {
            let ahead = ahead(strip.before + nth, part.next, depths.len());
            let row = strip.first + nth * ROWS;
            let kept = kept.wrapping_add(row);
            let mut sums: [[__m256i; HALVES]; ROWS] = if depths.start == 0 {
                let own = part.own.as_ptr().add(row);
                std::array::from_fn(|row| {
                    let own = _mm256_set1_epi32(own.add(row).read());
                    bias.map(|bias| _mm256_sub_epi32(bias, own))
                })
            } else {
                std::array::from_fn(|row| {
                    let kept = kept.add(row).cast::<__m256i>();
                    std::array::from_fn(|half| _mm256_loadu_si256(kept.add(half)))
                })
            };
            let rows = call.panel.as_ptr().cast::<i16>().add(row * stride);
            multiply(
                rows.add(depths.start),
                stride,
                weights.add(depths.start * BLOCK),
                depths.len(),
                ahead,
                &mut sums,
            );
            if depths.end == depth {
                leave::<ROWS, HALVES, LEAVE>(call, constants, &sums, row, channel);
                continue;
            }
            for (row, sums) in sums.iter().enumerate() {
                for (half, &sums) in sums.iter().enumerate() {
                    _mm256_storeu_si256(kept.add(row).cast::<__m256i>().add(half), sums);
                }
            }
        }
    }
}

/// Adds the products of `depth` depths of a tile to its sums, and asks for weights [`ahead`].
///
/// # Safety
/// The machine has AVX2. `ROWS` rows of as many inputs, `stride` apart, and a block's weights for them are there, the latter aligned to
/// 32 bytes; `depth` is a multiple of [`PAIRS_STEP`].
#[inline(always)]
pub(crate) unsafe fn multiply<const ROWS: usize, const HALVES: usize>(
    rows: *const i16,
    stride: usize,
    weights: *const i16,
    depth: usize,
    ahead: Option<*const i16>,
    sums: &mut [[__m256i; HALVES]; ROWS],
) {
    let mut at = 0;
    // SAFETY: by contract.
    unsafe {
        if let Ok(sums) = sums.as_flattened_mut().try_into() {
            let whole = depth / (2 * PAIRS_STEP) * (2 * PAIRS_STEP);
            if whole > 0 {
                match ahead {
                    None => pairs_of_steps::<false>(rows, stride, weights, whole, weights, sums),
                    Some(ahead) => {
                        pairs_of_steps::<true>(rows, stride, weights, whole, ahead, sums)
                    }
                }
                at = whole;
            }
        }
        while at < depth {
            step(rows.add(at), stride, weights.add(at * BLOCK), sums);
            at += PAIRS_STEP;
        }
    }
}

/// Some depths of a whole tile, 8 at a time. In assembly, because the compiler moves loads forward until it has to put sums aside
/// for want of registers.
///
/// # Safety
/// As for [`multiply`]; `depth` is a multiple of 8 and not zero.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn pairs_of_steps<const AHEAD: bool>(
    rows: *const i16,
    stride: usize,
    weights: *const i16,
    depth: usize,
    ahead: *const i16,
    sums: &mut [__m256i; 2 * ROWS],
) {
    /// A row at 4 depths, times 16 channels.
    macro_rules! row {
        ($row:literal, $first:literal, $second:literal, $at:literal) => {
            concat!(
                "vpbroadcastd {x}, [",
                $row,
                " + ",
                $at,
                "]\n",
                "vpbroadcastd {y}, [",
                $row,
                " + ",
                $at,
                " + 4]\n",
                "vpaddw {t}, {x}, {far0}\n",
                "vpaddw {u}, {y}, {near0}\n",
                "vpmaddwd {t}, {t}, {u}\n",
                "vpaddd {",
                $first,
                "}, {",
                $first,
                "}, {t}\n",
                "vpaddw {x}, {x}, {far1}\n",
                "vpaddw {y}, {y}, {near1}\n",
                "vpmaddwd {x}, {x}, {y}\n",
                "vpaddd {",
                $second,
                "}, {",
                $second,
                "}, {x}\n",
            )
        };
    }
    /// Four depths.
    macro_rules! step {
        ($at:literal, $weights:literal) => {
            concat!(
                "vmovdqa {near0}, [{weights} + ",
                $weights,
                "]\n",
                "vmovdqa {near1}, [{weights} + ",
                $weights,
                " + 32]\n",
                "vmovdqa {far0}, [{weights} + ",
                $weights,
                " + 64]\n",
                "vmovdqa {far1}, [{weights} + ",
                $weights,
                " + 96]\n",
                row!("{upper}", "a0", "b0", $at),
                row!("{upper} + {stride}", "a1", "b1", $at),
                row!("{lower}", "a2", "b2", $at),
                row!("{lower} + {stride}", "a3", "b3", $at),
            )
        };
    }
    /// The loop, with what comes first in it.
    macro_rules! run {
        ($first:expr) => {
            std::arch::asm!(
                "2:",
                $first,
                step!("0", "0"),
                step!("8", "128"),
                "add {weights}, 256",
                "add {upper}, 16",
                "add {lower}, 16",
                "cmp {weights}, {end}",
                "jb 2b",
                upper = inout(reg) rows => _, lower = inout(reg) rows.add(2 * stride) => _, stride = in(reg) 2 * stride,
                weights = inout(reg) weights => _, end = in(reg) weights.add(depth * BLOCK),
                ahead = inout(reg) ahead => _,
                a0 = inout(ymm_reg) sums[0], b0 = inout(ymm_reg) sums[1],
                a1 = inout(ymm_reg) sums[2], b1 = inout(ymm_reg) sums[3],
                a2 = inout(ymm_reg) sums[4], b2 = inout(ymm_reg) sums[5],
                a3 = inout(ymm_reg) sums[6], b3 = inout(ymm_reg) sums[7],
                near0 = out(ymm_reg) _, near1 = out(ymm_reg) _, far0 = out(ymm_reg) _, far1 = out(ymm_reg) _,
                x = out(ymm_reg) _, y = out(ymm_reg) _, t = out(ymm_reg) _, u = out(ymm_reg) _,
                options(readonly, nostack),
            )
        };
    }
    // SAFETY: by contract: at each row the depths are read, at the weights as many for a block; prefetching reads nothing.
    unsafe {
        if AHEAD {
            run!("prefetcht0 [{ahead}]\n prefetcht0 [{ahead} + 64]\n add {ahead}, 128\n");
        } else {
            run!("/* {ahead} */");
        }
    }
}

/// Four depths of a tile.
///
/// # Safety
/// As for [`multiply`], for 4 depths.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn step<const ROWS: usize, const HALVES: usize>(
    rows: *const i16,
    stride: usize,
    weights: *const i16,
    sums: &mut [[__m256i; HALVES]; ROWS],
) {
    // SAFETY: by contract.
    unsafe {
        let load = |at: usize| _mm256_load_si256(weights.add(at).cast());
        let near: [__m256i; HALVES] = std::array::from_fn(|half| load(16 * half));
        let far: [__m256i; HALVES] = std::array::from_fn(|half| load(2 * BLOCK + 16 * half));
        for (row, sums) in sums.iter_mut().enumerate() {
            let input = rows.add(row * stride).cast::<i32>();
            let [first, second] =
                [input, input.add(1)].map(|input| _mm256_set1_epi32(input.read_unaligned()));
            for half in 0..HALVES {
                let products = _mm256_madd_epi16(
                    _mm256_add_epi16(first, far[half]),
                    _mm256_add_epi16(second, near[half]),
                );
                sums[half] = _mm256_add_epi32(sums[half], products);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::kernels::aligned::Aligned;
    use crate::kernels::offsets::Offsets;
    use crate::kernels::{self, Epilogue, Kernels, PackedWeights};

    /// What scratch memory holds behind a row's depth is of another layer, and may be the greatest there is.
    #[test]
    fn rest_of_a_row_does_not_matter() {
        const ROWS: usize = 5;
        const CHANNELS: usize = 40;
        // The last two are taken in pieces.
        let depths = [65, 66, 67, 1027, 1601];
        for (depth, rest) in depths.into_iter().zip([i16::MAX, i16::MIN].into_iter().cycle()) {
            let weights: Vec<i8> =
                (0..CHANNELS * depth).map(|at| (at * 37 % 256) as u8 as i8).collect();
            let bytes = |name: &str| {
                let kernels = Kernels::by_name(name)?;
                let weights_packed = PackedWeights::new(&weights, CHANNELS, kernels);
                let padded = CHANNELS.next_multiple_of(BLOCK);
                let mut bias = vec![0; padded];
                if weights_packed.crossed {
                    for (bias, weights) in bias.iter_mut().zip(weights.chunks_exact(depth)) {
                        *bias = -kernels::cross(weights);
                    }
                }
                let epilogue = Epilogue {
                    bias,
                    multipliers: vec![0.001; padded],
                    zero_point: 100,
                    low: 0,
                    high: 255,
                    fits: true,
                    sum: None,
                };
                let stride = depth.next_multiple_of(16);
                let mut panel = Aligned::new(2 * ROWS * stride);
                for (row, values) in panel.words_mut().chunks_exact_mut(stride).enumerate() {
                    for (at, value) in values.iter_mut().enumerate() {
                        *value = if at < depth { (at * 91 + row) as i16 % 256 } else { rest };
                    }
                }
                let arena = vec![Cell::new(0); ROWS * padded];
                let outputs = Offsets::from((0..ROWS).map(|row| row * padded).collect::<Vec<_>>());
                (kernels.multiply)(&Multiply {
                    panel: panel.cells(),
                    panel_stride: stride,
                    walk: None,
                    weights: &weights_packed,
                    channels: 0..CHANNELS,
                    epilogue: &epilogue,
                    arena: &arena,
                    outputs: &outputs,
                    others: &Offsets::new(0),
                });
                Some((weights_packed.crossed, arena))
            };
            let Some((crossed, found)) = bytes("avx2") else { return };
            assert!(crossed, "this depth is to be crossed");
            assert_eq!(Some((false, found)), bytes("scalar"), "depth {depth}");
        }
    }
}
