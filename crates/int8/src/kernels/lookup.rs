//! A function of stored bytes as a table of 256 entries, in the forms that kernels read.

use crate::kernels::aligned::Aligned;

/// Bytes of a row of [`Lookup::steps`]: the 16 entries twice, for both lanes of a register.
pub(crate) const STEP: usize = 32;

/// 256 entries.
#[derive(Debug, Clone)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "steps are for x86"))]
pub(crate) struct Lookup {
    pub(crate) bytes: Box<[u8; 256]>,
    /// 16 rows of 16 entries, twice each: rows 0 and 8 as they are, the others as the difference (exclusive or) to the
    /// row before.
    pub(crate) steps: Aligned,
}

impl Lookup {
    pub(crate) fn new(bytes: Box<[u8; 256]>) -> Self {
        let mut steps = Aligned::new(16 * STEP);
        for (at, step) in steps.bytes_mut().iter_mut().enumerate() {
            let (row, column) = (at / STEP, at % 16);
            let before = if row % 8 == 0 { 0 } else { bytes[(row - 1) * 16 + column] };
            *step = bytes[row * 16 + column] ^ before;
        }
        Self { bytes, steps }
    }
}
