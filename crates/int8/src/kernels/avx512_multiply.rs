//! Multiplication of panels with AVX512-VNNI, and how its sums leave.
//!
//! Tiles are small where sums are short: the epilogue of one, mostly conversions, then runs beside the multiplications of the
//! next ones, which other ports do. Long sums take high tiles, which read their weights less often.

use std::arch::x86_64::*;

use crate::kernels::avx2::strips;
use crate::kernels::avx2_epilogue::{is_whole, keeps_limits};
use crate::kernels::avx2_leave::opaque;
use crate::kernels::walk::{Span, Way};
use crate::kernels::{BLOCK, Epilogue, Multiply, Role, Sum};
use crate::tensor::ElementType;

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

/// Sums without a residual one, whose products fit, to u8.
const UNSIGNED: u8 = 0;
/// The same to s8.
const SIGNED: u8 = 1;
/// With a residual sum.
const SUM: u8 = 2;
/// Whose products may not fit i32.
const ANY: u8 = 3;

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
struct Part<'a> {
    channel: usize,
    /// A bit for each channel that is stored.
    keep: u64,
    /// Where the runs of a row start, and their length.
    starts: &'a [usize],
    run: usize,
    /// The first row: in the panel, and in the outputs.
    first: usize,
    row: usize,
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
/// The call has passed [`Multiply::check`]; the part's tiles are `ROWS` high and exist; so many blocks start at its channel; the constants are of the call's epilogue, and `LEAVE` is theirs.
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

/// The constants of an epilogue.
struct Constants {
    leave: u8,
    /// Whether the limits are not those of the stored type.
    limits: bool,
    joint: Joint,
}

/// The constants of a residual sum.
#[derive(Default)]
struct Joint {
    /// The convolution's own limits, less its zero point.
    low: f32,
    high: f32,
    /// [`ROUNDING`] less the zero point.
    rounded: f32,
    /// What own values and the others are multiplied by.
    own: f32,
    other: f32,
    own_is_first: bool,
    other_is_signed: bool,
}

/// Added to a number below 2²², rounds it to a whole one, half to even; to be subtracted again.
const ROUNDING: f32 = 12_582_912.0;

impl Constants {
    fn new(epilogue: &Epilogue) -> Self {
        let leave = match epilogue {
            Epilogue { sum: Some(_), .. } => SUM,
            epilogue if !epilogue.is_plain() => ANY,
            Epilogue { low: ..0, .. } => SIGNED,
            _ => UNSIGNED,
        };
        match &epilogue.sum {
            None => {
                let limits = !is_whole(epilogue.low, epilogue.high);
                Self { leave, limits, joint: Joint::default() }
            }
            Some(sum) => {
                Self { leave, limits: !keeps_limits(&sum.rule), joint: Joint::new(epilogue, sum) }
            }
        }
    }
}

impl Joint {
    fn new(epilogue: &Epilogue, Sum { rule, role }: &Sum) -> Self {
        let own_is_first = *role == Role::First;
        let (own, other) = (rule.ratio_a, rule.ratio_b);
        let (own, other) = if own_is_first { (own, other) } else { (other, own) };
        let element = if own_is_first { rule.element_b } else { rule.element_a };
        Self {
            low: (epilogue.low - epilogue.zero_point) as f32,
            high: (epilogue.high - epilogue.zero_point) as f32,
            rounded: ROUNDING - epilogue.zero_point as f32,
            own,
            other,
            own_is_first,
            other_is_signed: element == ElementType::S8,
        }
    }
}

/// Row and block of one of the four registers that become 64 bytes together: a row of 3 or 4 blocks, two of 2, four of 1. What is
/// missing stands in for itself.
const fn place<const ROWS: usize, const BLOCKS: usize>(quad: usize, nth: usize) -> (usize, usize) {
    let (row, block) = match BLOCKS {
        1 => (4 * quad + nth, 0),
        2 => (2 * quad + nth / 2, nth % 2),
        _ => (quad, nth),
    };
    (if row < ROWS { row } else { ROWS - 1 }, if block < BLOCKS { block } else { BLOCKS - 1 })
}

/// Calls a macro with row and block of each four registers of a tile's sums, and stores the 64 bytes that it makes of them. Written
/// out, because sums that a loop indexes stay in memory.
macro_rules! quads {
    ($call:expr, $row:expr, $part:expr, $bytes:ident) => {
        let arena = $call.arena.as_ptr().cast::<u8>().cast_mut();
        let outputs = $call.outputs.as_ptr().add($row);
        // Narrowing works within lanes of 128 bits.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let quads = match BLOCKS {
            1 => ROWS.div_ceil(4),
            2 => ROWS.div_ceil(2),
            _ => ROWS,
        };
        let to = |row: usize| arena.add(*outputs.add(row) + $part.channel);
        macro_rules! quad {
            ($quad:literal) => {
                if $quad < quads {
                    let [a, b, c, d] = [
                        const { place::<ROWS, BLOCKS>($quad, 0) },
                        const { place::<ROWS, BLOCKS>($quad, 1) },
                        const { place::<ROWS, BLOCKS>($quad, 2) },
                        const { place::<ROWS, BLOCKS>($quad, 3) },
                    ];
                    let bytes = _mm512_permutexvar_epi32(order, $bytes!(a, b, c, d));
                    let (low, high) =
                        (_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64::<1>(bytes));
                    match BLOCKS {
                        1 => {
                            let keep = $part.keep as u16;
                            _mm_mask_storeu_epi8(to(a.0).cast(), keep, _mm256_castsi256_si128(low));
                            if b.0 > a.0 {
                                let bytes = _mm256_extracti128_si256::<1>(low);
                                _mm_mask_storeu_epi8(to(b.0).cast(), keep, bytes);
                            }
                            if c.0 > b.0 {
                                let bytes = _mm256_castsi256_si128(high);
                                _mm_mask_storeu_epi8(to(c.0).cast(), keep, bytes);
                            }
                            if d.0 > c.0 {
                                let bytes = _mm256_extracti128_si256::<1>(high);
                                _mm_mask_storeu_epi8(to(d.0).cast(), keep, bytes);
                            }
                        }
                        2 => {
                            _mm256_mask_storeu_epi8(to(a.0).cast(), $part.keep as u32, low);
                            if c.0 > a.0 {
                                _mm256_mask_storeu_epi8(to(c.0).cast(), $part.keep as u32, high);
                            }
                        }
                        _ => _mm512_mask_storeu_epi8(to(a.0).cast(), $part.keep, bytes),
                    }
                }
            };
        }
        quad!(0);
        quad!(1);
        quad!(2);
        quad!(3);
        quad!(4);
    };
}

/// The epilogue without a residual sum, where every product fits i32. Compiled as a part of [`tiles`], so that sums stay in
/// registers.
///
/// # Safety
/// As for [`tiles`].
#[inline(always)]
unsafe fn leave<const ROWS: usize, const BLOCKS: usize, const LEAVE: u8>(
    call: &Multiply<'_>,
    constants: &Constants,
    sums: &[[__m512i; BLOCKS]; ROWS],
    row: usize,
    part: &Part<'_>,
) {
    // SAFETY: multipliers are padded to whole blocks; outputs hold the part's channels. The machine has the instructions.
    unsafe {
        let multipliers = call.epilogue.multipliers.as_ptr().add(part.channel);
        let multipliers: [__m512; BLOCKS] =
            std::array::from_fn(|block| _mm512_loadu_ps(multipliers.add(BLOCK * block)));
        let zero_point = _mm512_set1_epi16(call.epilogue.zero_point as i16);
        let low = _mm512_set1_epi8(call.epilogue.low as i8);
        let high = _mm512_set1_epi8(call.epilogue.high as i8);
        // Scaled and rounded. Every product fits, and what follows saturates.
        macro_rules! scaled {
            ($at:expr) => {{
                let value = _mm512_cvtepi32_ps(sums[$at.0][$at.1]);
                _mm512_cvtps_epi32(_mm512_mul_ps(value, multipliers[$at.1]))
            }};
        }
        macro_rules! bytes {
            ($a:expr, $b:expr, $c:expr, $d:expr) => {{
                let first = _mm512_packs_epi32(scaled!($a), scaled!($b));
                let second = _mm512_packs_epi32(scaled!($c), scaled!($d));
                let first = _mm512_adds_epi16(first, zero_point);
                let second = _mm512_adds_epi16(second, zero_point);
                let bytes = match LEAVE == SIGNED {
                    true => _mm512_packs_epi16(first, second),
                    false => _mm512_packus_epi16(first, second),
                };
                match (constants.limits, LEAVE == SIGNED) {
                    (false, _) => bytes,
                    (true, true) => _mm512_min_epi8(_mm512_max_epi8(bytes, low), high),
                    (true, false) => _mm512_min_epu8(_mm512_max_epu8(bytes, low), high),
                }
            }};
        }
        quads!(call, row, part, bytes);
    }
}

/// The same with a residual sum. Own values stay f32: they are whole numbers, so nothing is lost.
///
/// # Safety
/// As for [`tiles`]; there is a sum.
#[inline(always)]
unsafe fn leave_sum<const ROWS: usize, const BLOCKS: usize>(
    call: &Multiply<'_>,
    constants: &Constants,
    sums: &[[__m512i; BLOCKS]; ROWS],
    row: usize,
    part: &Part<'_>,
) {
    let (Some(sum), joint) = (&call.epilogue.sum, &constants.joint) else { return };
    // SAFETY: multipliers are padded to whole blocks; outputs hold the part's channels, other operands whole blocks. The machine
    // has the instructions.
    unsafe {
        let multipliers = call.epilogue.multipliers.as_ptr().add(part.channel);
        let multipliers: [__m512; BLOCKS] =
            std::array::from_fn(|block| _mm512_loadu_ps(multipliers.add(BLOCK * block)));
        let [low, high] = [joint.low, joint.high].map(|value| _mm512_set1_ps(value));
        let [own_ratio, other_ratio] = [joint.own, joint.other].map(|value| _mm512_set1_ps(value));
        let (rounding, rounded) = (_mm512_set1_ps(ROUNDING), _mm512_set1_ps(joint.rounded));
        let fixed = _mm512_set1_ps(sum.rule.fixed);
        let [least, most] = [sum.rule.low, sum.rule.high].map(|value| _mm512_set1_ps(value as f32));
        let (from, others) = (call.arena.as_ptr().cast::<u8>(), call.others.as_ptr().add(row));
        macro_rules! joined {
            ($at:expr) => {{
                let value = _mm512_cvtepi32_ps(sums[$at.0][$at.1]);
                let value = _mm512_mul_ps(value, multipliers[$at.1]);
                // Limited before it is rounded, which is the same for limits that are whole.
                let value = _mm512_min_ps(_mm512_max_ps(value, low), high);
                let own = _mm512_sub_ps(_mm512_add_ps(value, rounding), rounded);
                let other = from.add(*others.add($at.0) + part.channel + BLOCK * $at.1);
                let other = _mm_loadu_si128(other.cast());
                let other = _mm512_cvtepi32_ps(match joint.other_is_signed {
                    false => _mm512_cvtepu8_epi32(other),
                    true => _mm512_cvtepi8_epi32(other),
                });
                let sum = match joint.own_is_first {
                    true => {
                        let inner = _mm512_fmadd_ps(other, other_ratio, fixed);
                        _mm512_fmadd_ps(own, own_ratio, inner)
                    }
                    false => {
                        let inner = _mm512_fmadd_ps(own, own_ratio, fixed);
                        _mm512_fmadd_ps(other, other_ratio, inner)
                    }
                };
                _mm512_cvtps_epi32(match constants.limits {
                    true => _mm512_min_ps(_mm512_max_ps(sum, least), most),
                    false => sum,
                })
            }};
        }
        macro_rules! bytes {
            ($a:expr, $b:expr, $c:expr, $d:expr) => {{
                let first = _mm512_packs_epi32(joined!($a), joined!($b));
                let second = _mm512_packs_epi32(joined!($c), joined!($d));
                match sum.rule.low < 0 {
                    true => _mm512_packs_epi16(first, second),
                    false => _mm512_packus_epi16(first, second),
                }
            }};
        }
        quads!(call, row, part, bytes);
    }
}

/// A row's epilogue by the rule itself.
///
/// # Safety
/// As for [`tiles`]; `row` exists.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
unsafe fn leave_any(call: &Multiply<'_>, sums: &[__m512i], row: usize, part: &Part<'_>) {
    let channels = (call.channels.end - part.channel).min(sums.len() * BLOCK);
    for nth in 0..channels {
        let (channel, sums) = (part.channel + nth, sums.as_ptr().cast::<i32>());
        // The sum has the bias already.
        // SAFETY: there is a sum for each channel of the part's blocks.
        let acc = unsafe { sums.add(nth).read() }.wrapping_sub(call.epilogue.bias[channel]);
        let other = || call.arena[call.others[row] + channel].get();
        call.arena[call.outputs[row] + channel].set(call.epilogue.apply(acc, channel, other));
    }
}
