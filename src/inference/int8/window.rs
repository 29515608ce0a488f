//! Windows of convolutions and pools from ONNX attributes. The shapes are known and checked, so that only the pads that
//! `auto_pad` and `ceil_mode` mean must be worked out.

use ocelli_int8::Window;

use crate::inference::graph::Node;

/// The window of a node that slides `kernel` over `input` and so gives `output` (rows, columns); `None` where the
/// attributes do not give that.
pub(super) fn sliding(
    node: &Node,
    kernel: [usize; 2],
    input: [usize; 2],
    output: [usize; 2],
) -> Option<Window> {
    let (strides, dilations) = (pair(node, "strides")?, pair(node, "dilations")?);
    let mut pads = explicit_pads(node)?;
    for axis in 0..2 {
        let reach = kernel[axis].checked_sub(1)?.checked_mul(dilations[axis])? + 1;
        let covered =
            output[axis].checked_sub(1)?.checked_mul(strides[axis])?.checked_add(reach)?;
        match node.text("auto_pad").unwrap_or("NOTSET") {
            "SAME_UPPER" | "SAME_LOWER" => {
                let missing = covered.saturating_sub(input[axis]);
                let lower = node.text("auto_pad") == Some("SAME_LOWER");
                pads[axis] = if lower { missing.div_ceil(2) } else { missing / 2 };
                pads[axis + 2] = missing - pads[axis];
            }
            "VALID" => (pads[axis], pads[axis + 2]) = (0, 0),
            // A last window that `ceil_mode` lets reach beyond the padding.
            _ => {
                let padded = input[axis].checked_add(pads[axis])?;
                pads[axis + 2] = pads[axis + 2].max(covered.saturating_sub(padded));
            }
        }
    }
    Some(Window { kernel, strides, dilations, pads })
}

/// The window of a ConvTranspose from `input` to `output`.
pub(super) fn transposed(
    node: &Node,
    kernel: [usize; 2],
    input: [usize; 2],
    output: [usize; 2],
) -> Option<Window> {
    let (strides, dilations) = (pair(node, "strides")?, pair(node, "dilations")?);
    let mut pads = explicit_pads(node)?;
    let automatic = node.text("auto_pad").unwrap_or("NOTSET");
    if dilations != [1, 1] {
        return None;
    }
    if automatic != "NOTSET" || node.ints("output_shape").is_some() {
        let extra =
            node.ints("output_padding").is_some_and(|list| list.iter().any(|pad| *pad != 0));
        if extra || !matches!(automatic, "NOTSET" | "SAME_UPPER" | "SAME_LOWER") {
            return None;
        }
        for axis in 0..2 {
            let whole = (input[axis] - 1).checked_mul(strides[axis])?.checked_add(kernel[axis])?;
            let cut = whole.checked_sub(output[axis])?;
            // The larger half goes to the side that the mode names.
            let lower = automatic == "SAME_LOWER" || automatic == "NOTSET";
            pads[axis] = if lower { cut.div_ceil(2) } else { cut / 2 };
            pads[axis + 2] = cut - pads[axis];
        }
    }
    Some(Window { kernel, strides, dilations, pads })
}

/// Two numbers above 0; one each where the attribute is left out.
fn pair(node: &Node, name: &str) -> Option<[usize; 2]> {
    let Some(list) = node.ints(name) else { return Some([1; 2]) };
    let list: Vec<_> = list.iter().filter_map(|value| usize::try_from(*value).ok()).collect();
    <[usize; 2]>::try_from(list).ok().filter(|pair| !pair.contains(&0))
}

fn explicit_pads(node: &Node) -> Option<[usize; 4]> {
    let Some(list) = node.ints("pads") else { return Some([0; 4]) };
    let list: Vec<_> = list.iter().filter_map(|value| usize::try_from(*value).ok()).collect();
    list.try_into().ok()
}
