//! Depthwise convolution for the tables with `vpdpbusd`: four taps of a channel in one instruction.
//!
//! Channels go in slices of one register of bytes. Four registers of inputs (four rows of a column, or four columns of a
//! row) are interleaved within lanes of 128 bits into four vectors, which hold the four bytes of each channel side by
//! side; weights, bias and multipliers come in the same order, and the narrowing at the end restores the natural one.
//! Interleaved columns wait in a scratch in the first-level cache, because neighbouring outputs share them, and the next
//! ones are interleaved between the multiplications: those two use different ports.
//!
//! Windows of 3 rows: two output rows share four input rows, the weights of the lower one stand one row further down.
//! Of 5 rows: four of them, and four columns at a time of the first row; 7 multiplications for 25 taps. The output row
//! below shares the four rows, which are the upper ones of its own, and adds its last one.
//! Of 7 rows: twice four, for two output rows too. With 32 registers 3² does without the scratch, in
//! [`vnni_depthwise_3x3`].

#![expect(
    clippy::needless_range_loop,
    reason = "iterators over arrays of registers go through memory"
)]

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::kernels::depthwise::{Depthwise, Quads};
use crate::kernels::vnni_depthwise_3x3;
use crate::kernels::vnni_registers::Registers;
use crate::tensor::ElementType;

/// Bytes of interleaved columns: with weights and the rows at hand in a cache of 32 KiB.
const SCRATCH: usize = 16 * 1024;

/// Bytes of inputs that all slices of channels go through before the next ones come.
const BAND: usize = 128 * 1024;

/// Calls a table's function of windows with side and stride as constants, or another one for windows that have no fast loop.
macro_rules! by_window {
    ($call:expr, $n:expr, $slices:ident, $any:ident) => {
        match Quads::of(&$call.window) {
            Some(Quads { side: 3, step: 1 }) => $slices::<3, 1>($call, $n),
            Some(Quads { side: 3, .. }) => $slices::<3, 2>($call, $n),
            Some(Quads { side: 5, step: 1 }) => $slices::<5, 1>($call, $n),
            Some(Quads { side: 5, .. }) => $slices::<5, 2>($call, $n),
            Some(Quads { step: 1, .. }) => $slices::<7, 1>($call, $n),
            Some(_) => $slices::<7, 2>($call, $n),
            None => $any($call, $n),
        }
    };
}
pub(crate) use by_window;

/// Rows of output whose inputs stay in a second-level cache from one slice of channels to the next.
pub(crate) fn bands(call: &Depthwise<'_>) -> impl Iterator<Item = Range<usize>> {
    let row_bytes = call.input.row * call.window.strides[0];
    let rows = (BAND / row_bytes).max(2).next_multiple_of(2);
    call.rows.clone().step_by(rows).map(move |first| first..(first + rows).min(call.rows.end))
}

/// What the outputs of a slice have in common.
pub(crate) struct Slice<'a, S: Registers> {
    pub(crate) call: &'a Depthwise<'a>,
    /// Bias, multipliers and weights of the slice, packed.
    pub(crate) packed: *const u8,
    /// Whether stored inputs are s8, whose sign bits are flipped.
    pub(crate) is_signed: bool,
    /// Whether products with multipliers might not fit i32.
    pub(crate) limited: bool,
    /// Whether results need more than saturation to u8.
    pub(crate) clamps: bool,
    pub(crate) zero_point: S::Vector,
    pub(crate) low: S::Vector,
    pub(crate) high: S::Vector,
    /// s8 results are u8 ones with the sign bit flipped.
    pub(crate) sign: S::Vector,
    /// Channels.
    pub(crate) length: usize,
}

/// Columns that are still to be interleaved, up to `end`.
struct Ahead {
    column: usize,
    /// Where the first of them goes.
    to: *mut u8,
    end: usize,
    /// How many at a time.
    step: usize,
}

/// All rows of one slice of channels, from `channel` on, under a window of `SIDE`² that moves by `STEP`.
///
/// # Safety
/// The machine has the instruction set. A slice starts at `channel`, and ends at most [`BLOCK`] channels behind the
/// tensor's, rounded up to whole blocks: so far [`Depthwise::check`] covers.
///
/// [`BLOCK`]: crate::kernels::BLOCK
#[inline(always)]
pub(crate) unsafe fn slice<S: Registers, const SIDE: usize, const STEP: usize>(
    call: &Depthwise<'_>,
    n: usize,
    channel: usize,
    rows: Range<usize>,
) {
    let epilogue = call.epilogue;
    let quads = Quads { side: SIDE, step: STEP };
    let packed = &call.weights.quads.bytes()[channel * quads.bytes_per_channel()..];
    assert!(packed.len() >= S::BYTES * quads.bytes_per_channel());
    let sign = if epilogue.low < 0 { 128 } else { 0 };
    // SAFETY: by contract; the length of what is packed was checked.
    unsafe {
        let slice = Slice::<S> {
            call,
            packed: packed.as_ptr(),
            is_signed: call.element == ElementType::S8,
            limited: !epilogue.is_plain(),
            clamps: (epilogue.low, epilogue.high) != (0, 255),
            zero_point: S::every_word((epilogue.zero_point + sign) as i16),
            low: S::every_byte((epilogue.low + sign) as u8),
            high: S::every_byte((epilogue.high + sign) as u8),
            sign: S::every_byte(sign as u8),
            length: (call.output.shape.c - channel).min(S::BYTES),
        };
        let mut y = rows.start;
        while y < rows.end {
            let first = call.check(n, y) + channel;
            let to = call.output.at(n, y, 0) + channel;
            if S::MANY && SIDE == 3 {
                vnni_depthwise_3x3::row::<S, STEP>(&slice, first, to);
                y += 1;
            } else if STEP == 1 && y + 1 < rows.end {
                call.check(n, y + 1);
                match (S::BYTES, S::MANY) {
                    (64, _) => row::<S, SIDE, STEP, 2, 2, 1>(&slice, first, to),
                    // Twice as many multiplications at a time want twice as many sums.
                    (_, true) => row::<S, SIDE, STEP, 2, 4, 4>(&slice, first, to),
                    (_, false) => row::<S, SIDE, STEP, 2, 2, 2>(&slice, first, to),
                }
                y += 2;
            } else {
                match S::BYTES {
                    64 => row::<S, SIDE, STEP, 1, 4, 2>(&slice, first, to),
                    _ => row::<S, SIDE, STEP, 1, 4, 4>(&slice, first, to),
                }
                y += 1;
            }
        }
    }
}

/// `ROWS` output rows, whose first taps and places are given; `X` pixels at a time, and `HALF` for the last ones.
///
/// # Safety
/// As for [`slice`]; [`Depthwise::check`] has seen the rows.
#[inline(always)]
unsafe fn row<
    S: Registers,
    const SIDE: usize,
    const STEP: usize,
    const ROWS: usize,
    const X: usize,
    const HALF: usize,
>(
    slice: &Slice<'_, S>,
    first: usize,
    to: usize,
) {
    #[repr(C, align(64))]
    struct Scratch([u8; SCRATCH]);
    // The columns of a block find room, and those of a last one that is not whole are those of a half.
    const {
        assert!(X == HALF || X == 2 * HALF);
        assert!((X * STEP + SIDE - STEP) * planes(SIDE, ROWS) * 4 * S::BYTES <= SCRATCH);
    }
    let mut scratch = MaybeUninit::<Scratch>::uninit();
    let scratch = scratch.as_mut_ptr().cast::<u8>();
    let column_bytes = planes(SIDE, ROWS) * 4 * S::BYTES;
    let width = slice.call.output.shape.w;
    // Pixels whose columns find room.
    let most = (SCRATCH / column_bytes - (SIDE - STEP)) / STEP / HALF * HALF;
    // Tiles of about the same size.
    let tile = width.div_ceil(width.div_ceil(most)).next_multiple_of(X).min(most);
    let arena = slice.call.arena.as_ptr().cast::<u8>().cast_mut();
    // SAFETY: check() covers the outputs, and the taps of all columns; the scratch holds the columns of `most` pixels,
    // and those of a block are interleaved before it.
    unsafe {
        let from = arena.add(first).cast_const();
        let mut to = arena.add(to);
        let mut x = 0;
        while x < width {
            let end = (x + tile).min(width);
            let mut ahead = Ahead {
                column: x * STEP,
                to: scratch,
                end: (x + X) * STEP + SIDE - STEP,
                step: usize::MAX,
            };
            interleave::<S, SIDE, STEP, ROWS>(slice, from, &mut ahead);
            let mut columns = scratch.cast_const();
            while x < end {
                let next = (end - x).saturating_sub(X).min(X);
                ahead.end = ahead.column + next.next_multiple_of(HALF) * STEP;
                ahead.step = (X * STEP).div_ceil(4);
                let count = (end - x).min(X);
                if HALF == X || count > HALF {
                    block::<S, SIDE, STEP, ROWS, X>(slice, from, columns, to, count, &mut ahead);
                } else {
                    block::<S, SIDE, STEP, ROWS, HALF>(slice, from, columns, to, count, &mut ahead);
                }
                columns = columns.wrapping_add(X * STEP * column_bytes);
                to = to.wrapping_add(count * slice.call.output.pixel);
                x += count;
            }
        }
    }
}

/// Fours of inputs that are interleaved for each column.
const fn planes(side: usize, rows: usize) -> usize {
    match side {
        3 => 1,
        5 => 1 + rows,
        _ => 2,
    }
}

/// The next `ahead.step` columns of interleaved inputs.
///
/// # Safety
/// As for [`row`]; `from` is the first tap, and there is room for the columns.
#[inline(always)]
unsafe fn interleave<S: Registers, const SIDE: usize, const STEP: usize, const ROWS: usize>(
    slice: &Slice<'_, S>,
    from: *const u8,
    ahead: &mut Ahead,
) {
    let Slice { call, is_signed, .. } = slice;
    let (row, pixel) = (call.input.row, call.input.pixel);
    // Of blocks that hang over the edge, the last column stands for those behind it.
    let last = (call.output.shape.w - 1) * STEP + SIDE - 1;
    let end = ahead.end.min(ahead.column.saturating_add(ahead.step));
    macro_rules! plane {
        ($nth:expr, $a:expr, $b:expr, $c:expr, $d:expr) => {{
            let mut fours = [S::load($a), S::load($b), S::load($c), S::load($d)];
            if *is_signed {
                let sign = S::every_byte(0x80);
                fours = [
                    S::xor(fours[0], sign),
                    S::xor(fours[1], sign),
                    S::xor(fours[2], sign),
                    S::xor(fours[3], sign),
                ];
            }
            let [a, b, c, d] = S::interleave(fours);
            let to = ahead.to.add($nth * 4 * S::BYTES);
            S::store(to, a);
            S::store(to.add(S::BYTES), b);
            S::store(to.add(2 * S::BYTES), c);
            S::store(to.add(3 * S::BYTES), d);
        }};
    }
    // SAFETY: by contract: rows and columns are those of the taps.
    unsafe {
        while ahead.column < end {
            let column = ahead.column.min(last);
            let at = from.add(column * pixel);
            for group in 0..(Quads { side: SIDE, step: STEP }).groups() {
                let first = 4 * group + usize::from(SIDE == 5);
                // Below the window its last row again, whose weights are zero.
                let below = SIDE + ROWS - 2;
                plane!(
                    group,
                    at.add(first * row),
                    at.add((first + 1) * row),
                    at.add((first + 2) * row),
                    at.add((if first + 3 > below { below } else { first + 3 }) * row)
                );
            }
            if SIDE == 5 && (STEP == 1 || column.is_multiple_of(2)) {
                let next = from.add((column + 1).min(last) * pixel);
                let third = from.add((column + 2).min(last) * pixel);
                let fourth = from.add((column + 3).min(last) * pixel);
                plane!(1, at, next, third, fourth);
                if ROWS == 2 {
                    let down = 5 * row;
                    plane!(2, at.add(down), next.add(down), third.add(down), fourth.add(down));
                }
            }
            ahead.column += 1;
            ahead.to = ahead.to.wrapping_add(planes(SIDE, ROWS) * 4 * S::BYTES);
        }
    }
}

/// `X` pixels of `ROWS` rows, of which `count` are stored.
///
/// # Safety
/// As for [`row`]; `columns` are the interleaved ones of these pixels.
#[inline(always)]
unsafe fn block<
    S: Registers,
    const SIDE: usize,
    const STEP: usize,
    const ROWS: usize,
    const X: usize,
>(
    slice: &Slice<'_, S>,
    from: *const u8,
    columns: *const u8,
    to: *mut u8,
    count: usize,
    ahead: &mut Ahead,
) {
    // SAFETY: by contract.
    unsafe {
        macro_rules! part {
            ($nth:literal) => {{ part::<S, SIDE, STEP, ROWS, X>(slice, from, ahead, columns, $nth) }};
        }
        let first = part!(0);
        let second = part!(1);
        let mut words = first;
        for x in 0..X {
            for row in 0..ROWS {
                words[x][row] = S::words(first[x][row], second[x][row], slice.zero_point);
            }
        }
        let third = part!(2);
        let fourth = part!(3);
        let mut bytes = words;
        for x in 0..X {
            for row in 0..ROWS {
                let upper = S::words(third[x][row], fourth[x][row], slice.zero_point);
                bytes[x][row] = S::bytes(words[x][row], upper);
            }
        }
        if slice.clamps {
            for x in 0..X {
                for row in 0..ROWS {
                    let within = S::clamp(bytes[x][row], slice.low, slice.high);
                    bytes[x][row] = S::xor(within, slice.sign);
                }
            }
        }
        let (pixel, row_bytes) = (slice.call.output.pixel, slice.call.output.row);
        if slice.length == S::BYTES && count == X {
            for x in 0..X {
                for row in 0..ROWS {
                    S::store(to.add(x * pixel + row * row_bytes), bytes[x][row]);
                }
            }
        } else {
            for x in 0..X {
                if x < count {
                    for row in 0..ROWS {
                        let to = to.add(x * pixel + row * row_bytes);
                        match slice.length == S::BYTES {
                            true => S::store(to, bytes[x][row]),
                            false => S::store_part(to, bytes[x][row], slice.length),
                        }
                    }
                }
            }
        }
    }
}

/// The `nth` of four vectors of each output, scaled.
///
/// # Safety
/// As for [`block`].
#[inline(always)]
unsafe fn part<
    S: Registers,
    const SIDE: usize,
    const STEP: usize,
    const ROWS: usize,
    const X: usize,
>(
    slice: &Slice<'_, S>,
    from: *const u8,
    ahead: &mut Ahead,
    columns: *const u8,
    nth: usize,
) -> [[S::Vector; ROWS]; X] {
    let quads = Quads { side: SIDE, step: STEP };
    let column_bytes = planes(SIDE, ROWS) * 4 * S::BYTES;
    // SAFETY: by contract.
    unsafe {
        let bias = slice.packed.add(nth * quads.vectors() * S::BYTES);
        let multipliers = bias.add(S::BYTES);
        let mut weights = multipliers.add(S::BYTES);
        let columns = columns.add(nth * S::BYTES);
        let bias = S::load(bias);
        // Large windows in a loop, as their code would grow with them.
        let side = if SIDE == 7 { slice.call.window.kernel[1] } else { SIDE };
        let mut sums = [[bias; ROWS]; X];
        for group in 0..quads.groups() {
            for nth in 0..side {
                let column = quads.column(nth);
                let at = columns.add(group * 4 * S::BYTES + column * column_bytes);
                let mut own = [bias; ROWS];
                for row in 0..ROWS {
                    own[row] = S::load(weights.add(row * S::BYTES));
                }
                for x in 0..X {
                    let inputs = S::load(at.add(x * STEP * column_bytes));
                    for row in 0..ROWS {
                        sums[x][row] = S::dot(sums[x][row], inputs, own[row]);
                    }
                }
                weights = weights.add(quads.rows() * S::BYTES);
            }
        }
        if SIDE == 5 {
            for four in 0..2 {
                for row in 0..ROWS {
                    let at = columns.add(4 * four * column_bytes + (1 + row) * 4 * S::BYTES);
                    let own = S::load(weights.add(row * S::BYTES));
                    for x in 0..X {
                        let inputs = S::load(at.add(x * STEP * column_bytes));
                        sums[x][row] = S::dot(sums[x][row], inputs, own);
                    }
                }
                weights = weights.add(quads.rows() * S::BYTES);
            }
        }
        let multipliers = S::load(multipliers);
        for x in 0..X {
            for row in 0..ROWS {
                sums[x][row] = S::scale(sums[x][row], multipliers);
            }
        }
        // The branch also keeps the compiler from mixing these multiplications with the next ones, which would take more
        // registers than there are, and a third more time.
        if slice.limited {
            for x in 0..X {
                for row in 0..ROWS {
                    sums[x][row] = S::limit(sums[x][row]);
                }
            }
        }
        // Where the ports that multiply would wait for conversions.
        interleave::<S, SIDE, STEP, ROWS>(slice, from, ahead);
        for x in 0..X {
            for row in 0..ROWS {
                sums[x][row] = S::round(sums[x][row]);
            }
        }
        sums
    }
}
