"""Nets without public weights here, for measuring speed: known shapes, random weights, int8 by onnxruntime's quantiser.

Use: shapes.py FOLDER [NAME ...]
Writes FOLDER/<name>.onnx (QDQ, u8 activations, s8 weights per channel) for mobilenetv2-224, mobilenetv3-small-224,
resnet18-224, resnet50-224 and yolov8n-320 (backbone, neck and convolutional head). Definitions follow torchvision's and
Ultralytics'; batch norms are folded away. Not for shipping: they recognise nothing.
"""

import os
import sys
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static


class Net:
    """A graph under construction; every method returns the name of a tensor."""

    def __init__(self, size, seed=7):
        self.random = np.random.default_rng(seed)
        self.nodes, self.constants = [], []
        self.channels = {"input": 3}
        self.size = size

    def constant(self, values):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def node(self, op, inputs, channels, **attributes):
        name = f"t{len(self.nodes)}_{op.lower()}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        self.channels[name] = channels
        return name

    def conv(self, x, channels, kernel=1, stride=1, groups=1, activation=None):
        depth = self.channels[x] // groups * kernel * kernel
        weights = self.random.normal(0, (2 / depth) ** 0.5, (channels, self.channels[x] // groups, kernel, kernel))
        bias = self.random.normal(0, 0.1, channels)
        inputs = [x, self.constant(weights.astype(np.float32)), self.constant(bias.astype(np.float32))]
        pad = kernel // 2
        y = self.node(
            "Conv", inputs, channels, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=groups
        )
        return activation(y) if activation else y

    def relu(self, x):
        return self.node("Relu", [x], self.channels[x])

    def relu6(self, x):
        low, high = self.constant(np.float32(0)), self.constant(np.float32(6))
        return self.node("Clip", [x, low, high], self.channels[x])

    def silu(self, x):
        return self.node("Mul", [x, self.node("Sigmoid", [x], self.channels[x])], self.channels[x])

    def hard_sigmoid(self, x):
        return self.node("HardSigmoid", [x], self.channels[x], alpha=1 / 6, beta=0.5)

    def hard_swish(self, x):
        return self.node("Mul", [x, self.hard_sigmoid(x)], self.channels[x])

    def add(self, a, b):
        return self.node("Add", [a, b], self.channels[a])

    def concat(self, parts):
        return self.node("Concat", parts, sum(self.channels[part] for part in parts), axis=1)

    def pool(self, x, kernel, stride):
        return self.node(
            "MaxPool", [x], self.channels[x], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4
        )

    def classifier(self, x, widths):
        x = self.node("GlobalAveragePool", [x], self.channels[x])
        x = self.node("Flatten", [x], self.channels[x], axis=1)
        for place, width in enumerate(widths):
            if place:
                x = self.hard_swish(x)
            weights = self.random.normal(0, (1 / self.channels[x]) ** 0.5, (width, self.channels[x]))
            inputs = [x, self.constant(weights.astype(np.float32)), self.constant(np.zeros(width, np.float32))]
            x = self.node("Gemm", inputs, width, transB=1)
        return x

    def model(self, outputs):
        shape = [1, 3, self.size, self.size]
        graph = helper.make_graph(
            self.nodes,
            "shapes",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        model = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(model)
        return model


def mobilenetv2():
    net = Net(224)
    x = net.conv("input", 32, 3, 2, activation=net.relu6)
    for expand, channels, count, stride in [
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ]:  # fmt: skip
        for place in range(count):
            before, step = x, stride if place == 0 else 1
            wide = net.channels[x] * expand
            if expand > 1:
                x = net.conv(x, wide, activation=net.relu6)
            x = net.conv(net.conv(x, wide, 3, step, wide, net.relu6), channels)
            if step == 1 and net.channels[before] == channels:
                x = net.add(before, x)
    return net.model([net.classifier(net.conv(x, 1280, activation=net.relu6), [1000])])


def mobilenetv3_small():
    net = Net(224)
    x = net.conv("input", 16, 3, 2, activation=net.hard_swish)
    for kernel, wide, channels, squeeze, hard, stride in [
        (3, 16, 16, True, False, 2), (3, 72, 24, False, False, 2), (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2), (5, 240, 40, True, True, 1), (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1), (5, 144, 48, True, True, 1), (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1), (5, 576, 96, True, True, 1),
    ]:  # fmt: skip
        before, activation = x, net.hard_swish if hard else net.relu
        if wide != net.channels[x]:
            x = net.conv(x, wide, activation=activation)
        x = net.conv(x, wide, kernel, stride, wide, activation)
        if squeeze:
            narrow = max(8, (wide // 4 + 4) // 8 * 8)
            gate = net.node("GlobalAveragePool", [x], wide)
            gate = net.conv(net.conv(gate, narrow, activation=net.relu), wide, activation=net.hard_sigmoid)
            x = net.node("Mul", [gate, x], wide)
        x = net.conv(x, channels)
        if stride == 1 and net.channels[before] == channels:
            x = net.add(x, before)
    return net.model([net.classifier(net.conv(x, 576, activation=net.hard_swish), [1024, 1000])])


def resnet(counts, bottleneck):
    net = Net(224)
    x = net.pool(net.conv("input", 64, 7, 2, activation=net.relu), 3, 2)
    for stage, count in enumerate(counts):
        width = 64 << stage
        for place in range(count):
            before, stride = x, 2 if stage and place == 0 else 1
            if bottleneck:
                x = net.conv(net.conv(x, width, activation=net.relu), width, 3, stride, activation=net.relu)
                x = net.conv(x, 4 * width)
            else:
                x = net.conv(net.conv(x, width, 3, stride, activation=net.relu), width, 3)
            if stride > 1 or net.channels[before] != net.channels[x]:
                before = net.conv(before, net.channels[x], 1, stride)
            x = net.relu(net.add(x, before))
    return net.model([net.classifier(x, [1000])])


def yolov8n():
    net = Net(320)

    def conv(x, channels, kernel=3, stride=1):
        return net.conv(x, channels, kernel, stride, activation=net.silu)

    def c2f(x, channels, count, shortcut):
        half, x = channels // 2, conv(x, channels, 1)
        names = [f"{x}_a", f"{x}_b"]
        sizes = net.constant(np.array([half, half], np.int64))
        net.nodes.append(helper.make_node("Split", [x, sizes], names, name=f"{x}_split", axis=1))
        net.channels.update(dict.fromkeys(names, half))
        for _ in range(count):
            y = conv(conv(names[-1], half), half)
            names.append(net.add(names[-1], y) if shortcut else y)
        return conv(net.concat(names), channels, 1)

    def up(x):
        scales = net.constant(np.array([1, 1, 2, 2], np.float32))
        return net.node(
            "Resize", [x, "", scales], net.channels[x], mode="nearest", nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )  # fmt: skip

    x = c2f(conv(conv("input", 16, 3, 2), 32, 3, 2), 32, 1, True)
    p3 = c2f(conv(x, 64, 3, 2), 64, 2, True)
    p4 = c2f(conv(p3, 128, 3, 2), 128, 2, True)
    x = conv(c2f(conv(p4, 256, 3, 2), 256, 1, True), 128, 1)
    pools = [x]
    for _ in range(3):
        pools.append(net.pool(pools[-1], 5, 1))
    p5 = conv(net.concat(pools), 256, 1)
    n4 = c2f(net.concat([up(p5), p4]), 128, 1, False)
    n3 = c2f(net.concat([up(n4), p3]), 64, 1, False)
    n4 = c2f(net.concat([conv(n3, 64, 3, 2), n4]), 128, 1, False)
    n5 = c2f(net.concat([conv(n4, 128, 3, 2), p5]), 256, 1, False)
    outputs = []
    for level in (n3, n4, n5):
        boxes = net.conv(conv(conv(level, 64), 64), 64)
        classes = net.conv(conv(conv(level, 80), 80), 80)
        outputs.append(net.concat([boxes, classes]))
    return net.model(outputs)


NETS = {
    "mobilenetv2-224": mobilenetv2,
    "mobilenetv3-small-224": mobilenetv3_small,
    "resnet18-224": lambda: resnet([2, 2, 2, 2], False),
    "resnet50-224": lambda: resnet([3, 4, 6, 3], True),
    "yolov8n-320": yolov8n,
}


class Noise(CalibrationDataReader):
    """A few blurred random pictures."""

    def __init__(self, shape):
        random = np.random.default_rng(3)
        coarse = random.normal(0, 1, (4, 1, 3, shape[2] // 8, shape[3] // 8))
        self.pictures = iter(coarse.repeat(8, axis=3).repeat(8, axis=4).astype(np.float32))

    def get_next(self):
        picture = next(self.pictures, None)
        return None if picture is None else {"input": picture}


def main(folder, *names):
    os.makedirs(folder, exist_ok=True)
    for name in names or NETS:
        model = NETS[name]()
        with tempfile.TemporaryDirectory() as work:
            floats = os.path.join(work, "float.onnx")
            onnx.save(model, floats)
            quantize_static(
                floats,
                os.path.join(folder, f"{name}.onnx"),
                Noise([1, 3, *[model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value for axis in (2, 3)]]),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
