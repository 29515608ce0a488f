//! Kernels for any machine, without one unsafe operation of their own: the first to be right, the last to be chosen.

use crate::kernels::aligned::{self, Aligned};
use crate::kernels::depthwise::DepthwiseForm;
use crate::kernels::gather::{Fetch, Gather};
use crate::kernels::{BLOCK, Kernels, Multiply, Packing, portable};

pub(crate) static KERNELS: Kernels = Kernels {
    name: "scalar",
    packing: Packing::Pairs,
    crosses: |_, _| false,
    walks: false,
    tile_rows: 1,
    gather,
    multiply,
    winograd: None,
    takes_depthwise: |_| true,
    depthwise_form: DepthwiseForm::Taps,
    depthwise: portable::depthwise,
    add: portable::add,
    mul: portable::mul,
    accumulate: portable::accumulate,
    maximum: portable::maximum,
    quantise: portable::quantise,
    interleave: portable::interleave,
    copy: portable::copy,
    translate: portable::translate,
    dequantise: portable::dequantise,
    average: portable::average,
    blend: portable::blend,
    blend_reals: portable::blend_reals,
};

struct Unsigned;
struct Signed;

impl Fetch for Unsigned {
    type Value = i16;
    const BLOCKS: bool = false;

    fn padding(zero_point: i16) -> i16 {
        zero_point
    }

    unsafe fn fetch(from: *const u8, to: *mut i16, length: usize) {
        for at in 0..length {
            // SAFETY: at < length, readable and writable by the contract of the trait.
            unsafe { to.add(at).write(i16::from(from.add(at).read())) };
        }
    }
}

impl Fetch for Signed {
    type Value = i16;
    const BLOCKS: bool = false;

    fn padding(zero_point: i16) -> i16 {
        zero_point
    }

    unsafe fn fetch(from: *const u8, to: *mut i16, length: usize) {
        for at in 0..length {
            // SAFETY: as above.
            unsafe { to.add(at).write(i16::from(from.add(at).read() as i8)) };
        }
    }
}

fn gather(call: &Gather<'_>, panel: &mut Aligned) {
    match call.element {
        crate::ElementType::U8 => call.run::<Unsigned>(panel),
        crate::ElementType::S8 => call.run::<Signed>(panel),
    }
}

fn multiply(call: &Multiply<'_>) {
    call.check::<i16>();
    let panel = aligned::words(call.panel);
    let weights = call.weights.values.words();
    let depth = call.weights.depth;
    for block in call.channels.clone().step_by(BLOCK) {
        let weights = &weights[block * depth..][..BLOCK * depth];
        for (row, &output) in call.outputs.iter().enumerate() {
            let values = &panel[row * call.panel_stride..][..depth];
            let mut sums = [0i32; BLOCK];
            for (pair, weights) in values.chunks_exact(2).zip(weights.chunks_exact(2 * BLOCK)) {
                for (sum, weight) in sums.iter_mut().zip(weights.chunks_exact(2)) {
                    *sum += i32::from(pair[0].get()) * i32::from(weight[0])
                        + i32::from(pair[1].get()) * i32::from(weight[1]);
                }
            }
            for (lane, &sum) in sums.iter().enumerate().take(call.channels.end - block) {
                let channel = block + lane;
                let other = || call.arena[call.others[row] + channel].get();
                let byte = call.epilogue.apply(sum, channel, other);
                call.arena[output + channel].set(byte);
            }
        }
    }
}
