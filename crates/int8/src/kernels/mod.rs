//! Kernels of one instruction set behind one table, chosen at run time.
//!
//! A table holds plain functions. Each is safe to call: it checks the reach of what it is given once, at its entry;
//! the loops below hold no checks. The arena is shared cells, because views of it overlap (joined tensors).
//! To add an instruction set: one sibling file and one line in [`Kernels::available`]; the differential tests run for
//! every table that the machine has.

pub(crate) mod aligned;
#[cfg(target_arch = "aarch64")]
mod arm64;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_bytes;
#[cfg(target_arch = "x86_64")]
mod avx2_depthwise;
#[cfg(target_arch = "x86_64")]
mod avx2_epilogue;
#[cfg(target_arch = "x86_64")]
mod avx2_inner;
#[cfg(target_arch = "x86_64")]
mod avx2_lanes;
#[cfg(target_arch = "x86_64")]
mod avx2_leave;
#[cfg(target_arch = "x86_64")]
mod avx2_pool;
#[cfg(target_arch = "x86_64")]
mod avx2_winograd;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bytes;
#[cfg(target_arch = "x86_64")]
mod avx512_lanes;
#[cfg(target_arch = "x86_64")]
mod avx512_leave;
#[cfg(target_arch = "x86_64")]
mod avx512_multiply;
#[cfg(target_arch = "x86_64")]
mod avxvnni;
pub(crate) mod depthwise;
pub(crate) mod gather;
#[cfg(target_arch = "x86_64")]
mod lanes;
pub(crate) mod layer;
pub(crate) mod lookup;
mod offsets;
pub(crate) mod peak;
pub(crate) mod pool;
mod portable;
pub(crate) mod runs;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod vnni;
#[cfg(target_arch = "x86_64")]
mod vnni_depthwise;
#[cfg(target_arch = "x86_64")]
mod vnni_depthwise_3x3;
#[cfg(target_arch = "x86_64")]
mod vnni_registers;
pub(crate) mod walk;
pub(crate) mod winograd;

use std::cell::Cell;
use std::ops::Range;

use crate::GraphError;
use crate::kernels::aligned::Aligned;
use crate::kernels::depthwise::{Depthwise, DepthwiseForm};
use crate::kernels::gather::Gather;
use crate::kernels::lookup::Lookup;
use crate::kernels::offsets::Offsets;
use crate::kernels::runs::{Blend, Runs, Windows};
use crate::kernels::walk::{Taps, Walk};
use crate::kernels::winograd::{Form, Winograd};
use crate::numerics::{AddRule, Mean, MulRule, Quantiser};
use crate::operator::{Conv, Window};
use crate::tensor::{ElementType, Quantisation};
use crate::view::View;

/// Output channels of one block of packed weights, and to what the epilogue's vectors are padded.
pub(crate) const BLOCK: usize = 16;
/// Depth of weights packed as pairs is a multiple of this; what is added is zero.
pub(crate) const PAIRS_STEP: usize = 4;
/// Rows of a panel at most: with more nothing is gained.
pub(crate) const PANEL_ROWS: usize = 96;
/// Bytes that kernels may read past the last byte of a view.
pub(crate) const SLACK: usize = 64;

/// The kernels of one instruction set.
#[derive(Debug)]
pub(crate) struct Kernels {
    /// As `OCELLI_ISA` names it.
    pub(crate) name: &'static str,
    /// What `multiply` multiplies.
    pub(crate) packing: Packing,
    /// Whether `multiply` takes sums of this depth for so many channels by Winograd's inner product.
    pub(crate) crosses: fn(depth: usize, channels: usize) -> bool,
    /// Whether `multiply` takes windows where they lie.
    pub(crate) walks: bool,
    /// Rows of one tile: blocks of rows are best a multiple.
    pub(crate) tile_rows: usize,
    /// Gathers the inputs of some output pixels into the rows of a panel.
    pub(crate) gather: fn(&Gather<'_>, &mut Aligned),
    /// Panel times packed weights, to the output through the epilogue.
    pub(crate) multiply: fn(&Multiply<'_>),
    /// Convolution of one image from transformed weights, where there is one.
    pub(crate) winograd: Option<fn(&Winograd<'_>, &mut Aligned)>,
    /// Whether `depthwise` takes the window; the portable one takes all.
    pub(crate) takes_depthwise: fn(&Window) -> bool,
    /// The form of depthwise weights that `depthwise` takes.
    pub(crate) depthwise_form: DepthwiseForm,
    /// Depthwise convolution of some rows of one image.
    pub(crate) depthwise: fn(&Depthwise<'_>, n: usize),
    /// Element-wise sum of runs of bytes.
    pub(crate) add: fn(&AddRule, [Run<'_>; 2], Run<'_>, &Runs<3>),
    /// Element-wise product of runs of bytes.
    pub(crate) mul: fn(&MulRule, [Run<'_>; 2], Run<'_>, &Runs<3>),
    /// Adds runs of bytes, as long as there are sums, to 32-bit sums: their number, and the distance between them.
    pub(crate) accumulate: fn(ElementType, Run<'_>, [usize; 2], &mut [i32]),
    /// Greatest value under windows.
    pub(crate) maximum: fn(ElementType, &Windows<'_>),
    /// Real to stored values, one behind the other.
    pub(crate) quantise: fn(&Quantiser, &[f32], &mut [u8]),
    /// Stored to real values, one behind the other.
    pub(crate) dequantise: fn(&Quantisation, Run<'_>, &mut [f32]),
    /// Three planes of one length to pixels of three channels.
    pub(crate) interleave: fn([&[u8]; 3], Run<'_>),
    /// Bytes as they are, to another place.
    pub(crate) copy: fn(Run<'_>, Run<'_>, &Runs),
    /// A function of each byte: input, output, which may be the same.
    pub(crate) translate: fn(&Lookup, Run<'_>, Run<'_>, &Runs),
    /// Means of real values under windows.
    pub(crate) average: fn(&Mean, &Windows<'_>),
    /// Pixels between four whose stored values are given.
    pub(crate) blend: fn(&Blend<'_>, ElementType, Run<'_>),
    /// Pixels between four whose real values are given.
    pub(crate) blend_reals: fn(&Blend<'_>, &Quantiser, Run<'_>),
}

/// Bytes of the arena from an offset on.
pub(crate) type Run<'a> = &'a [Cell<u8>];

impl Kernels {
    /// The best table of this machine, or the one that `OCELLI_ISA` names.
    ///
    /// # Errors
    /// [`GraphError::InstructionSet`] when `OCELLI_ISA` names none that this machine has.
    pub(crate) fn detect() -> Result<&'static Self, GraphError> {
        let Some(name) = std::env::var_os("OCELLI_ISA") else {
            return Ok(Self::available().next().unwrap_or(&scalar::KERNELS));
        };
        let name = name.to_string_lossy();
        Self::by_name(&name).ok_or_else(|| GraphError::InstructionSet {
            name: name.into_owned(),
            available: Self::available().map(|kernels| kernels.name).collect::<Vec<_>>().join(", "),
        })
    }

    /// A table by name, if the machine can run it.
    pub(crate) fn by_name(name: &str) -> Option<&'static Self> {
        Self::available().find(|kernels| kernels.name == name)
    }

    /// Tables that this machine can run, the best one first.
    pub(crate) fn available() -> impl Iterator<Item = &'static Self> {
        /// Whether this machine has the instructions, and the kernels.
        type Candidate = (fn() -> bool, &'static Kernels);
        const CANDIDATES: &[Candidate] = &[
            #[cfg(target_arch = "x86_64")]
            (avx512::is_available, &avx512::KERNELS),
            #[cfg(target_arch = "x86_64")]
            (avxvnni::is_available, &avxvnni::KERNELS),
            #[cfg(target_arch = "x86_64")]
            (avx2::is_available, &avx2::KERNELS),
            #[cfg(target_arch = "aarch64")]
            (arm64::dot::has_i8mm, &arm64::dot::I8MM),
            #[cfg(target_arch = "aarch64")]
            (arm64::dot::has_dotprod, &arm64::dot::DOTPROD),
            #[cfg(target_arch = "aarch64")]
            (|| true, &arm64::KERNELS),
            (|| true, &scalar::KERNELS),
        ];
        let available = CANDIDATES.iter().filter(|(is_available, _)| is_available());
        available.map(|(_, kernels)| *kernels)
    }

    /// Whether a convolution may be done by walking through its input, which then stands within a border; `joined` says whether
    /// its channels are all that lie in a pixel.
    pub(crate) fn may_walk(&self, conv: &Conv, channels: usize, joined: bool) -> bool {
        let Window { kernel, dilations, .. } = conv.window;
        let joined = joined && conv.groups == 1 && dilations[1] == 1;
        let run = channels / conv.groups * if joined { kernel[1] } else { 1 };
        self.walks && self.packing.is_filled(run)
    }

    /// The taps of a convolution on some channels of a view, if it walks.
    pub(crate) fn taps(&self, window: &Window, view: &View) -> Option<Taps> {
        match self.packing {
            Packing::Bytes { run, .. } if self.walks => Taps::new(window, view, run),
            _ => None,
        }
    }

    /// What is subtracted from stored inputs before they are multiplied.
    pub(crate) fn centre(&self, element: ElementType) -> i32 {
        match (self.packing, element) {
            (Packing::Bytes { panel: ElementType::S8, .. }, ElementType::U8) => 128,
            (Packing::Bytes { panel: ElementType::U8, .. }, ElementType::S8) => -128,
            _ => 0,
        }
    }

    /// Whether stored values are multiplied as they are.
    pub(crate) fn takes_as_stored(&self, element: ElementType) -> bool {
        matches!(self.packing, Packing::Bytes { panel, .. } if panel == element)
    }
}

/// The values that a multiplication takes, and the order of its weights: blocks of [`BLOCK`] channels, depths and
/// channels that are missing filled with zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(any(target_arch = "aarch64", target_arch = "x86_64")),
    expect(dead_code, reason = "bytes are for ARM and x86 with VNNI")
)]
pub(crate) enum Packing {
    /// i16 values: per pair of depths, the pair of each channel.
    Pairs,
    /// Signed bytes: per `run` of depths, the run of each channel. Of depths that fill no run the last runs are of
    /// `tail`. Inputs are bytes of one type; a stored value of the other type has its sign bit flipped.
    Bytes { run: usize, tail: usize, panel: ElementType },
}

impl Packing {
    /// Bytes of an input value.
    pub(crate) fn value_bytes(self) -> usize {
        match self {
            Self::Pairs => 2,
            Self::Bytes { .. } => 1,
        }
    }

    /// Whether so many values are not much less than whole runs.
    fn is_filled(self, values: usize) -> bool {
        matches!(self, Self::Bytes { run, .. } if walk::fills(values, run))
    }

    /// Depth, rounded up to what the kernels multiply.
    fn depth(self, given: usize) -> usize {
        match self {
            Self::Pairs => given.next_multiple_of(PAIRS_STEP),
            // A rest longer than a tail costs as much as a run.
            Self::Bytes { run, tail, .. } if given % run > tail => given.next_multiple_of(run),
            Self::Bytes { tail, .. } => given.next_multiple_of(tail),
        }
    }
}

/// Weights of one group, `[channel][depth]`, in the order of a [`Packing`].
#[derive(Debug, Clone)]
#[cfg_attr(not(target_arch = "aarch64"), expect(dead_code, reason = "extremes are for ARM"))]
pub(crate) struct PackedWeights {
    pub(crate) values: Aligned,
    pub(crate) channels: usize,
    /// Depth, rounded up to whole steps.
    pub(crate) depth: usize,
    /// Depth as given.
    pub(crate) depth_given: usize,
    /// Whether depths that are 8 apart both have the weight −128: two such products can exceed i16.
    pub(crate) extreme: bool,
    /// Whether sums are taken by Winograd's inner product, and [`cross`] is out of the bias.
    pub(crate) crossed: bool,
}

impl PackedWeights {
    pub(crate) fn new(weights: &[i8], channels: usize, kernels: &Kernels) -> Self {
        let packing = kernels.packing;
        let depth_given = weights.len() / channels;
        let depth = packing.depth(depth_given);
        let padded = channels.next_multiple_of(BLOCK);
        let rows = weights.chunks_exact(depth_given).enumerate();
        let mut values;
        match packing {
            Packing::Pairs => {
                values = Aligned::new(padded * depth * 2);
                let packed = values.words_mut();
                for (channel, row) in rows {
                    let block = channel / BLOCK * BLOCK * depth;
                    for (at, &weight) in row.iter().enumerate() {
                        let pair = at / 2 * BLOCK + channel % BLOCK;
                        packed[block + pair * 2 + at % 2] = i16::from(weight);
                    }
                }
            }
            Packing::Bytes { run, tail, .. } => {
                values = Aligned::new(padded * depth);
                let packed = values.bytes_mut();
                let whole = depth / run * run;
                for (channel, row) in rows {
                    let (block, lane) = (channel / BLOCK * BLOCK * depth, channel % BLOCK);
                    for (at, &weight) in row.iter().enumerate() {
                        let run = if at < whole { run } else { tail };
                        packed[block + at / run * run * BLOCK + lane * run + at % run] =
                            weight as u8;
                    }
                }
            }
        }
        let extreme = packing != Packing::Pairs
            && weights.chunks_exact(depth_given).any(|row| {
                row.iter().zip(row.iter().skip(8)).any(|(&a, &b)| a == i8::MIN && b == i8::MIN)
            });
        let crossed = (kernels.crosses)(depth, channels);
        Self { values, channels, depth, depth_given, extreme, crossed }
    }

    /// Transformed weights for [`Winograd`].
    pub(crate) fn winograd(form: Form, weights: &[i8], channels: usize) -> Self {
        let (values, depth) = form.pack(weights, channels);
        let depth_given = weights.len() / channels;
        Self { values, channels, depth, depth_given, extreme: false, crossed: false }
    }
}

/// Σ of w₀w₂ + w₁w₃ over each four of a channel's weights: what Winograd's inner product adds to its sum, modulo 2³².
pub(crate) fn cross(weights: &[i8]) -> i32 {
    let product = |a: i8, b: i8| i32::from(a) * i32::from(b);
    let (fours, rest) = weights.as_chunks::<PAIRS_STEP>();
    let sum = fours
        .iter()
        .fold(0, |sum: i32, [a, b, c, d]| sum.wrapping_add(product(*a, *c) + product(*b, *d)));
    // Of three, the last one meets the first; what is missing is zero.
    sum.wrapping_add(rest.get(2).map_or(0, |last| product(rest[0], *last)))
}

/// What happens to an accumulator on its way to the output.
#[derive(Debug, Clone)]
pub(crate) struct Epilogue {
    /// Per channel, with the input's zero point folded in; padded to whole blocks.
    pub(crate) bias: Vec<i32>,
    /// Per channel; padded to whole blocks.
    pub(crate) multipliers: Vec<f32>,
    pub(crate) zero_point: i32,
    pub(crate) low: i32,
    pub(crate) high: i32,
    /// Whether the product of any sum with its multiplier fits i32: no multiplier reaches 1.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for x86"))]
    pub(crate) fits: bool,
    /// A residual sum after the requantisation.
    pub(crate) sum: Option<Sum>,
}

/// A sum fused behind a convolution; it sees the convolution's rounded result, so no bit differs from two steps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sum {
    pub(crate) rule: AddRule,
    /// Which operand of the sum the convolution is.
    pub(crate) role: Role,
}

/// Operand of a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    First,
    Second,
}

impl Epilogue {
    /// Whether there is no residual sum and every product with a multiplier fits i32.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        self.sum.is_none() && self.fits
    }

    /// The rule, for one value; `other` is read only when there is a sum.
    #[inline(always)]
    pub(crate) fn apply(&self, acc: i32, channel: usize, other: impl Fn() -> u8) -> u8 {
        let acc = acc.wrapping_add(self.bias[channel]);
        let multiplier = self.multipliers[channel];
        let own =
            crate::numerics::requantise(acc, multiplier, self.zero_point, self.low, self.high);
        match &self.sum {
            None => own as u8,
            Some(Sum { rule, role: Role::First }) => {
                rule.apply(own, rule.element_b.widen(other())) as u8
            }
            Some(Sum { rule, role: Role::Second }) => {
                rule.apply(rule.element_a.widen(other()), own) as u8
            }
        }
    }
}

/// One multiplication: rows of a panel times the packed weights of a group.
pub(crate) struct Multiply<'a> {
    /// Gathered rows of inputs, or the arena itself where pixels can be taken as they lie.
    pub(crate) panel: Run<'a>,
    /// Values from one panel row to the next.
    pub(crate) panel_stride: usize,
    /// Where rows lie and of what they consist, unless the panel is one row behind the other.
    pub(crate) walk: Option<Walk<'a>>,
    pub(crate) weights: &'a PackedWeights,
    /// Which of the weights' channels; starts at a block.
    pub(crate) channels: Range<usize>,
    pub(crate) epilogue: &'a Epilogue,
    pub(crate) arena: &'a [Cell<u8>],
    /// Where each row's channels go.
    pub(crate) outputs: &'a Offsets,
    /// Where each row's other operand lies; as long as `outputs` when there is a sum.
    pub(crate) others: &'a Offsets,
}

impl Multiply<'_> {
    /// Panics unless panel, outputs and other operands lie where kernels of `T` values will touch.
    pub(crate) fn check<T>(&self) {
        let PackedWeights { channels, depth, values: weights, .. } = self.weights;
        let rows = self.outputs.len();
        let padded = channels.next_multiple_of(BLOCK);
        assert!(self.channels.start.is_multiple_of(BLOCK) && self.channels.end <= *channels);
        assert!(self.panel.as_ptr().cast::<T>().is_aligned());
        let reach = |rows: usize| rows.checked_sub(1).map_or(0, |last| last * self.panel_stride);
        let values = match self.walk {
            None => reach(rows) + depth,
            Some(Walk { spans, taps, .. }) => {
                assert!(taps.starts.len() * taps.run == *depth);
                assert!(spans.iter().map(|span| span.rows).sum::<usize>() == rows);
                let last = spans.iter().map(|span| span.first + reach(span.rows)).max();
                let tap = taps.starts.iter().max();
                last.zip(tap).map_or(0, |(last, tap)| last + tap + taps.run)
            }
        };
        assert!(values * size_of::<T>() <= self.panel.len());
        assert!(weights.len() >= padded * depth * size_of::<T>());
        assert!(self.epilogue.bias.len() >= padded && self.epilogue.multipliers.len() >= padded);
        assert!(self.outputs.greatest() + channels <= self.arena.len());
        if self.epilogue.sum.is_some() {
            assert!(self.others.len() == rows);
            assert!(self.others.greatest() + padded <= self.arena.len());
        }
    }
}
