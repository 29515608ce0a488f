//! Multiplication of panels with AVX512-VNNI; its sums leave by `avx512_leave.rs`.
//!
//! Tiles are small where sums are short: the epilogue of one, mostly conversions, then runs beside the multiplications of the
//! next ones, which other ports do. Long sums take high tiles, which read their weights less often.

use std::arch::x86_64::*;

use crate::kernels::avx2::strips;
use crate::kernels::avx2_leave::opaque;
use crate::kernels::avx512_leave::{
    ANY, Constants, SIGNED, SUM, UNSIGNED, leave, leave_any, leave_sum,
};
use crate::kernels::walk::{Span, Way};
use crate::kernels::{BLOCK, Multiply};

/// Rows of the highest tile: 10 · 2 sums, 2 weights and 1 input of 32 registers. With 12 rows no register is left over, and the
/// compiler, which moves loads forward, put sums aside in some builds.
pub(super) const ROWS: usize = 10;
/// Blocks of the widest tile.
const WIDEST: usize = 4;
/// Rows of a tile of so many blocks: with 8 sums or 9, the latency of the multiplication is hidden.
const LOW: [usize; WIDEST + 1] = [1, 8, 4, 3, 2];
/// The same for a block and a half.
const NARROW_LOW: usize = 8;

/// Sums of so many products are short: a tile's epilogue costs as much as a tenth of them, and their weights stay in the first-level
/// cache.
const SHORT: usize = 512;

pub(super) fn multiply(call: &Multiply<'_>) {
    call.check::<u8>();
    // SAFETY: the table is handed out only after `is_available`; the call's reach was checked.
    unsafe { blocks(call) }
}

/// Calls [`by_size`] with how sums leave, whether channels are [narrow](tiles), and whether inputs are flipped, as constants.
macro_rules! by_kind {
    ($kind:expr, $arguments:tt) => {
        match $kind {
            (UNSIGNED, false, false) => by_size::<UNSIGNED, false, false> $arguments,
            (UNSIGNED, true, false) => by_size::<UNSIGNED, true, false> $arguments,
            (UNSIGNED, _, true) => by_size::<UNSIGNED, false, true> $arguments,
            (SIGNED, false, false) => by_size::<SIGNED, false, false> $arguments,
            (SIGNED, true, false) => by_size::<SIGNED, true, false> $arguments,
            (SIGNED, _, true) => by_size::<SIGNED, false, true> $arguments,
            (SUM, false, false) => by_size::<SUM, false, false> $arguments,
            (SUM, true, false) => by_size::<SUM, true, false> $arguments,
            (SUM, _, true) => by_size::<SUM, false, true> $arguments,
            (_, _, false) => by_height::<ANY, false, false> $arguments,
            (_, _, true) => by_height::<ANY, false, true> $arguments,
        }
    };
}

/// # Safety
/// The call has passed [`Multiply::check`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
unsafe fn blocks(call: &Multiply<'_>) {
    let constants = Constants::new(call.epilogue);
    let widest = match constants.leave {
        ANY => 1,
        _ if call.weights.depth <= SHORT => WIDEST,
        _ => 2,
    };
    let all = [Span { first: 0, rows: call.outputs.len() }];
    let Way { spans, starts, run, flips } = Way::new(call.walk.as_ref(), &all, call.weights.depth);
    assert!(run > 0 && run.is_multiple_of(4));
    let mut channel = call.channels.start;
    while channel < call.channels.end {
        let channels = (call.channels.end - channel).min(widest * BLOCK);
        let blocks = channels.div_ceil(BLOCK);
        let is_narrow = blocks * BLOCK - channels >= BLOCK / 2;
        let highest = match (widest, blocks, is_narrow) {
            (WIDEST, 2, true) => NARROW_LOW,
            (WIDEST, _, _) | (_, 1, _) => LOW[blocks],
            _ => ROWS,
        };
        let mut part = Part {
            channel,
            keep: u64::MAX >> (64 - channels),
            starts,
            run,
            first: 0,
            row: 0,
            tiles: 0,
            before: 0,
        };
        let mut row = 0;
        for span in spans {
            for strip in strips(span.rows, highest) {
                part.first = span.first + strip.first * call.panel_stride;
                part.row = row + strip.first;
                part.tiles = strip.tiles;
                // SAFETY: the strip's rows exist; so many blocks start at a channel that exists.
                unsafe {
                    let (rows, part) = (strip.height, &part);
                    by_kind!(
                        (constants.leave, is_narrow, flips),
                        (call, &constants, part, rows, blocks)
                    );
                }
                part.before += strip.tiles;
            }
            row += span.rows;
        }
        channel += channels;
    }
}

/// Some channels of some tiles of one height, one below the other.
pub(super) struct Part<'a> {
    pub(super) channel: usize,
    /// A bit for each channel that is stored.
    pub(super) keep: u64,
    /// Where the runs of a row start, and their length.
    starts: &'a [usize],
    run: usize,
    /// The first row: in the panel, and in the outputs.
    first: usize,
    pub(super) row: usize,
    tiles: usize,
    /// Tiles of these channels that have been done.
    before: usize,
}

/// Calls [`tiles`] with blocks and rows as constants.
macro_rules! sizes {
    ($size:expr, $arguments:tt, $(($blocks:literal, [$($rows:literal),*])),*) => {
        match $size {
            // SAFETY: the caller's.
            $($(($blocks, $rows) => unsafe { tiles::<$rows, $blocks, LEAVE, NARROW, FLIP> $arguments },)*)*
            // A strip without tiles.
            _ => {}
        }
    };
}

/// # Safety
/// As for [`tiles`], for tiles of so many rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
unsafe fn by_size<const LEAVE: u8, const NARROW: bool, const FLIP: bool>(
    call: &Multiply<'_>,
    constants: &Constants,
    part: &Part<'_>,
    rows: usize,
    blocks: usize,
) {
    sizes!(
        (blocks, rows),
        (call, constants, part),
        (1, [8, 7, 6, 5, 4, 3, 2, 1]),
        (2, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]),
        (3, [3, 2, 1]),
        (4, [2, 1])
    );
}

/// The same for tiles of one block.
///
/// # Safety
/// As for [`tiles`], for tiles of so many rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
unsafe fn by_height<const LEAVE: u8, const NARROW: bool, const FLIP: bool>(
    call: &Multiply<'_>,
    constants: &Constants,
    part: &Part<'_>,
    rows: usize,
    blocks: usize,
) {
    sizes!((blocks, rows), (call, constants, part), (1, [8, 7, 6, 5, 4, 3, 2, 1]));
}

/// Tiles of `ROWS` panel rows times `BLOCKS` · 16 channels, of which the last 8 are missing if they are `NARROW`. Inputs
/// that `FLIP` are s8.
///
/// # Safety
/// The call has passed [`Multiply::check`]; the part's tiles are `ROWS` high and exist; so many blocks start at its channel; the
/// constants are of the call's epilogue, and `LEAVE` is theirs.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
unsafe fn tiles<
    const ROWS: usize,
    const BLOCKS: usize,
    const LEAVE: u8,
    const NARROW: bool,
    const FLIP: bool,
>(
    call: &Multiply<'_>,
    constants: &Constants,
    part: &Part<'_>,
) {
    let depth = call.weights.depth;
    let channel = part.channel;
    // SAFETY: check() gave the rows of every span `run` bytes from each start on, whole blocks of weights and bias, and outputs
    // and other operands their reach.
    unsafe {
        let bias = call.epilogue.bias.as_ptr().add(channel);
        let bias: [__m512i; BLOCKS] =
            std::array::from_fn(|block| _mm512_loadu_si512(bias.add(BLOCK * block).cast()));
        let weights = call.weights.values.bytes().as_ptr().add(channel * depth);
        let weights: [*const u8; BLOCKS] =
            std::array::from_fn(|block| weights.add(block * BLOCK * depth));
        // Three rows to an address, and the rest by a stride: there are not enough registers for an address each.
        let stride = opaque(std::ptr::without_provenance::<u8>(call.panel_stride)).addr();
        let panel = call.panel.as_ptr().cast::<u8>().wrapping_add(part.first);
        for tile in 0..part.tiles {
            let row = part.row + tile * ROWS;
            let panel = panel.add(tile * ROWS * call.panel_stride);
            let mut sums = [bias; ROWS];
            // The first tiles ask for the weights that come next, a block each.
            let before = part.before + tile;
            let rows = Rows { panel, stride, weights, starts: part.starts, run: part.run };
            let next = match before < BLOCKS {
                true => (BLOCKS + before) * BLOCK * depth,
                false => 0,
            };
            rows.add::<ROWS, NARROW, FLIP>(&mut sums, weights[0].wrapping_add(next));
            match LEAVE {
                ANY => {
                    for (nth, sums) in sums.iter().enumerate() {
                        leave_any(call, sums, row + nth, part);
                    }
                }
                SUM => leave_sum::<ROWS, BLOCKS>(call, constants, &sums, row, part),
                _ => leave::<ROWS, BLOCKS, LEAVE>(call, constants, &sums, row, part),
            }
        }
    }
}

/// What a tile multiplies.
struct Rows<'a, const BLOCKS: usize> {
    panel: *const u8,
    stride: usize,
    weights: [*const u8; BLOCKS],
    starts: &'a [usize],
    run: usize,
}

impl<const BLOCKS: usize> Rows<'_, BLOCKS> {
    /// Adds all products to the sums of `ROWS` rows, and asks for as many bytes as a block has weights, from `next` on: more at
    /// once would hold up what is read.
    ///
    /// # Safety
    /// As for [`tiles`]; panel and weights are a tile's.
    #[inline(always)]
    unsafe fn add<const ROWS: usize, const NARROW: bool, const FLIP: bool>(
        &self,
        sums: &mut [[__m512i; BLOCKS]; ROWS],
        next: *const u8,
    ) {
        let mut at = 0;
        for start in self.starts {
            // SAFETY: by contract; asking for what is not there does nothing.
            unsafe {
                let panel = self.panel.add(*start);
                let mut starts: [*const u8; 4] = std::array::from_fn(|three| {
                    opaque(panel.wrapping_add(3 * three * self.stride))
                });
                let end = at + self.run;
                loop {
                    _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(at * BLOCK).cast());
                    let block: [__m512i; BLOCKS] = std::array::from_fn(|block| {
                        _mm512_load_si512(self.weights[block].add(at * BLOCK).cast())
                    });
                    for row in 0..ROWS {
                        let inputs = starts[row / 3].wrapping_add(row % 3 * self.stride);
                        let mut inputs = _mm512_set1_epi32(inputs.cast::<i32>().read_unaligned());
                        if FLIP {
                            inputs = _mm512_xor_si512(inputs, _mm512_set1_epi8(i8::MIN));
                        }
                        for nth in 0..BLOCKS {
                            let sum = &mut sums[row][nth];
                            *sum = match NARROW && nth + 1 == BLOCKS {
                                false => _mm512_dpbusd_epi32(*sum, inputs, block[nth]),
                                true => half(*sum, inputs, block[nth]),
                            };
                        }
                    }
                    for start in &mut starts[..ROWS.div_ceil(3)] {
                        *start = start.wrapping_add(4);
                    }
                    at += 4;
                    if at == end {
                        break;
                    }
                }
            }
        }
    }
}

/// The products of 8 channels: half the work of 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
fn half(sum: __m512i, inputs: __m512i, weights: __m512i) -> __m512i {
    let [sum, inputs, weights] = [sum, inputs, weights].map(|value| _mm512_castsi512_si256(value));
    _mm512_zextsi256_si512(_mm256_dpbusd_epi32(sum, inputs, weights))
}
