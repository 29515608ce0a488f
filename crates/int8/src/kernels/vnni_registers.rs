//! Vector registers as depthwise convolutions with `vpdpbusd` use them, of any width. A macro makes implementations from
//! the names of intrinsics.

/// Registers of one width and number.
pub(crate) trait Registers {
    /// Bytes, words, or numbers of 32 bits.
    type Vector: Copy;
    /// Channels of a slice.
    const BYTES: usize;
    /// Whether there are 32 registers, not 16.
    const MANY: bool;

    /// # Safety
    /// The machine has the instruction set, here and below; a vector is readable.
    unsafe fn load(from: *const u8) -> Self::Vector;

    /// # Safety
    /// A vector is writable.
    unsafe fn store(to: *mut u8, vector: Self::Vector);

    /// # Safety
    /// `length` bytes are writable, less than a vector.
    unsafe fn store_part(to: *mut u8, vector: Self::Vector, length: usize);

    /// Four vectors of bytes to four of the bytes of each place, side by side: places 4 · n to 4 · n + 3 of each lane
    /// in the nth.
    ///
    /// # Safety
    /// As above.
    unsafe fn interleave(rows: [Self::Vector; 4]) -> [Self::Vector; 4];

    /// # Safety
    /// As above.
    unsafe fn xor(a: Self::Vector, b: Self::Vector) -> Self::Vector;

    /// `sums` plus the four products of each place.
    ///
    /// # Safety
    /// As above.
    unsafe fn dot(sums: Self::Vector, inputs: Self::Vector, weights: Self::Vector) -> Self::Vector;

    /// Sums times multipliers, as f32.
    ///
    /// # Safety
    /// As above.
    unsafe fn scale(sums: Self::Vector, multipliers: Self::Vector) -> Self::Vector;

    /// Reals within what fits i32 and saturates later.
    ///
    /// # Safety
    /// As above.
    unsafe fn limit(reals: Self::Vector) -> Self::Vector;

    /// f32 to i32.
    ///
    /// # Safety
    /// As above.
    unsafe fn round(reals: Self::Vector) -> Self::Vector;

    /// Two vectors of i32 to one of i16, plus `zero_point`; with saturation.
    ///
    /// # Safety
    /// As above.
    unsafe fn words(
        first: Self::Vector,
        second: Self::Vector,
        zero_point: Self::Vector,
    ) -> Self::Vector;

    /// Two vectors of i16 to one of u8, with saturation.
    ///
    /// # Safety
    /// As above.
    unsafe fn bytes(first: Self::Vector, second: Self::Vector) -> Self::Vector;

    /// Bytes within limits.
    ///
    /// # Safety
    /// As above.
    unsafe fn clamp(bytes: Self::Vector, low: Self::Vector, high: Self::Vector) -> Self::Vector;

    /// # Safety
    /// As above.
    unsafe fn every_byte(byte: u8) -> Self::Vector;

    /// # Safety
    /// As above.
    unsafe fn every_word(word: i16) -> Self::Vector;
}

/// [`Registers`] from the names of intrinsics.
macro_rules! registers {
    ($name:ident: $vector:ty, $bytes:literal, $many:literal, $store_part:path,
     $load:ident $store:ident $xor:ident $dot:ident
     $low8:ident $high8:ident $low16:ident $high16:ident
     $as_ps:ident $as_int:ident $to_ps:ident $mul:ident $min:ident $set_ps:ident $from_ps:ident
     $packs:ident $adds:ident $packus:ident $max8:ident $min8:ident $set8:ident $set16:ident) => {
        pub(crate) struct $name;

        impl crate::kernels::vnni_registers::Registers for $name {
            type Vector = $vector;
            const BYTES: usize = $bytes;
            const MANY: bool = $many;

            #[inline(always)]
            unsafe fn load(from: *const u8) -> $vector {
                // SAFETY: by contract, here and below.
                unsafe { $load(from.cast()) }
            }

            #[inline(always)]
            unsafe fn store(to: *mut u8, vector: $vector) {
                // SAFETY: as above.
                unsafe { $store(to.cast(), vector) }
            }

            #[inline(always)]
            unsafe fn store_part(to: *mut u8, vector: $vector, length: usize) {
                // SAFETY: as above.
                unsafe { $store_part(to, vector, length) }
            }

            #[inline(always)]
            unsafe fn interleave([a, b, c, d]: [$vector; 4]) -> [$vector; 4] {
                // SAFETY: as above.
                unsafe {
                    let (low, lower) = ($low8(a, b), $low8(c, d));
                    let (high, higher) = ($high8(a, b), $high8(c, d));
                    [
                        $low16(low, lower),
                        $high16(low, lower),
                        $low16(high, higher),
                        $high16(high, higher),
                    ]
                }
            }

            #[inline(always)]
            unsafe fn xor(a: $vector, b: $vector) -> $vector {
                // SAFETY: as above.
                unsafe { $xor(a, b) }
            }

            #[inline(always)]
            unsafe fn dot(sums: $vector, inputs: $vector, weights: $vector) -> $vector {
                // SAFETY: as above.
                unsafe { $dot(sums, inputs, weights) }
            }

            #[inline(always)]
            unsafe fn scale(sums: $vector, multipliers: $vector) -> $vector {
                // SAFETY: as above.
                unsafe { $as_int($mul($to_ps(sums), $as_ps(multipliers))) }
            }

            #[inline(always)]
            unsafe fn limit(reals: $vector) -> $vector {
                // SAFETY: as above.
                unsafe { $as_int($min($as_ps(reals), $set_ps(65_536.0))) }
            }

            #[inline(always)]
            unsafe fn round(reals: $vector) -> $vector {
                // SAFETY: as above.
                unsafe { $from_ps($as_ps(reals)) }
            }

            #[inline(always)]
            unsafe fn words(first: $vector, second: $vector, zero_point: $vector) -> $vector {
                // SAFETY: as above.
                unsafe { $adds($packs(first, second), zero_point) }
            }

            #[inline(always)]
            unsafe fn bytes(first: $vector, second: $vector) -> $vector {
                // SAFETY: as above.
                unsafe { $packus(first, second) }
            }

            #[inline(always)]
            unsafe fn clamp(bytes: $vector, low: $vector, high: $vector) -> $vector {
                // SAFETY: as above.
                unsafe { $min8($max8(bytes, low), high) }
            }

            #[inline(always)]
            unsafe fn every_byte(byte: u8) -> $vector {
                // SAFETY: as above.
                unsafe { $set8(byte as i8) }
            }

            #[inline(always)]
            unsafe fn every_word(word: i16) -> $vector {
                // SAFETY: as above.
                unsafe { $set16(word) }
            }
        }
    };
}
pub(crate) use registers;
