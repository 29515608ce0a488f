//! What can be wrong with a graph, and with the buffers given to a run.

/// Why a graph was refused. The text names values and limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// Extents that do not fit together, or are out of range.
    #[error("shape: {0}")]
    Shape(String),
    /// A scale, zero point or multiplier without meaning.
    #[error("quantisation: {0}")]
    Quantisation(String),
    /// A kernel, stride, pad, group or weight count that does not fit.
    #[error("attribute: {0}")]
    Attribute(String),
    /// A tensor that is not of this graph.
    #[error("tensor {0} does not exist in this graph")]
    UnknownTensor(usize),
    /// `OCELLI_ISA` names an instruction set that does not exist or that this machine lacks.
    #[error("OCELLI_ISA={name}: this machine has {available}; set one of these or none")]
    InstructionSet {
        /// As set.
        name: String,
        /// Names to choose from.
        available: String,
    },
    /// The graph as a whole: nothing in or nothing out.
    #[error("graph: {0}")]
    Incomplete(&'static str),
}

/// Why a run brought no result. Nothing has been written then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The number of inputs or outputs is another than the graph's.
    #[error("{what}: {given} given, the graph has {expected}")]
    Count {
        /// `inputs` or `outputs`.
        what: &'static str,
        /// Number given.
        given: usize,
        /// Number in the graph.
        expected: usize,
    },
    /// A buffer of the wrong element type or length.
    #[error("{what} {index}: expected {expected} elements of {element}, given {given}")]
    Buffer {
        /// `input` or `output`.
        what: &'static str,
        /// Position.
        index: usize,
        /// Elements needed.
        expected: usize,
        /// `f32`, `u8` or `i8`.
        element: &'static str,
        /// What was given.
        given: String,
    },
    /// The caller stopped it.
    #[error("stopped behind step {step}")]
    Stopped {
        /// The last step that ran.
        step: usize,
    },
}
