//! x86 with AVX512-VNNI (Intel since Cascade Lake, AMD since Zen 4): `vpdpbusd` on 512 bits.
//!
//! Four registers of sums become 64 bytes at once: narrowing works within lanes of 128 bits, and one permutation puts
//! the 16 bytes of each register together again. Element-wise loops are AVX2's.

use std::arch::x86_64::*;

use crate::kernels::aligned::Aligned;
use crate::kernels::avx2;
use crate::kernels::avx2_epilogue::store;
use crate::kernels::avx2_leave::opaque;
use crate::kernels::gather::Gather;
use crate::kernels::lookup::Lookup;
use crate::kernels::vnni::{self, PACKING, Slice};
use crate::kernels::{
    BLOCK, Depthwise, Epilogue, Kernels, Multiply, Role, Run, Runs, Sum, avx2_bytes, portable,
};
use crate::tensor::ElementType;

/// Rows of a tile: 12 · 2 accumulators, 2 weights and 1 input leave 5 of 32 registers for the epilogue.
const ROWS: usize = 12;

pub(crate) static KERNELS: Kernels = Kernels {
    name: "avx512vnni",
    packing: PACKING,
    crosses: |_, _| false,
    tile_rows: ROWS,
    gather,
    multiply,
    winograd: None,
    depthwise,
    translate,
    ..avx2::TABLE
};

pub(crate) fn is_available() -> bool {
    avx2::is_available()
        && std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vl")
        && std::arch::is_x86_feature_detected!("avx512vnni")
}

fn gather(call: &Gather<'_>, panel: &mut Aligned) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn inner(call: &Gather<'_>, panel: &mut Aligned) {
        vnni::gather(call, panel);
    }
    // SAFETY: the table is handed out only after `is_available`.
    unsafe { inner(call, panel) }
}

fn multiply(call: &Multiply<'_>) {
    call.check::<u8>();
    // SAFETY: the table is handed out only after `is_available`; the call's reach was checked.
    unsafe { blocks(call) }
}

/// # Safety
/// The call has passed [`Multiply::check`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
unsafe fn blocks(call: &Multiply<'_>) {
    let channels = call.channels.end;
    for channel in call.channels.clone().step_by(2 * BLOCK) {
        let wide = channels - channel > BLOCK;
        // Tiles of nearly equal height: a last tile of one row would wait for its own sums.
        let count = call.outputs.len();
        let tiles = count.div_ceil(ROWS);
        let mut row = 0;
        for nth in 1..=tiles {
            let rows = nth * count / tiles - row;
            // SAFETY: rows row..row + rows exist; the block starts at a channel that exists, and so does the next one
            // where it is taken.
            unsafe {
                match (rows, wide) {
                    (12, true) => tile::<12, 2>(call, row, channel),
                    (11, true) => tile::<11, 2>(call, row, channel),
                    (10, true) => tile::<10, 2>(call, row, channel),
                    (9, true) => tile::<9, 2>(call, row, channel),
                    (8, true) => tile::<8, 2>(call, row, channel),
                    (7, true) => tile::<7, 2>(call, row, channel),
                    (6, true) => tile::<6, 2>(call, row, channel),
                    (5, true) => tile::<5, 2>(call, row, channel),
                    (4, true) => tile::<4, 2>(call, row, channel),
                    (3, true) => tile::<3, 2>(call, row, channel),
                    (2, true) => tile::<2, 2>(call, row, channel),
                    (_, true) => tile::<1, 2>(call, row, channel),
                    (12, false) => tile::<12, 1>(call, row, channel),
                    (11, false) => tile::<11, 1>(call, row, channel),
                    (10, false) => tile::<10, 1>(call, row, channel),
                    (9, false) => tile::<9, 1>(call, row, channel),
                    (8, false) => tile::<8, 1>(call, row, channel),
                    (7, false) => tile::<7, 1>(call, row, channel),
                    (6, false) => tile::<6, 1>(call, row, channel),
                    (5, false) => tile::<5, 1>(call, row, channel),
                    (4, false) => tile::<4, 1>(call, row, channel),
                    (3, false) => tile::<3, 1>(call, row, channel),
                    (2, false) => tile::<2, 1>(call, row, channel),
                    (_, false) => tile::<1, 1>(call, row, channel),
                }
            }
            row += rows;
        }
    }
}

/// `ROWS` panel rows times `BLOCKS` · 16 channels.
///
/// # Safety
/// The call has passed [`Multiply::check`]; the rows exist, and `channel` starts so many blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
unsafe fn tile<const ROWS: usize, const BLOCKS: usize>(
    call: &Multiply<'_>,
    row: usize,
    channel: usize,
) {
    let depth = call.weights.depth;
    // SAFETY: check() gave every row `depth` values from row · stride on, whole blocks of weights and bias.
    unsafe {
        let bias = call.epilogue.bias.as_ptr().add(channel);
        let bias: [__m512i; BLOCKS] =
            std::array::from_fn(|block| _mm512_loadu_si512(bias.add(BLOCK * block).cast()));
        let mut sums = [bias; ROWS];
        let weights = call.weights.values.bytes().as_ptr().add(channel * depth);
        let weights: [*const u8; BLOCKS] =
            std::array::from_fn(|block| weights.add(block * BLOCK * depth));
        // Three rows to an address, and the rest by a stride: there are not enough registers for an address each.
        let stride = opaque(std::ptr::without_provenance::<u8>(call.panel_stride)).addr();
        let panel = call.panel.as_ptr().cast::<u8>().add(row * call.panel_stride);
        let mut starts: [*const u8; 4] =
            std::array::from_fn(|three| opaque(panel.wrapping_add(3 * three * stride)));
        for at in (0..depth).step_by(4) {
            let block: [__m512i; BLOCKS] = std::array::from_fn(|block| {
                _mm512_load_si512(weights[block].add(at * BLOCK).cast())
            });
            for row in 0..ROWS {
                let inputs = starts[row / 3].wrapping_add(row % 3 * stride).cast::<i32>();
                let inputs = _mm512_set1_epi32(inputs.read_unaligned());
                for block_nth in 0..BLOCKS {
                    sums[row][block_nth] =
                        _mm512_dpbusd_epi32(sums[row][block_nth], inputs, block[block_nth]);
                }
            }
            for start in &mut starts[..ROWS.div_ceil(3)] {
                *start = start.wrapping_add(4);
            }
        }
        if call.epilogue.is_plain() {
            finish::<ROWS, BLOCKS, true>(call, &sums, row, channel);
        } else {
            finish::<ROWS, BLOCKS, false>(call, &sums, row, channel);
        }
    }
}

/// The epilogue; `PLAIN` as [`Epilogue::is_plain`] says. Compiled as a part
/// of [`tile`], so that sums stay in registers.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn finish<const ROWS: usize, const BLOCKS: usize, const PLAIN: bool>(
    call: &Multiply<'_>,
    sums: &[[__m512i; BLOCKS]; ROWS],
    row: usize,
    channel: usize,
) {
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    let channels = call.channels.end - channel;
    // SAFETY: multipliers are padded to whole blocks; outputs hold `channels` more bytes, the other operands whole
    // blocks. The machine has the instructions.
    unsafe {
        let requantise = Requantise::new(call.epilogue);
        let multipliers = call.epilogue.multipliers.as_ptr().add(channel);
        let multipliers =
            [_mm512_loadu_ps(multipliers), _mm512_loadu_ps(multipliers.add(BLOCK * (BLOCKS - 1)))];
        let outputs = call.outputs.as_ptr().add(row);
        let others = call.others.as_ptr().wrapping_add(row);
        let plus = match &call.epilogue.sum {
            Some(sum) if !PLAIN => Some(Plus::new(sum)),
            _ => None,
        };
        // Registers of sums, row by row, four at a time; beyond the last row the last one again. Written out, because
        // sums that a loop indexes stay in memory.
        macro_rules! value {
            ($nth:expr) => {{
                let (row, block) = (($nth).min(ROWS * BLOCKS - 1) / BLOCKS, $nth % BLOCKS);
                let value = requantise.scale::<PLAIN>(sums[row][block], multipliers[block]);
                match &plus {
                    Some(plus) => {
                        let other = arena.add(*others.add(row) + channel + BLOCK * block);
                        plus.apply(requantise.limit(value), other)
                    }
                    None => value,
                }
            }};
        }
        macro_rules! place {
            ($nth:expr) => {
                arena.add(*outputs.add(($nth).min(ROWS * BLOCKS - 1) / BLOCKS) + channel)
            };
        }
        macro_rules! four {
            ($($first:literal),*) => { $(if $first < ROWS * BLOCKS {
                let values =
                    [value!($first), value!($first + 1), value!($first + 2), value!($first + 3)];
                let bytes = match plus.is_some() {
                    true => requantise.narrow(values),
                    false => requantise.bytes(values),
                };
                let rows =
                    [place!($first), place!($first + 1), place!($first + 2), place!($first + 3)];
                let count = (ROWS * BLOCKS - $first).min(4);
                match channels >= BLOCK * BLOCKS {
                    true => store_whole::<BLOCKS>(rows, bytes, count),
                    false => store_parts::<BLOCKS>(rows, bytes, count, channels),
                }
            })* };
        }
        four!(0, 4, 8, 12, 16, 20);
    }
}

/// Stores the first `count` of 4 · 16 bytes, `BLOCKS` of them to a row.
///
/// # Safety
/// `BLOCKS` · 16 bytes are writable at each row that is written.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
unsafe fn store_whole<const BLOCKS: usize>(rows: [*mut u8; 4], bytes: __m512i, count: usize) {
    let (low, high) = (_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64::<1>(bytes));
    // SAFETY: by contract.
    unsafe {
        if BLOCKS == 2 {
            _mm256_storeu_si256(rows[0].cast(), low);
            if count > 2 {
                _mm256_storeu_si256(rows[2].cast(), high);
            }
            return;
        }
        _mm_storeu_si128(rows[0].cast(), _mm256_castsi256_si128(low));
        if count > 1 {
            _mm_storeu_si128(rows[1].cast(), _mm256_extracti128_si256::<1>(low));
        }
        if count > 2 {
            _mm_storeu_si128(rows[2].cast(), _mm256_castsi256_si128(high));
        }
        if count > 3 {
            _mm_storeu_si128(rows[3].cast(), _mm256_extracti128_si256::<1>(high));
        }
    }
}

/// The same where a row has room for `channels` bytes only, more than the blocks before its last one.
///
/// # Safety
/// `channels` bytes are writable at each row that is written.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
unsafe fn store_parts<const BLOCKS: usize>(
    rows: [*mut u8; 4],
    bytes: __m512i,
    count: usize,
    channels: usize,
) {
    let parts = [
        _mm512_castsi512_si128(bytes),
        _mm512_extracti32x4_epi32::<1>(bytes),
        _mm512_extracti32x4_epi32::<2>(bytes),
        _mm512_extracti32x4_epi32::<3>(bytes),
    ];
    for (nth, part) in parts.into_iter().enumerate().take(count) {
        let first = nth % BLOCKS * BLOCK;
        // SAFETY: by contract.
        unsafe { store(rows[nth].add(first), part, (channels - first).min(BLOCK)) };
    }
}

/// The constants of an epilogue in registers.
struct Requantise {
    /// Whether results are s8.
    is_signed: bool,
    /// The epilogue's limits and zero point, as i32.
    low: __m512i,
    high: __m512i,
    zero_point: __m512i,
    /// The limits as stored bytes, and the zero point as i16.
    low_byte: __m512i,
    high_byte: __m512i,
    zero_word: __m512i,
    order: __m512i,
}

impl Requantise {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
    fn new(epilogue: &Epilogue) -> Self {
        let low = epilogue.sum.as_ref().map_or(epilogue.low, |sum| sum.rule.low);
        Self {
            is_signed: low < 0,
            low: _mm512_set1_epi32(epilogue.low),
            high: _mm512_set1_epi32(epilogue.high),
            zero_point: _mm512_set1_epi32(epilogue.zero_point),
            low_byte: _mm512_set1_epi8(epilogue.low as i8),
            high_byte: _mm512_set1_epi8(epilogue.high as i8),
            zero_word: _mm512_set1_epi16(epilogue.zero_point as i16),
            order: _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
        }
    }

    /// Accumulators times multipliers, rounded. Above the range of i32 the conversion would give its least value, so
    /// products that do not `FIT` are limited.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
    fn scale<const FIT: bool>(&self, acc: __m512i, multipliers: __m512) -> __m512i {
        let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), multipliers);
        if FIT {
            return _mm512_cvtps_epi32(scaled);
        }
        _mm512_cvtps_epi32(_mm512_min_ps(scaled, _mm512_set1_ps(65_536.0)))
    }

    /// Scaled values with the zero point, within the limits. The least i32 stays far below them when added to.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
    fn limit(&self, scaled: __m512i) -> __m512i {
        let scaled = _mm512_max_epi32(scaled, _mm512_set1_epi32(-65_536));
        let value = _mm512_add_epi32(scaled, self.zero_point);
        _mm512_min_epi32(_mm512_max_epi32(value, self.low), self.high)
    }

    /// Scaled values with the zero point, within the limits, as bytes: 16 of each register, in order. Saturation on
    /// the way only meets values that the limits cut anyway.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
    fn bytes(&self, [a, b, c, d]: [__m512i; 4]) -> __m512i {
        let first = _mm512_adds_epi16(_mm512_packs_epi32(a, b), self.zero_word);
        let second = _mm512_adds_epi16(_mm512_packs_epi32(c, d), self.zero_word);
        let bytes = if self.is_signed {
            let bytes = _mm512_packs_epi16(first, second);
            _mm512_min_epi8(_mm512_max_epi8(bytes, self.low_byte), self.high_byte)
        } else {
            let bytes = _mm512_packus_epi16(first, second);
            _mm512_min_epu8(_mm512_max_epu8(bytes, self.low_byte), self.high_byte)
        };
        _mm512_permutexvar_epi32(self.order, bytes)
    }

    /// Final values as bytes, in the same order.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
    fn narrow(&self, [a, b, c, d]: [__m512i; 4]) -> __m512i {
        let (first, second) = (_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
        let bytes = if self.is_signed {
            _mm512_packs_epi16(first, second)
        } else {
            _mm512_packus_epi16(first, second)
        };
        _mm512_permutexvar_epi32(self.order, bytes)
    }
}

/// The constants of a residual sum in registers.
struct Plus {
    /// Whether the convolution is the first operand.
    is_first: bool,
    /// Whether the other operand is s8.
    is_signed: bool,
    ratio_a: __m512,
    ratio_b: __m512,
    fixed: __m512,
    low: __m512,
    high: __m512,
}

impl Plus {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
    fn new(sum: &Sum) -> Self {
        let Sum { rule, role } = sum;
        let is_first = *role == Role::First;
        let element = if is_first { rule.element_b } else { rule.element_a };
        Self {
            is_first,
            is_signed: element == ElementType::S8,
            ratio_a: _mm512_set1_ps(rule.ratio_a),
            ratio_b: _mm512_set1_ps(rule.ratio_b),
            fixed: _mm512_set1_ps(rule.fixed),
            low: _mm512_set1_ps(rule.low as f32),
            high: _mm512_set1_ps(rule.high as f32),
        }
    }

    /// The sum of 16 requantised values with stored ones, within the limits.
    ///
    /// # Safety
    /// 16 bytes are readable at `other`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
    unsafe fn apply(&self, own: __m512i, other: *const u8) -> __m512i {
        // SAFETY: by contract.
        let bytes = unsafe { _mm_loadu_si128(other.cast()) };
        let other = match self.is_signed {
            false => _mm512_cvtepu8_epi32(bytes),
            true => _mm512_cvtepi8_epi32(bytes),
        };
        let (own, other) = (_mm512_cvtepi32_ps(own), _mm512_cvtepi32_ps(other));
        let (a, b) = if self.is_first { (own, other) } else { (other, own) };
        let value = _mm512_fmadd_ps(a, self.ratio_a, _mm512_fmadd_ps(b, self.ratio_b, self.fixed));
        _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(value, self.low), self.high))
    }
}

fn depthwise(call: &Depthwise<'_>, n: usize) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
    fn inner(call: &Depthwise<'_>, n: usize) {
        // SAFETY: compiled for, and run on, machines with AVX512-VNNI.
        if !unsafe { vnni::depthwise::<Sixteen>(call, n) } {
            portable::depthwise(call, n);
        }
    }
    // SAFETY: the table is handed out only after `is_available`.
    unsafe { inner(call, n) }
}

/// 16 channels in a register.
struct Sixteen;

impl Slice for Sixteen {
    type Vector = __m512i;
    type Finish = (Requantise, __m512);
    const CHANNELS: usize = 16;

    #[inline(always)]
    unsafe fn interleave(rows: [*const u8; 4]) -> __m512i {
        let [a, b, c, d] = rows;
        // SAFETY: by contract, 16 bytes are readable at each row.
        unsafe {
            let upper = _mm256_castsi128_si256(_mm_loadu_si128(a.cast()));
            let upper = _mm256_inserti128_si256::<1>(upper, _mm_loadu_si128(b.cast()));
            let lower = _mm256_castsi128_si256(_mm_loadu_si128(c.cast()));
            let lower = _mm256_inserti128_si256::<1>(lower, _mm_loadu_si128(d.cast()));
            let all = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(upper), lower);
            // Four bytes of each row to a lane, then the rows of each channel side by side.
            let lanes = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let turn = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_shuffle_epi8(_mm512_permutexvar_epi32(lanes, all), _mm512_broadcast_i32x4(turn))
        }
    }

    #[inline(always)]
    unsafe fn flip(vector: __m512i, byte: u8) -> __m512i {
        // SAFETY: by contract.
        unsafe { _mm512_xor_si512(vector, _mm512_set1_epi8(byte as i8)) }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m512i, inputs: __m512i, weights: __m512i) -> __m512i {
        // SAFETY: by contract.
        unsafe { _mm512_dpbusd_epi32(sums, inputs, weights) }
    }

    #[inline(always)]
    unsafe fn load(values: *const i32) -> __m512i {
        // SAFETY: by contract.
        unsafe { _mm512_loadu_si512(values.cast()) }
    }

    #[inline(always)]
    unsafe fn finish(call: &Depthwise<'_>, channel: usize) -> Self::Finish {
        // SAFETY: by contract.
        unsafe {
            let multipliers = _mm512_loadu_ps(call.epilogue.multipliers.as_ptr().add(channel));
            (Requantise::new(call.epilogue), multipliers)
        }
    }

    #[inline(always)]
    unsafe fn store<const ROWS: usize>(
        (requantise, multipliers): &Self::Finish,
        sums: [__m512i; ROWS],
        to: [*mut u8; ROWS],
        length: usize,
    ) {
        // SAFETY: by contract.
        unsafe {
            let first = requantise.scale::<false>(sums[0], *multipliers);
            let last = requantise.scale::<false>(sums[ROWS - 1], *multipliers);
            let bytes = _mm512_castsi512_si256(requantise.bytes([first, last, first, last]));
            store(to[0], _mm256_castsi256_si128(bytes), length);
            if ROWS == 2 {
                store(to[ROWS - 1], _mm256_extracti128_si256::<1>(bytes), length);
            }
        }
    }
}

/// Tables: 128 entries a permutation where the machine has AVX512-VBMI, otherwise AVX2's shuffles.
fn translate(table: &Lookup, x: Run<'_>, y: Run<'_>, runs: &Runs) {
    if !std::arch::is_x86_feature_detected!("avx512vbmi") {
        return avx2_bytes::translate(table, x, y, runs);
    }
    runs.check(x, y);
    // SAFETY: the machine has the instructions; the runs were checked.
    unsafe { each(table, x.as_ptr().cast(), y.as_ptr().cast::<u8>().cast_mut(), runs) };
}

/// # Safety
/// The runs lie in what is readable at `x` and writable at `y`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi")]
unsafe fn each(table: &Lookup, x: *const u8, y: *mut u8, runs: &Runs) {
    // SAFETY: the table has 256 bytes.
    let quarters: [__m512i; 4] = std::array::from_fn(|quarter| unsafe {
        _mm512_loadu_si512(table.bytes.as_ptr().add(64 * quarter).cast())
    });
    let [a, b, c, d] = quarters;
    for run in 0..runs.count {
        for at in (0..runs.length).step_by(64) {
            let mask = u64::MAX >> (64 - (runs.length - at).min(64));
            // SAFETY: the masked bytes lie in the run.
            unsafe {
                let bytes = _mm512_maskz_loadu_epi8(mask, x.add(run * runs.steps[0] + at).cast());
                let low = _mm512_permutex2var_epi8(a, bytes, b);
                let high = _mm512_permutex2var_epi8(c, bytes, d);
                let bytes = _mm512_mask_blend_epi8(_mm512_movepi8_mask(bytes), low, high);
                let to = y.add(run * runs.steps[1] + at);
                if mask == u64::MAX {
                    _mm512_storeu_si512(to.cast(), bytes);
                } else {
                    _mm512_mask_storeu_epi8(to.cast(), mask, bytes);
                }
            }
        }
    }
}
