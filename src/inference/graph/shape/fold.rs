//! Arithmetic on the small integer tensors that describe shapes.

use super::Scope;
use crate::inference::graph::constant::integers;

/// Longest tensor that is taken for a description of shapes.
const LONGEST: usize = 64;

/// The value of an integer tensor that follows from shapes and constants alone.
pub(super) fn fold(scope: &Scope<'_>) -> Option<Vec<i64>> {
    let node = scope.node;
    let input = |place: usize| {
        let tensor = &scope.tensors[node.input(place)?];
        (tensor.len() <= LONGEST).then(|| tensor.constant().and_then(integers)).flatten()
    };
    let length = |length: &usize| i64::try_from(*length).ok();
    let is_list = |place| scope.shape(place).is_ok_and(|shape| shape.len() == 1);
    match node.op.as_str() {
        "Shape" => scope.shape(0).ok()?.iter().map(length).collect(),
        "Size" => Some(vec![length(&scope.tensor(0).ok()?.len())?]),
        "Identity" | "Squeeze" | "Unsqueeze" | "Reshape" | "Cast" => input(0),
        "Concat" => {
            let parts = (0..node.inputs.len()).map(input).collect::<Option<Vec<_>>>()?;
            is_list(0).then(|| parts.concat())
        }
        "Gather" => {
            let values = input(0)?;
            let pick = |index: &i64| {
                let index = if *index < 0 { index + length(&values.len())? } else { *index };
                values.get(usize::try_from(index).ok()?).copied()
            };
            is_list(0).then(|| input(1)?.iter().map(pick).collect()).flatten()
        }
        "Slice" => is_list(0).then(|| fold_slice(scope, &input(0)?)).flatten(),
        "Add" => combine(&input(0)?, &input(1)?, i64::checked_add),
        "Sub" => combine(&input(0)?, &input(1)?, i64::checked_sub),
        "Mul" => combine(&input(0)?, &input(1)?, i64::checked_mul),
        // Rust and ONNX both cut towards zero.
        "Div" => combine(&input(0)?, &input(1)?, i64::checked_div),
        _ => None,
    }
}

fn fold_slice(scope: &Scope<'_>, values: &[i64]) -> Option<Vec<i64>> {
    let one = |list: Option<Vec<i64>>| list.and_then(|list| list.first().copied());
    let start = one(scope.list_or_attribute(1, "starts").ok()?)?;
    let end = one(scope.list_or_attribute(2, "ends").ok()?)?;
    let step = one(scope.list(4).ok()?).unwrap_or(1);
    let length = i64::try_from(values.len()).ok()?;
    let wrap = |at: i64| {
        let at = if at < 0 { at.saturating_add(length) } else { at };
        usize::try_from(at.clamp(0, length)).ok()
    };
    let range = wrap(start)?..wrap(end)?;
    (step == 1).then(|| values.get(range)).flatten().map(<[i64]>::to_vec)
}

fn combine(a: &[i64], b: &[i64], apply: fn(i64, i64) -> Option<i64>) -> Option<Vec<i64>> {
    let at = |list: &[i64], place: usize| {
        if list.len() == 1 { list.first() } else { list.get(place) }.copied()
    };
    (0..a.len().max(b.len())).map(|place| apply(at(a, place)?, at(b, place)?)).collect()
}
