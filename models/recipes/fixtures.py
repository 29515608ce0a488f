"""Writes the test fixtures: a tiny classifier package and tiny QOperator graphs with recorded tensors. Test-only.

Use: fixtures.py TESTS_FIXTURES
Weights and pictures are drawn from fixed seeds; nothing here means anything but that arithmetic is right.
"""

import logging
import os
import sys
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat
from PIL import Image

import golden
from preparation import prepare
from quantise import quantise
from reference import Reference, open_session

SEED = 7
SIDE, CLASSES = 32, 10
CALIBRATION_ROUNDS = 8
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MANIFEST = """\
# Test-only: random weights from a fixed seed, see models/recipes/fixtures.py.
format = 1
name = "tiny-classifier"
version = "0.1.0"
task = "classification"
model = "model.onnx"
labels = "labels.txt"
license = "Apache-2.0"

[input]
tensor = "input"
width = 32
height = 32
color = "rgb"
resize = "stretch"
mean = [127.0, 127.0, 127.0]
std = [128.0, 128.0, 128.0]

[head]
kind = "softmax"

[[golden]]
image = "golden/shapes.jpg"
expect = "golden/shapes.json"
score_tolerance = 0.1
"""


class Net:
    """A float graph under construction."""

    def __init__(self, side, channels):
        self.random = np.random.RandomState(SEED)
        self.input_shape = [1, channels, side, side]
        self.nodes, self.constants, self.outputs = [], [], []

    def weights(self, name, *shape, gain=1.0):
        fan_in = int(np.prod(shape[1:])) or 1
        values = self.random.randn(*shape) * gain * np.sqrt(2 / fan_in)
        self.constants.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def constant(self, name, values):
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def add(self, operator, inputs, output, **attributes):
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def conv(self, source, output, channels_in, channels_out, size=3, stride=1, group=1):
        weight = self.weights(output + "_w", channels_out, channels_in // group, size, size)
        bias = self.weights(output + "_b", channels_out, gain=0.1)
        return self.add("Conv", [source, weight, bias], output, kernel_shape=[size, size], strides=[stride, stride],
                        pads=[size // 2] * 4, group=group)

    def output(self, name, shape):
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def save(self, path):
        inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, self.input_shape)]
        graph = helper.make_graph(self.nodes, "test_only", inputs, self.outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], producer_name="fixtures")
        model.ir_version = 8
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)


class Rows(CalibrationDataReader):
    """Feeds each tensor once."""

    def __init__(self, tensors):
        self.inputs = ({"input": tensor} for tensor in tensors)

    def get_next(self):
        return next(self.inputs, None)


def classifier():
    """Convolutions, a depthwise one, a shortcut, pooling and a fully connected layer."""
    net = Net(SIDE, 3)
    net.add("Relu", [net.conv("input", "stem", 3, 8, stride=2)], "stem_relu")
    net.add("Relu", [net.conv("stem_relu", "depthwise", 8, 8, group=8)], "depthwise_relu")
    net.conv("depthwise_relu", "project", 8, 8, size=1)
    net.add("Add", ["project", "stem_relu"], "shortcut")
    net.add("Relu", [net.conv("shortcut", "widen", 8, 16, stride=2)], "widen_relu")
    net.add("GlobalAveragePool", ["widen_relu"], "pool")
    net.add("Flatten", ["pool"], "flat", axis=1)
    net.add("Gemm", ["flat", net.weights("fc_w", CLASSES, 16, gain=3.0), net.weights("fc_b", CLASSES, gain=0.1)],
            "logits", transB=1)
    net.output("logits", [1, CLASSES])
    return net


def every_operator():
    """Each operator that onnxruntime's quantiser turns into one of its own QLinear forms, used once or more."""
    net = Net(16, 3)
    net.add("LeakyRelu", [net.conv("input", "stem", 3, 8, stride=2)], "leaky", alpha=0.1)
    net.add("Sigmoid", [net.conv("leaky", "gate_conv", 8, 8, size=1)], "gate")
    net.add("Mul", ["leaky", "gate"], "gated")
    net.add("Add", ["gated", "leaky"], "sum")
    net.add("Relu", [net.conv("sum", "depthwise", 8, 8, group=8)], "depthwise_relu")
    net.add("Concat", ["sum", "depthwise_relu", "gated"], "joined", axis=1)
    net.add("AveragePool", ["joined"], "average", kernel_shape=[2, 2], strides=[2, 2])
    net.add("MaxPool", ["average"], "largest", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    scales = net.constant("up_scales", np.array([1, 1, 2, 2], np.float32))
    net.add("Resize", ["largest", "", scales], "larger", mode="nearest", coordinate_transformation_mode="asymmetric",
            nearest_mode="floor")
    net.conv("larger", "map", 24, 4, size=1)
    net.output("map", [1, 4, 8, 8])
    net.add("GlobalAveragePool", ["average"], "pool")
    net.add("Flatten", ["pool"], "flat", axis=1)
    net.add("Gemm", ["flat", net.weights("fc_w", 12, 24), net.weights("fc_b", 12, gain=0.1)], "fc", transB=1)
    net.add("MatMul", ["fc", net.weights("matmul_w", 12, CLASSES)], "logits")
    net.output("logits", [1, CLASSES])
    return net


def softmax():
    """An operator of attention rather than of vision nets."""
    net = Net(8, 3)
    net.conv("input", "stem", 3, 4)
    net.add("Softmax", ["stem"], "attention", axis=1)
    net.conv("attention", "map", 4, 2, size=1)
    net.output("map", [1, 2, 8, 8])
    return net


def picture(random, side):
    """Coloured rectangles on a gradient: survives JPEG and resampling."""
    rows = np.linspace(40, 215, side)
    pixels = np.stack([np.add.outer(rows * a, rows * (1 - a)) for a in random.rand(3)], 2)
    for _ in range(4):
        left, top = random.randint(0, side * 3 // 4, 2)
        pixels[top: top + side // 3, left: left + side // 3] = random.randint(0, 256, 3)
    return Image.fromarray(pixels.round().astype(np.uint8))


def write_classifier(folder):
    os.makedirs(os.path.join(folder, "golden"), exist_ok=True)
    with open(os.path.join(folder, "manifest.toml"), "w", newline="\n") as file:
        file.write(MANIFEST)
    with open(os.path.join(folder, "labels.txt"), "w", newline="\n") as file:
        file.writelines(digit + "\n" for digit in DIGITS)
    random = np.random.RandomState(SEED)
    picture(random, 96).save(os.path.join(folder, "golden", "shapes.jpg"), quality=90)
    given = {"tensor": "input", "width": SIDE, "height": SIDE, "color": "rgb", "resize": "stretch",
             "mean": [127.0] * 3, "std": [128.0] * 3}
    with tempfile.TemporaryDirectory() as scratch:
        tensors = [prepare(os.path.join(folder, "golden", "shapes.jpg"), given)[0]]
        for index in range(CALIBRATION_ROUNDS):
            path = os.path.join(scratch, f"{index}.png")
            picture(random, 96).save(path)
            tensors.append(prepare(path, given)[0])
        source = os.path.join(scratch, "float.onnx")
        classifier().save(source)
        quantise(source, os.path.join(folder, "model.onnx"), QuantFormat.QDQ, Rows(tensors))
    golden.write_golden(Reference(folder), folder, "")


def write_graph(net, stem):
    """STEM.onnx in QOperator form, STEM-input.npy, and what onnxruntime makes of it in STEM-<output>.npy."""
    random = np.random.RandomState(SEED)
    tensors = [random.randn(*net.input_shape).astype(np.float32) for _ in range(CALIBRATION_ROUNDS)]
    with tempfile.TemporaryDirectory() as scratch:
        source = os.path.join(scratch, "float.onnx")
        net.save(source)
        quantise(source, stem + ".onnx", QuantFormat.QOperator, Rows(tensors))
    session = open_session(stem + ".onnx")
    np.save(stem + "-input.npy", tensors[0])
    for output, values in zip(session.get_outputs(), session.run(None, {"input": tensors[0]})):
        np.save(f"{stem}-{output.name}.npy", values)
    print(os.path.basename(stem), *sorted({node.op_type for node in onnx.load(stem + ".onnx").graph.node}))


def write_relu(path):
    """The whole of what the example plug-in can run."""
    border = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 6]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], name="relu")], "relu", border[:1], border[1:])
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8, producer_name="ocelli"), path)


def main(folder):
    logging.disable(logging.WARNING)  # the quantiser's advice to pre-process
    write_classifier(os.path.join(folder, "tiny-classifier"))
    write_graph(every_operator(), os.path.join(folder, "tiny-qop"))
    write_graph(softmax(), os.path.join(folder, "tiny-qop-softmax"))
    write_relu(os.path.join(folder, "relu.onnx"))


if __name__ == "__main__":
    main(*sys.argv[1:])
