//! Tensors that pass between preprocessing, delegates and heads: shape, element type, quantisation, values.
//!
//! Row-major, batch first. No arithmetic here.

use std::fmt;

/// Type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// 32-bit float.
    F32,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// Signed 32-bit integer.
    I32,
    /// Signed 64-bit integer.
    I64,
}

impl fmt::Display for ElementType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::I32 => "i32",
            Self::I64 => "i64",
        })
    }
}

/// Affine quantisation of a whole tensor: `real = scale * (value - zero_point)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantisation {
    /// Real value of one step, above 0.
    pub scale: f32,
    /// Value that stands for 0.
    pub zero_point: i32,
}

/// Name, type and shape of a tensor at the border of a model or segment.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Name in the graph.
    pub name: String,
    /// Type of the elements.
    pub element: ElementType,
    /// Length of each dimension.
    pub shape: Vec<usize>,
    /// How integers stand for reals, where they do.
    pub quantisation: Option<Quantisation>,
}

impl TensorSpec {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor has no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Values of a tensor, owned.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorBuffer {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// Unsigned bytes.
    U8(Vec<u8>),
    /// Signed bytes.
    I8(Vec<i8>),
    /// 32-bit integers.
    I32(Vec<i32>),
    /// 64-bit integers.
    I64(Vec<i64>),
}

impl TensorBuffer {
    /// `len` zeros.
    #[must_use]
    pub fn zeros(element: ElementType, len: usize) -> Self {
        match element {
            ElementType::F32 => Self::F32(vec![0.0; len]),
            ElementType::U8 => Self::U8(vec![0; len]),
            ElementType::I8 => Self::I8(vec![0; len]),
            ElementType::I32 => Self::I32(vec![0; len]),
            ElementType::I64 => Self::I64(vec![0; len]),
        }
    }

    /// The values, borrowed.
    #[must_use]
    pub fn as_values(&self) -> Values<'_> {
        match self {
            Self::F32(values) => Values::F32(values),
            Self::U8(values) => Values::U8(values),
            Self::I8(values) => Values::I8(values),
            Self::I32(values) => Values::I32(values),
            Self::I64(values) => Values::I64(values),
        }
    }

    /// The values, borrowed for writing.
    #[must_use]
    pub fn as_values_mut(&mut self) -> ValuesMut<'_> {
        match self {
            Self::F32(values) => ValuesMut::F32(values),
            Self::U8(values) => ValuesMut::U8(values),
            Self::I8(values) => ValuesMut::I8(values),
            Self::I32(values) => ValuesMut::I32(values),
            Self::I64(values) => ValuesMut::I64(values),
        }
    }
}

/// Values of a tensor, borrowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Values<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// Unsigned bytes.
    U8(&'a [u8]),
    /// Signed bytes.
    I8(&'a [i8]),
    /// 32-bit integers.
    I32(&'a [i32]),
    /// 64-bit integers.
    I64(&'a [i64]),
}

impl<'a> Values<'a> {
    /// Type of the elements.
    #[must_use]
    pub fn element(&self) -> ElementType {
        match self {
            Self::F32(_) => ElementType::F32,
            Self::U8(_) => ElementType::U8,
            Self::I8(_) => ElementType::I8,
            Self::I32(_) => ElementType::I32,
            Self::I64(_) => ElementType::I64,
        }
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::U8(values) => values.len(),
            Self::I8(values) => values.len(),
            Self::I32(values) => values.len(),
            Self::I64(values) => values.len(),
        }
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As floats, whatever the element type.
    #[must_use]
    pub fn to_reals(&self) -> Vec<f32> {
        match self {
            Self::F32(values) => values.to_vec(),
            Self::U8(values) => values.iter().copied().map(f32::from).collect(),
            Self::I8(values) => values.iter().copied().map(f32::from).collect(),
            Self::I32(values) => values.iter().map(|value| *value as f32).collect(),
            Self::I64(values) => values.iter().map(|value| *value as f32).collect(),
        }
    }

    /// The floats; `None` for another element type.
    #[must_use]
    pub fn as_f32(&self) -> Option<&'a [f32]> {
        match *self {
            Self::F32(values) => Some(values),
            _ => None,
        }
    }
}

/// Values of a tensor, borrowed for writing.
#[derive(Debug, PartialEq)]
pub enum ValuesMut<'a> {
    /// 32-bit floats.
    F32(&'a mut [f32]),
    /// Unsigned bytes.
    U8(&'a mut [u8]),
    /// Signed bytes.
    I8(&'a mut [i8]),
    /// 32-bit integers.
    I32(&'a mut [i32]),
    /// 64-bit integers.
    I64(&'a mut [i64]),
}

impl ValuesMut<'_> {
    /// The values, borrowed for reading.
    #[must_use]
    pub fn as_values(&self) -> Values<'_> {
        match self {
            Self::F32(values) => Values::F32(values),
            Self::U8(values) => Values::U8(values),
            Self::I8(values) => Values::I8(values),
            Self::I32(values) => Values::I32(values),
            Self::I64(values) => Values::I64(values),
        }
    }
}

/// A tensor to read: shape and values, `values.len()` equal to the product of `shape`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorView<'a> {
    /// Length of each dimension.
    pub shape: &'a [usize],
    /// Values, row-major.
    pub values: Values<'a>,
}

/// A tensor to write: shape and values, as [`TensorView`].
#[derive(Debug, PartialEq)]
pub struct TensorViewMut<'a> {
    /// Length of each dimension.
    pub shape: &'a [usize],
    /// Values, row-major.
    pub values: ValuesMut<'a>,
}

/// A tensor with its specification: a reusable buffer of a fixed shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    spec: TensorSpec,
    buffer: TensorBuffer,
}

impl Tensor {
    /// A tensor of zeros.
    #[must_use]
    pub fn zeros(spec: TensorSpec) -> Self {
        let buffer = TensorBuffer::zeros(spec.element, spec.len());
        Self { spec, buffer }
    }

    /// Name, type and shape.
    #[must_use]
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// For reading.
    #[must_use]
    pub fn view(&self) -> TensorView<'_> {
        TensorView { shape: &self.spec.shape, values: self.buffer.as_values() }
    }

    /// Takes over the values of a tensor of the same type and length.
    ///
    /// # Panics
    /// When it is another one.
    pub fn copy_from(&mut self, other: &Self) {
        match (&mut self.buffer, &other.buffer) {
            (TensorBuffer::F32(to), TensorBuffer::F32(from)) => to.copy_from_slice(from),
            (TensorBuffer::U8(to), TensorBuffer::U8(from)) => to.copy_from_slice(from),
            (TensorBuffer::I8(to), TensorBuffer::I8(from)) => to.copy_from_slice(from),
            (TensorBuffer::I32(to), TensorBuffer::I32(from)) => to.copy_from_slice(from),
            (TensorBuffer::I64(to), TensorBuffer::I64(from)) => to.copy_from_slice(from),
            _ => panic!("`{}` is of another type than `{}`", other.spec.name, self.spec.name),
        }
    }

    /// For writing.
    #[must_use]
    pub fn view_mut(&mut self) -> TensorViewMut<'_> {
        TensorViewMut { shape: &self.spec.shape, values: self.buffer.as_values_mut() }
    }
}
