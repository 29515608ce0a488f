//! x86 with AVX2 and FMA. Exact: `vpmaddubsw` saturates when 255 · 127 · 2 exceeds i16, so both operands are widened
//! to i16 beforehand (weights when packed, inputs when gathered) and `vpmaddwd` sums pairs into i32 without loss.
//!
//! One `vpmaddwd` is 16 multiplications, and for deep sums 32 (`avx2_inner.rs`), as many as the inexact pair `vpmaddubsw` +
//! `vpmaddwd`: exactness costs nothing at the peak.

use std::arch::x86_64::*;

use crate::kernels::aligned::Aligned;
use crate::kernels::gather::{Fetch, Gather};
use crate::kernels::{
    BLOCK, Epilogue, Kernels, Multiply, PAIRS_STEP, Packing, Role, Run, Sum, avx2_bytes,
    avx2_depthwise, avx2_inner, avx2_winograd, portable,
};
use crate::numerics::{AddRule, MulRule};
use crate::resize::Corners;
use crate::tensor::{ElementType, Quantisation};

/// Rows of a tile: 6 · 2 accumulators, 2 weights and 1 input fill 15 of 16 registers.
const ROWS: usize = 6;

pub(crate) static KERNELS: Kernels = TABLE;

/// The table, for others to take parts from.
pub(crate) const TABLE: Kernels = Kernels {
    name: "avx2",
    packing: Packing::Pairs,
    crosses: avx2_inner::pays,
    tile_rows: ROWS,
    gather,
    multiply,
    winograd: Some(avx2_winograd::convolve),
    takes_depthwise: avx2_depthwise::takes,
    depthwise: avx2_depthwise::image,
    add,
    mul,
    accumulate,
    maximum,
    quantise,
    interleave: avx2_bytes::interleave,
    translate: avx2_bytes::translate,
    accumulate_reals,
    average,
    blend,
    blend_reals,
};

pub(crate) fn is_available() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

/// A safe function of the table that runs a portable loop compiled for AVX2 and FMA.
macro_rules! with_features {
    ($name:ident($($argument:ident: $type:ty),*)) => {
        fn $name($($argument: $type),*) {
            #[target_feature(enable = "avx2,fma")]
            fn inner($($argument: $type),*) {
                portable::$name($($argument),*);
            }
            // SAFETY: the table is handed out only after `is_available`.
            unsafe { inner($($argument),*) }
        }
    };
}

with_features!(add(rule: &AddRule, a: Run<'_>, b: Run<'_>, y: Run<'_>, length: usize));
with_features!(mul(rule: &MulRule, a: Run<'_>, b: Run<'_>, y: Run<'_>, length: usize));
with_features!(accumulate(element: ElementType, x: Run<'_>, sums: &mut [i32]));
with_features!(maximum(element: ElementType, y: Run<'_>, x: Run<'_>, length: usize));
with_features!(quantise(to: &Quantisation, values: &[f32], bytes: &mut [u8]));
with_features!(accumulate_reals(from: &Quantisation, x: Run<'_>, sums: &mut [f32]));
with_features!(average(to: &Quantisation, sums: &[f32], count: usize, y: Run<'_>));
with_features!(blend(element: ElementType, by: &Corners, x: [Run<'_>; 4], y: Run<'_>, length: usize));
with_features!(blend_reals(between: [&Quantisation; 2], by: &Corners, x: [Run<'_>; 4], y: Run<'_>, length: usize));

struct Unsigned;
struct Signed;

impl Fetch for Unsigned {
    type Value = i16;
    const BLOCKS: bool = true;

    fn padding(zero_point: i16) -> i16 {
        zero_point
    }

    #[inline(always)]
    unsafe fn fetch(from: *const u8, to: *mut i16, length: usize) {
        for at in (0..length).step_by(16) {
            // SAFETY: at < length, so at + 16 < length + OVERRUN, within the contract of the trait.
            unsafe {
                let bytes = _mm_loadu_si128(from.add(at).cast());
                _mm256_storeu_si256(to.add(at).cast(), _mm256_cvtepu8_epi16(bytes));
            }
        }
    }
}

impl Fetch for Signed {
    type Value = i16;
    const BLOCKS: bool = true;

    fn padding(zero_point: i16) -> i16 {
        zero_point
    }

    #[inline(always)]
    unsafe fn fetch(from: *const u8, to: *mut i16, length: usize) {
        for at in (0..length).step_by(16) {
            // SAFETY: as above.
            unsafe {
                let bytes = _mm_loadu_si128(from.add(at).cast());
                _mm256_storeu_si256(to.add(at).cast(), _mm256_cvtepi8_epi16(bytes));
            }
        }
    }
}

fn gather(call: &Gather<'_>, panel: &mut Aligned) {
    #[target_feature(enable = "avx2,fma")]
    fn inner(call: &Gather<'_>, panel: &mut Aligned) {
        match call.element {
            ElementType::U8 => call.run::<Unsigned>(panel),
            ElementType::S8 => call.run::<Signed>(panel),
        }
    }
    // SAFETY: the table is handed out only after `is_available`.
    unsafe { inner(call, panel) }
}

fn multiply(call: &Multiply<'_>) {
    call.check::<i16>();
    // SAFETY: the table is handed out only after `is_available`; the call's reach was checked.
    unsafe {
        match (call.weights.crossed, call.epilogue.is_plain()) {
            (true, true) => avx2_inner::blocks::<true>(call),
            (true, false) => avx2_inner::blocks::<false>(call),
            (false, true) => blocks::<true>(call),
            (false, false) => blocks::<false>(call),
        }
    }
}

/// `PLAIN` as [`Epilogue::is_plain`] says.
///
/// # Safety
/// The call has passed [`Multiply::check`].
#[target_feature(enable = "avx2,fma")]
unsafe fn blocks<const PLAIN: bool>(call: &Multiply<'_>) {
    let channels = call.channels.end;
    // Blocks of 4 KiB and more are worth asking for.
    let fetches = call.weights.depth >= 128;
    for channel in call.channels.clone().step_by(BLOCK) {
        let wide = channels - channel > BLOCK / 2;
        // Tiles of nearly equal height: a last tile of one row would wait for its own sums.
        let count = call.outputs.len();
        let tiles = count.div_ceil(ROWS);
        let mut row = 0;
        for nth in 1..=tiles {
            let rows = nth * count / tiles - row;
            // SAFETY: rows row..row + rows exist; the block starts at a channel that exists.
            unsafe {
                match (rows, wide, nth == 1 && fetches && channel + BLOCK < channels) {
                    (6, true, true) => tile::<6, 2, true, PLAIN>(call, row, channel),
                    (5, true, true) => tile::<5, 2, true, PLAIN>(call, row, channel),
                    (6, true, _) => tile::<6, 2, false, PLAIN>(call, row, channel),
                    (5, true, _) => tile::<5, 2, false, PLAIN>(call, row, channel),
                    (4, true, _) => tile::<4, 2, false, PLAIN>(call, row, channel),
                    (3, true, _) => tile::<3, 2, false, PLAIN>(call, row, channel),
                    (2, true, _) => tile::<2, 2, false, PLAIN>(call, row, channel),
                    (_, true, _) => tile::<1, 2, false, PLAIN>(call, row, channel),
                    (6, false, _) => tile::<6, 1, false, PLAIN>(call, row, channel),
                    (5, false, _) => tile::<5, 1, false, PLAIN>(call, row, channel),
                    (4, false, _) => tile::<4, 1, false, PLAIN>(call, row, channel),
                    (3, false, _) => tile::<3, 1, false, PLAIN>(call, row, channel),
                    (2, false, _) => tile::<2, 1, false, PLAIN>(call, row, channel),
                    (_, false, _) => tile::<1, 1, false, PLAIN>(call, row, channel),
                }
            }
            row += rows;
        }
    }
}

/// `ROWS` panel rows times `HALVES` · 8 channels; the `FIRST` one of a block fetches weights ahead.
///
/// # Safety
/// The call has passed [`Multiply::check`]; the rows exist and `channel` starts a block.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const ROWS: usize, const HALVES: usize, const FIRST: bool, const PLAIN: bool>(
    call: &Multiply<'_>,
    row: usize,
    channel: usize,
) {
    let depth = call.weights.depth;
    // SAFETY: check() gave panel rows · stride >= row · stride + depth values, whole blocks of weights and bias.
    let sums = unsafe {
        let bias = call.epilogue.bias.as_ptr().add(channel);
        let bias: [__m256i; HALVES] =
            std::array::from_fn(|half| _mm256_loadu_si256(bias.add(8 * half).cast()));
        let mut sums = [bias; ROWS];
        let mut weights = call.weights.values.words().as_ptr().add(channel * depth);
        let panel = call.panel.as_ptr().cast::<i16>().add(row * call.panel_stride);
        let starts: [*const i16; ROWS] =
            std::array::from_fn(|row| opaque(panel.add(row * call.panel_stride)));
        for at in (0..depth).step_by(PAIRS_STEP) {
            if FIRST {
                prefetch(weights);
            }
            for pair in 0..PAIRS_STEP / 2 {
                let weights = weights.add(pair * 2 * BLOCK);
                let block: [__m256i; HALVES] =
                    std::array::from_fn(|half| _mm256_load_si256(weights.add(16 * half).cast()));
                for row in 0..ROWS {
                    let inputs = starts[row].add(at + 2 * pair).cast::<i32>();
                    let inputs = _mm256_set1_epi32(inputs.read_unaligned());
                    for half in 0..HALVES {
                        let products = _mm256_madd_epi16(inputs, block[half]);
                        sums[row][half] = _mm256_add_epi32(sums[row][half], products);
                    }
                }
            }
            weights = weights.add(PAIRS_STEP * BLOCK);
        }
        sums
    };
    // SAFETY: by contract.
    unsafe { leave::<ROWS, HALVES, PLAIN>(call, &sums, row, channel) }
}

/// The epilogue of a tile.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
pub(crate) unsafe fn leave<const ROWS: usize, const HALVES: usize, const PLAIN: bool>(
    call: &Multiply<'_>,
    sums: &[[__m256i; HALVES]; ROWS],
    row: usize,
    channel: usize,
) {
    // SAFETY: outputs and other operands were checked for whole blocks of channels.
    unsafe {
        if PLAIN && HALVES == 2 && call.channels.end - channel >= BLOCK {
            finish_plain::<ROWS, HALVES>(call, sums, row, channel);
        } else {
            finish::<ROWS, HALVES>(call, sums, row, channel);
        }
    }
}

/// Asks for the weights of a later step, which come from as far as main memory when they are used for the first time.
/// There must be later ones: the hint for a place beyond all memory costs more than it gives.
#[inline(always)]
pub(crate) fn prefetch(weights: *const i16) {
    /// Far enough for the third-level cache at full speed.
    const AHEAD: usize = 1024;
    for line in 0..PAIRS_STEP * BLOCK * 2 / 64 {
        // SAFETY: a hint that reads nothing, for any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(weights.wrapping_add(AHEAD + line * 32).cast()) };
    }
}

/// The same pointer, of unknown origin: the compiler would otherwise compute each row's address from the one before,
/// in a chain of additions as long as the multiplications take.
#[inline(always)]
pub(crate) fn opaque<T>(pointer: *const T) -> *const T {
    let mut address = pointer.addr();
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) address,
            options(pure, nomem, nostack, preserves_flags));
    }
    pointer.with_addr(address)
}

/// The epilogue of whole blocks without a residual sum. Compiled as a part of the tile, so that sums stay in registers.
///
/// # Safety
/// As for [`tile`]; the epilogue is plain, `HALVES` is 2 and there are 16 channels.
#[inline(always)]
pub(crate) unsafe fn finish_plain<const ROWS: usize, const HALVES: usize>(
    call: &Multiply<'_>,
    sums: &[[__m256i; HALVES]; ROWS],
    row: usize,
    channel: usize,
) {
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    let is_signed = call.epilogue.low < 0;
    // SAFETY: multipliers are padded to whole blocks; outputs hold 16 more bytes. The machine has the instructions.
    unsafe {
        let multipliers = call.epilogue.multipliers.as_ptr().add(channel);
        let multipliers = [_mm256_loadu_ps(multipliers), _mm256_loadu_ps(multipliers.add(8))];
        let zero_point = _mm256_set1_epi16(call.epilogue.zero_point as i16);
        let low = _mm256_set1_epi8(call.epilogue.low as i8);
        let high = _mm256_set1_epi8(call.epilogue.high as i8);
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let outputs = call.outputs.as_ptr().add(row);
        // Of 8 channels: scaled and rounded. Every product fits, and what follows saturates.
        macro_rules! scaled {
            ($row:expr, $half:literal) => {{
                let value = _mm256_cvtepi32_ps(sums[$row][$half % HALVES]);
                _mm256_cvtps_epi32(_mm256_mul_ps(value, multipliers[$half]))
            }};
        }
        macro_rules! words {
            ($row:expr) => {
                _mm256_adds_epi16(
                    _mm256_packs_epi32(scaled!($row, 0), scaled!($row, 1)),
                    zero_point,
                )
            };
        }
        // Two rows at once; a last odd one is its own partner.
        macro_rules! pairs {
            ($($first:literal),*) => { $(if $first < ROWS {
                let (upper, lower) = ($first % ROWS, ($first + 1).min(ROWS - 1));
                let words = [words!(upper), words!(lower)];
                let bytes = if is_signed {
                    let bytes = _mm256_packs_epi16(words[0], words[1]);
                    _mm256_min_epi8(_mm256_max_epi8(bytes, low), high)
                } else {
                    let bytes = _mm256_packus_epi16(words[0], words[1]);
                    _mm256_min_epu8(_mm256_max_epu8(bytes, low), high)
                };
                let bytes = _mm256_permutevar8x32_epi32(bytes, order);
                let to = arena.add(*outputs.add(upper) + channel);
                _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(bytes));
                if upper != lower {
                    let to = arena.add(*outputs.add(lower) + channel);
                    _mm_storeu_si128(to.cast(), _mm256_extracti128_si256::<1>(bytes));
                }
            })* };
        }
        pairs!(0, 2, 4);
    }
}

/// # Safety
/// As for [`tile`].
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn finish<const ROWS: usize, const HALVES: usize>(
    call: &Multiply<'_>,
    sums: &[[__m256i; HALVES]; ROWS],
    row: usize,
    channel: usize,
) {
    let requantise = Requantise::new(call.epilogue);
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    let channels = (call.channels.end - channel).min(8 * HALVES);
    // SAFETY: multipliers are padded to whole blocks; outputs hold `channels` more bytes, the other operands a whole
    // block.
    unsafe {
        let multipliers = call.epilogue.multipliers.as_ptr().add(channel);
        let multipliers: [__m256; HALVES] =
            std::array::from_fn(|half| _mm256_loadu_ps(multipliers.add(8 * half)));
        let outputs = call.outputs.as_ptr().add(row);
        let to = |row: usize| arena.add(*outputs.add(row) + channel);
        let mut words: [__m256i; ROWS] = std::array::from_fn(|row| {
            let value = |half: usize| scale(sums[row][half], multipliers[half]);
            requantise.words(value(0), value(HALVES - 1))
        });
        // One place that adds, for all rows: what is called from many is compiled as a function, and called.
        if let Some(plus) = call.epilogue.sum.as_ref().map(|sum| Plus::new(sum)) {
            let others = call.others.as_ptr().add(row);
            for (row, words) in words.iter_mut().enumerate() {
                *words = plus.words::<HALVES>(*words, arena.add(*others.add(row) + channel));
            }
        }
        if channels < BLOCK {
            for (row, words) in words.into_iter().enumerate() {
                store(to(row), requantise.bytes(words), channels);
            }
            return;
        }
        for pair in (0..ROWS - 1).step_by(2) {
            let [first, second] = requantise.rows(words[pair], words[pair + 1]);
            _mm_storeu_si128(to(pair).cast(), first);
            _mm_storeu_si128(to(pair + 1).cast(), second);
        }
        if ROWS % 2 == 1 {
            _mm_storeu_si128(to(ROWS - 1).cast(), requantise.bytes(words[ROWS - 1]));
        }
    }
}

/// Accumulators times multipliers, rounded. Below the range of i32 the conversion gives its least value, which is
/// right; above it would give the same, so the product is limited from above.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn scale(acc: __m256i, multiplier: __m256) -> __m256i {
    let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(acc), multiplier);
    _mm256_cvtps_epi32(_mm256_min_ps(scaled, _mm256_set1_ps(65_536.0)))
}

/// The constants of an epilogue in registers.
pub(crate) struct Requantise {
    /// Whether the limits are those of the stored type, which the narrowing to bytes keeps anyway.
    is_full: bool,
    /// Whether results are s8.
    is_signed: bool,
    low: __m256i,
    high: __m256i,
    zero_point: __m256i,
}

impl Requantise {
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn new(epilogue: &Epilogue) -> Self {
        let low = epilogue.sum.as_ref().map_or(epilogue.low, |sum| sum.rule.low);
        Self {
            is_full: epilogue.sum.is_none()
                && [(0, 255), (-128, 127)].contains(&(epilogue.low, epilogue.high)),
            is_signed: low < 0,
            low: _mm256_set1_epi16(epilogue.low as i16),
            high: _mm256_set1_epi16(epilogue.high as i16),
            zero_point: _mm256_set1_epi16(epilogue.zero_point as i16),
        }
    }

    /// 8 + 8 scaled values with the zero point, within the limits (those that [`Requantise::bytes`] does not keep by
    /// itself), as i16: values 0–3, 8–11, 4–7, 12–15. Saturation on the way only meets values that the limits cut
    /// anyway.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn words(&self, first: __m256i, second: __m256i) -> __m256i {
        let words = _mm256_adds_epi16(_mm256_packs_epi32(first, second), self.zero_point);
        if self.is_full {
            return words;
        }
        _mm256_min_epi16(_mm256_max_epi16(words, self.low), self.high)
    }
}

impl Requantise {
    /// [`Requantise::words`] as bytes, in order.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn bytes(&self, words: __m256i) -> __m128i {
        let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        let bytes =
            if self.is_signed { _mm_packs_epi16(low, high) } else { _mm_packus_epi16(low, high) };
        _mm_shuffle_epi32::<0b11_01_10_00>(bytes)
    }

    /// The same for two rows at once.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn rows(&self, first: __m256i, second: __m256i) -> [__m128i; 2] {
        let bytes = if self.is_signed {
            _mm256_packs_epi16(first, second)
        } else {
            _mm256_packus_epi16(first, second)
        };
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let bytes = _mm256_permutevar8x32_epi32(bytes, order);
        [_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes)]
    }
}

/// The constants of a residual sum in registers.
pub(crate) struct Plus {
    /// Whether the convolution is the first operand.
    is_first: bool,
    /// Whether the other operand is s8.
    is_signed: bool,
    /// Whether narrowing to bytes keeps the limits.
    is_full: bool,
    ratio_a: __m256,
    ratio_b: __m256,
    fixed: __m256,
    low: __m256,
    high: __m256,
}

impl Plus {
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn new(sum: &Sum) -> Self {
        let Sum { rule, role } = sum;
        let is_first = *role == Role::First;
        let element = if is_first { rule.element_b } else { rule.element_a };
        // Sums below this convert to i32, and saturate on the way to bytes.
        let most = 256.0 * (rule.ratio_a.abs() + rule.ratio_b.abs()) + rule.fixed.abs();
        let whole = [(0, 255), (-128, 127)].contains(&(rule.low, rule.high));
        Self {
            is_first,
            is_signed: element == ElementType::S8,
            is_full: whole && most < 1e9,
            ratio_a: _mm256_set1_ps(rule.ratio_a),
            ratio_b: _mm256_set1_ps(rule.ratio_b),
            fixed: _mm256_set1_ps(rule.fixed),
            low: _mm256_set1_ps(rule.low as f32),
            high: _mm256_set1_ps(rule.high as f32),
        }
    }

    /// The sum of requantised values, in the order of [`Requantise::words`], with stored ones.
    ///
    /// # Safety
    /// `HALVES` · 8 bytes are readable at `other`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) unsafe fn words<const HALVES: usize>(
        &self,
        words: __m256i,
        other: *const u8,
    ) -> __m256i {
        // Sign-extended in place: the low halves of both lanes are values 0–7, the high ones 8–15.
        let own = [
            _mm256_srai_epi32::<16>(_mm256_unpacklo_epi16(words, words)),
            _mm256_srai_epi32::<16>(_mm256_unpackhi_epi16(words, words)),
        ];
        let sums: [__m256i; HALVES] = std::array::from_fn(|half| {
            // SAFETY: by contract.
            let bytes = unsafe { _mm_loadl_epi64(other.add(8 * half).cast()) };
            let other = match self.is_signed {
                false => _mm256_cvtepu8_epi32(bytes),
                true => _mm256_cvtepi8_epi32(bytes),
            };
            let (own, other) = (_mm256_cvtepi32_ps(own[half]), _mm256_cvtepi32_ps(other));
            let (a, b) = if self.is_first { (own, other) } else { (other, own) };
            let value =
                _mm256_fmadd_ps(a, self.ratio_a, _mm256_fmadd_ps(b, self.ratio_b, self.fixed));
            if self.is_full {
                return _mm256_cvtps_epi32(value);
            }
            _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(value, self.low), self.high))
        });
        _mm256_packs_epi32(sums[0], sums[HALVES - 1])
    }
}

/// Stores the first `length` of 16 bytes.
///
/// # Safety
/// `length` bytes are writable at `to`.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn store(to: *mut u8, bytes: __m128i, length: usize) {
    // SAFETY: no more than `length` bytes are written.
    unsafe {
        match length {
            16.. => _mm_storeu_si128(to.cast(), bytes),
            8 => _mm_storel_epi64(to.cast(), bytes),
            _ => {
                let mut kept = [0u8; 16];
                _mm_storeu_si128(kept.as_mut_ptr().cast(), bytes);
                std::ptr::copy_nonoverlapping(kept.as_ptr(), to, length);
            }
        }
    }
}
