//! Functions of one real value, as onnxruntime computes the tables of its quantised operators.

use super::graph::Node;

/// What a node computes of each value of its first input, where that is all it does.
pub(in crate::inference) fn function(node: &Node) -> Option<Box<dyn Fn(f32) -> f32>> {
    let parameter = |name: &str, default: f32| node.float(name).unwrap_or(default);
    Some(match node.op.as_str() {
        "Relu" => Box::new(|x: f32| x.max(0.0)),
        "LeakyRelu" => {
            let alpha = parameter("alpha", 0.01);
            Box::new(move |x| if x >= 0.0 { x } else { alpha * x })
        }
        "Sigmoid" => Box::new(|x: f32| 1.0 / (1.0 + (-x).exp())),
        "Tanh" => Box::new(f32::tanh),
        "HardSigmoid" => {
            let (alpha, beta) = (parameter("alpha", 0.2), parameter("beta", 0.5));
            Box::new(move |x: f32| (alpha * x + beta).clamp(0.0, 1.0))
        }
        "HardSwish" => Box::new(|x: f32| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
        _ => return None,
    })
}
