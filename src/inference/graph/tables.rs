//! Which operators exist for us, and what is known of each by name alone.

/// Highest operator set of the default domain that was read when this was written; lower bound: Slice and Resize take inputs.
pub(super) const OPSETS: std::ops::RangeInclusive<i64> = 9..=23;

/// Domains whose operators we know.
pub(super) fn known_domain(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx" | "com.microsoft")
}

/// One input that decides the output's shape and type.
pub(super) const SAME_SHAPE: &[&str] = &[
    "Abs",
    "BatchNormalization",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "LRN",
    "Mish",
    "Neg",
    "PRelu",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softmax",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Tanh",
    "Not",
];

/// Inputs broadcast together.
pub(super) const BROADCAST: &[&str] =
    &["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "Mod", "And", "Or"];

/// Inputs broadcast together into a bool.
pub(super) const COMPARE: &[&str] = &["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"];

/// Reductions over axes.
pub(super) const REDUCE: &[&str] = &[
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSumExp",
    "ReduceLogSum",
];

/// Values are moved or dropped, never computed: quantisation passes through.
pub(super) const MOVES_VALUES: &[&str] = &[
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "GlobalMaxPool",
    "Identity",
    "MaxPool",
    "Reshape",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
];

/// The plain operator behind onnxruntime's quantised ones.
pub(super) fn plain_of(op: &str) -> Option<&'static str> {
    Some(match op {
        "QLinearConv" => "Conv",
        "QLinearMatMul" => "MatMul",
        "QGemm" => "Gemm",
        "QLinearAdd" => "Add",
        "QLinearMul" => "Mul",
        "QLinearSigmoid" => "Sigmoid",
        "QLinearLeakyRelu" => "LeakyRelu",
        "QLinearConcat" => "Concat",
        "QLinearAveragePool" => "AveragePool",
        "QLinearGlobalAveragePool" => "GlobalAveragePool",
        "QLinearReduceMean" => "ReduceMean",
        "QLinearSoftmax" => "Softmax",
        _ => return None,
    })
}
