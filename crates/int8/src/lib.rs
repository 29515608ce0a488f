//! Quantised CNN inference engine for CPUs. Knows neither ONNX nor tract.
//!
//! A [`GraphBuilder`] takes operators one at a time, checks them and gives a [`Graph`]; an [`Engine`] plans it once
//! (fusion, packed weights, one arena) and runs it without allocation. [`mod@reference`] is the plain truth that every
//! kernel and every fusion is tested against, byte for byte.
//!
//! # Numerics
//! Results are onnxruntime's QOperator results on x86 with AVX2 and FMA, bit for bit (checked against 1.31.1). All
//! arithmetic is f32 and i32 in the order given; *round* is to nearest, ties to even; *saturate* is to the range of
//! the output type; `zero` is a zero point.
//!
//! | operator | rule |
//! |---|---|
//! | Quantise | `saturate(round(x / scale) + zero)`; NaN gives the least value |
//! | Dequantise | `(q − zero) · scale` |
//! | Conv, FullyConnected | `acc = bias + Σ (x − x_zero) · w` in i32 (wrapping); `saturate(round(acc · m) + y_zero)` with `m = x_scale · w_scale / y_scale`, rounded to f32 after each operation |
//! | Add | `ra = a_scale / y_scale`, `rb = b_scale / y_scale`, `k = y_zero − fma(ra, a_zero, rb · b_zero)`; `saturate(round(fma(a, ra, fma(b, rb, k))))` on stored values: the zero point is inside the rounding |
//! | Mul | `saturate(round((a − a_zero)(b − b_zero) · (a_scale · b_scale / y_scale) + y_zero))`, multiplied and added in two roundings |
//! | MaxPool | the greatest stored value; padding never wins |
//! | AveragePool | real values summed row by row in f32, divided by the count, `saturate(round(mean / y_scale + y_zero))` |
//! | GlobalAveragePool | `saturate(round(Σ (x − x_zero) · m) + y_zero)` with `m = x_scale / (y_scale · pixels)` |
//! | Concat, Requantise, unary functions | a table of 256 entries: dequantise, function, quantise |
//! | ConvTranspose | as Conv: one convolution for each residue of the output's coordinates, interleaved |
//! | Resize, bilinear | on stored values in f32, horizontally and then vertically, cut towards zero |
//! | Resize, bilinear, between quantisations (QDQ) | on real values in f32, the four neighbours in reading order, then Quantise |
//! | Resize, nearest; Pad; Slice; Reshape | stored values are moved |
//! | any function (on the way out) | a table of 256 real values |
//! | Softmax (on the way out) | real values, `exp(x − max) / Σ`; the only operator that is not bit-exact |

mod border;
mod builder;
mod engine;
mod error;
mod execute;
mod graph;
#[expect(unsafe_code, reason = "SIMD kernels; every block says why it is sound")]
mod kernels;
mod numerics;
mod operator;
mod plan;
pub mod reference;
mod resize;
mod tensor;
mod transposed;
mod view;

pub use border::{Input, Output};
pub use builder::{GraphBuilder, MAX_PRODUCTS};
pub use engine::{Engine, Layer};
pub use error::{GraphError, RunError};
pub use graph::{Graph, TensorId};
pub use kernels::peak::multiply_at_peak;
pub use kernels::pool::Pool;
pub use operator::{
    Conv, ConvTranspose, Coordinates, CountPadding, FullyConnected, InputForm, Interpolation,
    NearestRounding, OutputForm, Pair, Resize, Window,
};
pub use tensor::{ElementType, Quantisation, Shape, Tensor};
