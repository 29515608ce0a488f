//! Winograd's convolution with AVX2: inputs are transformed 16 channels at a time, multiplied as a panel for each place by Winograd's
//! inner product (`avx2_inner.rs`), and the products of 16 output channels transformed back straight into the epilogue.

#![expect(
    clippy::needless_range_loop,
    reason = "iterators over arrays of registers go through memory"
)]

use std::arch::x86_64::*;

use crate::kernels::BLOCK;
use crate::kernels::aligned::Aligned;
use crate::kernels::avx2::{Strip, strips};
use crate::kernels::avx2_epilogue::{Plus, Requantise, scale, store};
use crate::kernels::avx2_inner::{self, ROWS};
use crate::kernels::winograd::{Form, PLACES, START, TILES, Winograd};
use crate::tensor::ElementType;

/// The transforms of a [`Form`]: `SIDE` inputs, `OUT` outputs along an axis.
trait Transforms<const SIDE: usize, const OUT: usize> {
    const FORM: Form;

    /// Bᵀ · d, in i16.
    ///
    /// # Safety
    /// The machine has AVX2.
    unsafe fn inputs(values: [__m256i; SIDE]) -> [__m256i; SIDE];

    /// Aᵀ · m, in i32, as often as its place wants.
    ///
    /// # Safety
    /// The machine has AVX2.
    unsafe fn outputs(values: [__m256i; SIDE]) -> [__m256i; OUT];

    /// What came out of both, at a place, as a plain sum.
    ///
    /// # Safety
    /// The machine has AVX2.
    unsafe fn plain(value: __m256i, row: usize, column: usize) -> __m256i;
}

struct Two;
struct Four;

impl Transforms<4, 2> for Two {
    const FORM: Form = Form::Two;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn inputs([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
        [
            _mm256_sub_epi16(a, c),
            _mm256_add_epi16(b, c),
            _mm256_sub_epi16(c, b),
            _mm256_sub_epi16(b, d),
        ]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn outputs([a, b, c, d]: [__m256i; 4]) -> [__m256i; 2] {
        [_mm256_add_epi32(_mm256_add_epi32(a, b), c), _mm256_sub_epi32(_mm256_sub_epi32(b, c), d)]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn plain(value: __m256i, _: usize, _: usize) -> __m256i {
        _mm256_srai_epi32::<2>(value)
    }
}

impl Transforms<6, 4> for Four {
    const FORM: Form = Form::Four;

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn inputs([a, b, c, d, e, f]: [__m256i; 6]) -> [__m256i; 6] {
        let four = |value| _mm256_slli_epi16::<2>(value);
        // 4 (x − y) − y + z
        let outer =
            |x, y, z| _mm256_add_epi16(_mm256_sub_epi16(four(_mm256_sub_epi16(x, y)), y), z);
        let (even, odd) = (_mm256_sub_epi16(e, four(c)), _mm256_sub_epi16(d, four(b)));
        let (near, far) = (_mm256_sub_epi16(e, c), _mm256_sub_epi16(d, b));
        let far = _mm256_add_epi16(far, far);
        [
            outer(a, c, e),
            _mm256_add_epi16(even, odd),
            _mm256_sub_epi16(even, odd),
            _mm256_add_epi16(near, far),
            _mm256_sub_epi16(near, far),
            outer(b, d, f),
        ]
    }

    /// 24, 12, 6 and 6 times what Aᵀ gives for weights that are not scaled.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn outputs([a, b, c, d, e, f]: [__m256i; 6]) -> [__m256i; 4] {
        let twice = |value| _mm256_add_epi32(value, value);
        let (near, near_odd) = (_mm256_add_epi32(b, c), _mm256_sub_epi32(b, c));
        let (far, far_odd) = (_mm256_add_epi32(d, e), _mm256_sub_epi32(d, e));
        // 6 a + 4 near + far
        let first = _mm256_add_epi32(twice(_mm256_add_epi32(a, near)), a);
        let first = _mm256_add_epi32(twice(first), far);
        let last = _mm256_add_epi32(twice(_mm256_add_epi32(twice(f), f)), near_odd);
        [
            first,
            _mm256_add_epi32(twice(near_odd), far_odd),
            _mm256_add_epi32(near, far),
            _mm256_add_epi32(last, twice(far_odd)),
        ]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn plain(value: __m256i, row: usize, column: usize) -> __m256i {
        /// 9 times this is 1 modulo 2³².
        const NINTH: i32 = 0x38e3_8e39;
        /// 3 · 2ⁿ is what [`Transforms::outputs`] scales by.
        const SHIFTS: [i32; 4] = [3, 2, 1, 1];
        let value = _mm256_mullo_epi32(value, _mm256_set1_epi32(NINTH));
        _mm256_sra_epi32(value, _mm_cvtsi32_si128(SHIFTS[row] + SHIFTS[column]))
    }
}

pub(crate) fn convolve(call: &Winograd<'_>, scratch: &mut Aligned) {
    call.check(scratch);
    // SAFETY: the table is handed out only on machines with AVX2 and FMA; the reach was checked.
    unsafe {
        match call.form {
            Form::Two => panels::<Two, 4, 2>(call, scratch),
            Form::Four => panels::<Four, 6, 4>(call, scratch),
        }
    }
}

/// Where the parts of the scratch memory are.
#[derive(Clone, Copy)]
struct Scratch {
    /// `[place][tile][channel]`, `stride` channels each.
    inputs: *mut i16,
    /// `[tile][place][channel]`, one block of channels.
    products: *mut i32,
    /// A pixel of padding.
    padding: *mut u8,
    stride: usize,
}

/// # Safety
/// The call has passed [`Winograd::check`] with this scratch, and is of this form.
#[target_feature(enable = "avx2,fma")]
unsafe fn panels<T: Transforms<SIDE, OUT>, const SIDE: usize, const OUT: usize>(
    call: &Winograd<'_>,
    scratch: &mut Aligned,
) {
    let places = SIDE * SIDE;
    let stride = call.input.shape.c.next_multiple_of(16);
    let start = scratch.bytes_mut().as_mut_ptr();
    // SAFETY: the three parts add up to what check() wants; each begins at a multiple of 64 bytes.
    let scratch = unsafe {
        let products = start.add(TILES * places * stride * 2);
        Scratch {
            inputs: start.cast(),
            products: products.cast(),
            padding: products.add(TILES * places * BLOCK * 4),
            stride,
        }
    };
    // SAFETY: the part has room for `inputs` rounded up to 64.
    unsafe { scratch.padding.write_bytes(call.zero, stride) };
    let [_, across] = T::FORM.tiles(call.output.shape);
    let tiles = call.tiles.clone().map(|tile| [tile / across, tile % across]);
    for (nth, tile) in tiles.clone().enumerate() {
        // SAFETY: nth < TILES, and the tile exists.
        unsafe {
            match call.element {
                ElementType::U8 => transform::<T, SIDE, OUT, false>(call, &scratch, nth, tile),
                ElementType::S8 => transform::<T, SIDE, OUT, true>(call, &scratch, nth, tile),
            }
        }
    }
    let mut own = [[0; TILES]; PLACES];
    let own = &mut own[..places];
    for (nth, own) in own.iter_mut().enumerate() {
        // SAFETY: the tiles were transformed, in whole steps of 16 channels.
        unsafe {
            let inputs = scratch.inputs.add(nth * TILES * stride);
            avx2_inner::own(inputs, stride, call.depth, &mut own[..tiles.len()]);
        }
    }
    for channel in call.channels.clone().step_by(BLOCK) {
        // SAFETY: the tiles were transformed; the block exists.
        unsafe {
            products(call, &scratch, own, channel);
            for (nth, tile) in tiles.clone().enumerate() {
                finish::<T, SIDE, OUT>(call, &scratch, nth, tile, channel);
            }
        }
    }
}

/// Bᵀ · d · B of one tile, for all channels.
///
/// # Safety
/// As for [`panels`]; `nth` < [`TILES`].
#[target_feature(enable = "avx2,fma")]
unsafe fn transform<
    T: Transforms<SIDE, OUT>,
    const SIDE: usize,
    const OUT: usize,
    const SIGNED: bool,
>(
    call: &Winograd<'_>,
    scratch: &Scratch,
    nth: usize,
    tile: [usize; 2],
) {
    let arena = call.arena.as_ptr().cast::<u8>();
    // SAFETY: a pixel's offset lies in the input view, OVERRUN before the end of the arena; padding has `stride` bytes.
    unsafe {
        let pixels: [[*const u8; SIDE]; SIDE] = std::array::from_fn(|row| {
            std::array::from_fn(|column| {
                let pixel = call.pixel(tile, [row, column]);
                pixel.map_or(scratch.padding.cast_const(), |at| arena.add(at))
            })
        });
        for channel in (0..scratch.stride).step_by(16) {
            let load = |row: usize, column: usize| {
                let bytes = _mm_loadu_si128(pixels[row][column].add(channel).cast());
                if SIGNED { _mm256_cvtepi8_epi16(bytes) } else { _mm256_cvtepu8_epi16(bytes) }
            };
            let columns: [[__m256i; SIDE]; SIDE] = std::array::from_fn(|column| {
                T::inputs(std::array::from_fn(|row| load(row, column)))
            });
            for row in 0..SIDE {
                let values = T::inputs(std::array::from_fn(|column| columns[column][row]));
                for (column, value) in values.into_iter().enumerate() {
                    let at = ((SIDE * row + column) * TILES + nth) * scratch.stride + channel;
                    _mm256_store_si256(scratch.inputs.add(at).cast(), value);
                }
            }
        }
    }
}

/// The products of all places: the tiles times a block of channels.
///
/// # Safety
/// As for [`panels`]; the tiles are transformed, `own` are the places', `channel` starts a block.
#[target_feature(enable = "avx2,fma")]
unsafe fn products(call: &Winograd<'_>, scratch: &Scratch, own: &[[i32; TILES]], channel: usize) {
    let (places, size) = (own.len(), (START + call.depth) * BLOCK);
    let strips = strips(call.tiles.len(), ROWS);
    // SAFETY: the block of weights exists, as checked; the strips' rows are transformed tiles.
    unsafe {
        let mut product = Product {
            inputs: scratch.inputs,
            stride: scratch.stride,
            weights: call.weights.words().as_ptr().add(channel / BLOCK * places * size),
            depth: call.depth,
            own: &[],
            to: scratch.products,
            next: places * BLOCK,
        };
        for own in own {
            product.own = own;
            for strip in &strips {
                match strip.height {
                    4 => self::product::<4>(&product, strip),
                    3 => self::product::<3>(&product, strip),
                    2 => self::product::<2>(&product, strip),
                    1 => self::product::<1>(&product, strip),
                    // A strip without tiles.
                    _ => {}
                }
            }
            product.inputs = product.inputs.wrapping_add(TILES * scratch.stride);
            product.weights = product.weights.wrapping_add(size);
            product.to = product.to.wrapping_add(BLOCK);
        }
    }
}

/// Rows of inputs times a block of weights.
struct Product<'a> {
    inputs: *const i16,
    /// Values from one row to the next.
    stride: usize,
    weights: *const i16,
    depth: usize,
    /// The products of each row's own values.
    own: &'a [i32],
    to: *mut i32,
    /// Products from one row to the next.
    next: usize,
}

/// # Safety
/// Inputs, weights and room for products, aligned to 32 bytes, are there for all rows of the strip, which is `ROWS` high; the depth is
/// a multiple of [`PAIRS_STEP`](crate::kernels::PAIRS_STEP).
#[target_feature(enable = "avx2,fma")]
unsafe fn product<const ROWS: usize>(call: &Product<'_>, strip: &Strip) {
    let Product { stride, depth, .. } = *call;
    // SAFETY: by contract; prefetching reads nothing.
    unsafe {
        let start = call.weights.cast::<__m256i>();
        let start = [_mm256_load_si256(start), _mm256_load_si256(start.add(1))];
        let weights = call.weights.add(START * BLOCK);
        for nth in 0..strip.tiles {
            let ahead =
                avx2_inner::ahead(strip.before + nth, weights.wrapping_add(depth * BLOCK), depth);
            let row = strip.first + nth * ROWS;
            let own = call.own.as_ptr().add(row);
            let mut sums: [[__m256i; 2]; ROWS] = std::array::from_fn(|row| {
                let own = _mm256_set1_epi32(own.add(row).read());
                start.map(|start| _mm256_sub_epi32(start, own))
            });
            let inputs = call.inputs.add(row * stride);
            avx2_inner::multiply(inputs, stride, weights, depth, ahead, &mut sums);
            let to = call.to.add(row * call.next);
            for row in 0..ROWS {
                for half in 0..2 {
                    _mm256_store_si256(to.add(row * call.next + 8 * half).cast(), sums[row][half]);
                }
            }
        }
    }
}

/// Aᵀ · m · A of one tile, and its outputs through the epilogue.
///
/// # Safety
/// As for [`products`]; all places of the tile are multiplied.
#[target_feature(enable = "avx2,fma")]
unsafe fn finish<T: Transforms<SIDE, OUT>, const SIDE: usize, const OUT: usize>(
    call: &Winograd<'_>,
    scratch: &Scratch,
    nth: usize,
    tile: [usize; 2],
    channel: usize,
) {
    let requantise = Requantise::new(call.epilogue);
    let plus = call.epilogue.sum.as_ref().map(|sum| Plus::new(sum));
    let arena = call.arena.as_ptr().cast::<u8>().cast_mut();
    let shape = call.output.shape;
    let length = (shape.c - channel).min(BLOCK);
    // SAFETY: bias and multipliers are padded to whole blocks; outputs and other operands of a pixel that exists were
    // checked.
    unsafe {
        let mut values = [[[_mm256_setzero_si256(); 2]; OUT]; OUT];
        for half in 0..2 {
            let products = scratch.products.add(nth * SIDE * SIDE * BLOCK + 8 * half).cast_const();
            let columns: [[__m256i; OUT]; SIDE] = std::array::from_fn(|column| {
                T::outputs(std::array::from_fn(|row| {
                    _mm256_load_si256(products.add((SIDE * row + column) * BLOCK).cast())
                }))
            });
            let bias = call.epilogue.bias.as_ptr().add(channel + 8 * half);
            let bias = _mm256_loadu_si256(bias.cast());
            let multiplier =
                _mm256_loadu_ps(call.epilogue.multipliers.as_ptr().add(channel + 8 * half));
            for row in 0..OUT {
                let outputs = T::outputs(std::array::from_fn(|column| columns[column][row]));
                for column in 0..OUT {
                    let sum = _mm256_add_epi32(T::plain(outputs[column], row, column), bias);
                    values[row][column][half] = scale(sum, multiplier);
                }
            }
        }
        for row in 0..OUT.min(shape.h - OUT * tile[0]) {
            for column in 0..OUT.min(shape.w - OUT * tile[1]) {
                let (y, x) = (OUT * tile[0] + row, OUT * tile[1] + column);
                let [first, second] = values[row][column];
                let mut words = requantise.words(first, second);
                if let (Some(plus), Some(other)) = (&plus, &call.other) {
                    let other = arena.add(other.at(call.image, y, x) + channel);
                    words = plus.words::<2>(words, other);
                }
                let to = arena.add(call.output.at(call.image, y, x) + channel);
                store(to, requantise.bytes(words), length);
            }
        }
    }
}
