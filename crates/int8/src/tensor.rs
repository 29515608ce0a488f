//! What a tensor of a quantised graph is: shape in NHWC, element type, scale and zero point. No data.

use crate::GraphError;

/// Most elements of one tensor, and the greatest extent of one axis.
pub(crate) const MAX_ELEMENTS: usize = 1 << 28;
const MAX_EXTENT: usize = 1 << 20;

/// Extents of a tensor: images, rows, columns, channels. Stored in this order, channels innermost.
///
/// ```
/// # use ocelli_int8::Shape;
/// let shape = Shape::new(1, 224, 224, 3)?;
/// assert_eq!(shape.elements(), 150_528);
/// # Ok::<(), ocelli_int8::GraphError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Images in the batch.
    pub n: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl Shape {
    /// A picture-like tensor, N×H×W×C.
    ///
    /// # Errors
    /// [`GraphError::Shape`] when an extent is zero or the tensor is larger than 2²⁸ elements.
    pub fn new(n: usize, h: usize, w: usize, c: usize) -> Result<Self, GraphError> {
        let elements = [n, h, w, c].iter().try_fold(1usize, |product, &extent| {
            (1..=MAX_EXTENT).contains(&extent).then(|| product.checked_mul(extent)).flatten()
        });
        match elements {
            Some(elements) if elements <= MAX_ELEMENTS => Ok(Self { n, h, w, c }),
            _ => Err(GraphError::Shape(format!(
                "{n}x{h}x{w}x{c} (NHWC) is empty or too large; at most 2^28 elements"
            ))),
        }
    }

    /// A vector per image, N×C.
    ///
    /// # Errors
    /// As [`Shape::new`].
    pub fn vector(n: usize, c: usize) -> Result<Self, GraphError> {
        Self::new(n, 1, 1, c)
    }

    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.n * self.h * self.w * self.c
    }

    /// Rows times columns.
    #[must_use]
    pub fn pixels(&self) -> usize {
        self.h * self.w
    }

    /// Index of an element in NHWC order.
    pub(crate) fn index(&self, n: usize, y: usize, x: usize, c: usize) -> usize {
        ((n * self.h + y) * self.w + x) * self.c + c
    }

    /// Index of an element in NCHW order.
    pub(crate) fn index_nchw(&self, n: usize, y: usize, x: usize, c: usize) -> usize {
        ((n * self.c + c) * self.h + y) * self.w + x
    }
}

/// Type of a quantised element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    /// 0 to 255.
    U8,
    /// −128 to 127, stored in two's complement.
    S8,
}

impl ElementType {
    /// Least and greatest value.
    #[must_use]
    pub fn range(self) -> (i32, i32) {
        match self {
            Self::U8 => (0, 255),
            Self::S8 => (-128, 127),
        }
    }

    /// Value of a stored byte.
    #[inline(always)]
    pub(crate) fn widen(self, byte: u8) -> i32 {
        match self {
            Self::U8 => i32::from(byte),
            Self::S8 => i32::from(byte as i8),
        }
    }
}

/// How real values stand in a tensor: `real = scale · (stored − zero_point)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantisation {
    element: ElementType,
    scale: f32,
    zero_point: i32,
}

impl Quantisation {
    /// Checks and keeps the parameters.
    ///
    /// # Errors
    /// [`GraphError::Quantisation`] when the scale is not a positive normal number or the zero point is no value of
    /// the element type.
    pub fn new(element: ElementType, scale: f32, zero_point: i32) -> Result<Self, GraphError> {
        let (low, high) = element.range();
        if !scale.is_normal() || scale < 0.0 {
            return Err(GraphError::Quantisation(format!("scale {scale} is not positive")));
        }
        if !(low..=high).contains(&zero_point) {
            return Err(GraphError::Quantisation(format!(
                "zero point {zero_point} is outside {low}..={high}"
            )));
        }
        Ok(Self { element, scale, zero_point })
    }

    /// Type of the stored elements.
    #[must_use]
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// Size of one step.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// Stored value that means zero.
    #[must_use]
    pub fn zero_point(&self) -> i32 {
        self.zero_point
    }

    /// Real values that are the stored ones.
    pub(crate) fn plain(element: ElementType) -> Self {
        Self { element, scale: 1.0, zero_point: 0 }
    }

    /// Least and greatest stored value.
    pub(crate) fn range(&self) -> (i32, i32) {
        self.element.range()
    }

    /// The byte that means zero.
    pub(crate) fn zero_byte(&self) -> u8 {
        self.zero_point as u8
    }
}

/// One tensor of a graph.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tensor {
    /// Extents.
    pub shape: Shape,
    /// Element type, scale, zero point.
    pub quantisation: Quantisation,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_empty_and_huge_shapes() {
        for (n, h, w, c) in [(0, 1, 1, 1), (1, 1, 1, 0), (1 << 20, 1 << 20, 1 << 20, 1 << 20)] {
            assert!(matches!(Shape::new(n, h, w, c), Err(GraphError::Shape(_))), "{n}x{h}x{w}x{c}");
        }
    }

    #[test]
    fn refuses_scales_and_zero_points_without_meaning() {
        for (scale, zero) in [(0.0, 0), (-1.0, 0), (f32::NAN, 0), (f32::INFINITY, 0), (1.0, 256)] {
            let wrong = Quantisation::new(ElementType::U8, scale, zero);
            assert!(matches!(wrong, Err(GraphError::Quantisation(_))), "{scale} {zero}");
        }
        assert!(Quantisation::new(ElementType::S8, 1.0, 128).is_err());
    }
}
