"""NanoDet-g as tf2onnx writes it, tidied: what an accelerator runs, nothing else.

Use: nanodet.py RAW.onnx OUT.onnx
Pads go into convolutions and pooling, half-size Resizes become 2x2 AveragePools (the same arithmetic), and the graph
ends at the raw map of each stride, 1 x (80 classes + 4 x 11 bins) x H x W: sigmoid, softmax, decoding and suppression
are the agent's. Ends with a numeric comparison of both graphs.
"""

import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

SIDE = 416
CLASSES, BINS = 80, 11
CHANNELS = CLASSES + 4 * BINS
TOLERANCE = 1e-3


def attributes(node):
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


class Tidier:
    """Rewrites the nodes that the maps depend on, with short names."""

    def __init__(self, graph):
        self.graph = graph
        self.given = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
        self.producers = {output: node for node in graph.node for output in node.output}
        # Class scores and boxes are split from one map per stride.
        self.maps = [node.input[0] for node in graph.node if node.op_type == "Split"]
        self.names, self.nodes, self.constants, self.convolutions = {graph.input[0].name: "input"}, [], {}, 0

    def name(self, tensor):
        return self.names.setdefault(tensor, f"t{len(self.names) - 1}")

    def needed(self):
        needed, order = set(self.maps), []
        for node in reversed(self.graph.node):
            if needed.intersection(node.output):
                order.append(node)
                needed.update(node.input)
        return reversed(order)

    def emit(self, operator, node, inputs, name, **kept):
        self.nodes.append(helper.make_node(operator, inputs, [self.name(node.output[0])], name=name, **kept))

    def rewrite(self, node):
        if node.op_type == "Pad":
            return
        given = attributes(node)
        if node.op_type in ("Conv", "MaxPool"):
            self.rewrite_window(node, given)
            return
        inputs = [self.name(tensor) for tensor in node.input if tensor and tensor not in self.given]
        output = self.name(node.output[0])
        if node.op_type == "LeakyRelu":
            self.emit("LeakyRelu", node, inputs, "lrelu_" + output, alpha=given["alpha"])
        elif node.op_type == "Concat":
            self.emit("Concat", node, inputs, "cat_" + output, axis=given["axis"])
        elif node.op_type == "Add":
            self.emit("Add", node, inputs, "add_" + output)
        elif node.op_type == "Resize":
            self.rewrite_resize(node, inputs[:1], output)
        else:
            raise SystemExit(f"no rule for {node.op_type}")

    def rewrite_window(self, node, given):
        source, pads = node.input[0], list(given.get("pads", [0, 0, 0, 0]))
        producer = self.producers.get(source)
        if producer is not None and producer.op_type == "Pad":
            padding = self.given[producer.input[1]].tolist()
            pads = [sum(pair) for pair in zip(pads, (padding[2], padding[3], padding[6], padding[7]))]
            source = producer.input[0]
        if node.op_type == "MaxPool":
            self.emit("MaxPool", node, [self.name(source)], "maxpool", kernel_shape=given["kernel_shape"],
                      strides=given["strides"], pads=pads)
            return
        index, self.convolutions = self.convolutions, self.convolutions + 1
        weight, bias = self.given[node.input[1]], self.given[node.input[2]]
        self.constants[f"w{index}"], self.constants[f"b{index}"] = weight, bias
        source = self.name(source)
        self.emit("Conv", node, [source, f"w{index}", f"b{index}"], f"conv{index}",
                  kernel_shape=list(weight.shape[2:]), strides=given.get("strides", [1, 1]), pads=pads,
                  group=given.get("group", 1), dilations=[1, 1])

    def rewrite_resize(self, node, inputs, output):
        scales = self.given[node.input[2]].tolist()
        if scales == [1.0, 1.0, 0.5, 0.5]:
            self.emit("AveragePool", node, inputs, "down_" + output, kernel_shape=[2, 2], strides=[2, 2])
            return
        self.constants["up_scales"] = np.array(scales, np.float32)
        self.emit("Resize", node, [*inputs, "", "up_scales"], "up_" + output, mode="linear",
                  coordinate_transformation_mode="half_pixel")


def name_outputs(model, maps):
    """Names each map after its stride, largest map first."""
    shapes = {value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
              for value in [*model.graph.value_info, *model.graph.output]}
    sides = sorted(((shapes[tensor][2], tensor) for tensor in maps), reverse=True)
    names = {tensor: f"stride{SIDE // side}" for side, tensor in sides}
    for node in model.graph.node:
        node.input[:] = [names.get(tensor, tensor) for tensor in node.input]
        node.output[:] = [names.get(tensor, tensor) for tensor in node.output]
    del model.graph.output[:]
    for side, tensor in sides:
        shape = [1, CHANNELS, side, side]
        model.graph.output.append(helper.make_tensor_value_info(names[tensor], TensorProto.FLOAT, shape))


def run(path, picture):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: picture})))


def compare(raw, tidy):
    """Largest difference between the raw graph's scores and boxes and those of the maps."""
    picture = np.random.RandomState(0).randn(1, 3, SIDE, SIDE).astype(np.float32)
    expected = {value.shape[1:]: value[0] for value in run(raw, picture).values()}
    worst = 0.0
    for output in run(tidy, picture).values():
        scores = 1 / (1 + np.exp(-output[0, :CLASSES].reshape(CLASSES, -1).T))
        bins = output[0, CLASSES:].reshape(4 * BINS, -1).T
        for values in (scores, bins):
            worst = max(worst, float(np.abs(values - expected[values.shape]).max()))
    return worst


def main(raw, out):
    tidier = Tidier(onnx.load(raw).graph)
    for node in tidier.needed():
        tidier.rewrite(node)
    shape = [1, 3, SIDE, SIDE]
    maps = [tidier.name(tensor) for tensor in tidier.maps]
    model = helper.make_model(
        helper.make_graph(tidier.nodes, "nanodet_g_416",
                          [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
                          [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in maps],
                          [numpy_helper.from_array(np.ascontiguousarray(values), name)
                           for name, values in tidier.constants.items()]),
        opset_imports=[helper.make_opsetid("", 13)], producer_name="nanodet_clean")
    model.ir_version = 8
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    name_outputs(model, maps)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, out)
    difference = compare(raw, out)
    if difference > TOLERANCE:
        raise SystemExit(f"the tidied graph differs by {difference}")


if __name__ == "__main__":
    main(*sys.argv[1:])
