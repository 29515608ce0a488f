"""EfficientNet-Lite0 from a PyTorch checkpoint to ONNX, with numpy and onnx only.

Use: efficientnet_lite.py CHECKPOINT.pth OUT.onnx
MBConv blocks without squeeze-and-excite, ReLU6 as Clip, batch normalisation folded into the convolutions, TensorFlow's
SAME padding in their `pads`; the classifier is a 1x1 Conv. Input 1x3x224x224, output 1x1000 logits.
"""

import collections
import math
import pickle
import struct
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 224
EPSILON = 1e-3
# repeats, kernel, stride, expansion, channels in, channels out
BLOCKS = [(1, 3, 1, 1, 32, 16), (2, 3, 2, 6, 16, 24), (2, 5, 2, 6, 24, 40), (3, 3, 2, 6, 40, 80),
          (3, 5, 1, 6, 80, 112), (4, 5, 2, 6, 112, 192), (1, 3, 1, 6, 192, 320)]
STORAGES = {"FloatStorage": np.float32, "LongStorage": np.int64, "HalfStorage": np.float16,
            "IntStorage": np.int32, "DoubleStorage": np.float64}
MAGIC = 0x1950A86A20F9469CFC6C

Strided = collections.namedtuple("Strided", "storage offset shape strides")


class StateDict(pickle.Unpickler):
    """Reads tensors of a plain state_dict; refuses every other class."""

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in STORAGES:
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: Strided(storage, offset, shape, strides)
        raise pickle.UnpicklingError(f"refused {module}.{name}")

    def persistent_load(self, identity):
        kind, element, key, *_ = identity
        assert kind == "storage"
        self.storages.setdefault(key, element)
        return key


def load_checkpoint(path):
    """Tensors of a checkpoint written before torch 1.6 (not a zip file)."""
    with open(path, "rb") as file:
        assert pickle.load(file) == MAGIC, "not a checkpoint of the old form"
        assert pickle.load(file) == 1001
        pickle.load(file)
        reader = StateDict(file)
        tensors = reader.load()
        values = {}
        for key in pickle.load(file):
            count = struct.unpack("<q", file.read(8))[0]
            element = np.dtype(STORAGES[reader.storages[key]])
            values[key] = np.frombuffer(file.read(count * element.itemsize), element)
    return {name: np.lib.stride_tricks.as_strided(
                values[t.storage][t.offset:], t.shape,
                [step * values[t.storage].itemsize for step in t.strides]).copy()
            for name, t in tensors.items()}


class Graph:
    """Collects nodes and weights, and which weights were used."""

    def __init__(self, weights):
        self.weights, self.used, self.nodes, self.constants = weights, set(), [], []

    def weight(self, name):
        self.used.add(name)
        return self.weights[name].astype(np.float64)

    def constant(self, name, values):
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), name))

    def node(self, operator, inputs, output, **attributes):
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def conv(self, source, side, name, norm, stride=1, group=1, activate=True):
        """Convolution with its batch normalisation folded in, then ReLU6; returns the tensor and its side."""
        kernel = self.weight(name + ".weight")
        scale = self.weight(norm + ".weight") / np.sqrt(self.weight(norm + ".running_var") + EPSILON)
        bias = self.weight(norm + ".bias") - self.weight(norm + ".running_mean") * scale
        self.used.add(norm + ".num_batches_tracked")
        size, out = kernel.shape[2], math.ceil(side / stride)
        padding = max((out - 1) * stride + size - side, 0)
        before, after = padding // 2, padding - padding // 2
        short = name.replace(".", "_").strip("_")
        self.constant(short + "_w", kernel * scale[:, None, None, None])
        self.constant(short + "_b", bias)
        result = self.node("Conv", [source, short + "_w", short + "_b"], short + "_y", name=short,
                           kernel_shape=[size, size], strides=[stride, stride], pads=[before, before, after, after],
                           group=group, dilations=[1, 1])
        if activate:
            result = self.node("Clip", [result, "relu6_min", "relu6_max"], short + "_a", name=short + "_relu6")
        return result, out


def build(weights):
    graph = Graph(weights)
    graph.constant("relu6_min", np.array(0.0))
    graph.constant("relu6_max", np.array(6.0))
    tensor, side = graph.conv("input", SIDE, "_conv_stem", "_bn0", stride=2)
    index = 0
    for repeats, _, first_stride, expansion, channels_in, channels_out in BLOCKS:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            width = channels_in if repeat == 0 else channels_out
            block, shortcut = f"_blocks.{index}.", tensor
            if expansion != 1:
                tensor, side = graph.conv(tensor, side, block + "_expand_conv", block + "_bn0")
            tensor, side = graph.conv(tensor, side, block + "_depthwise_conv", block + "_bn1", stride,
                                      group=width * expansion)
            tensor, side = graph.conv(tensor, side, block + "_project_conv", block + "_bn2", activate=False)
            if stride == 1 and width == channels_out:
                tensor = graph.node("Add", [tensor, shortcut], f"blk{index}_add", name=f"blk{index}_add")
            index += 1
    tensor, side = graph.conv(tensor, side, "_conv_head", "_bn1")
    graph.node("GlobalAveragePool", [tensor], "gap", name="gap")
    graph.constant("fc_w", graph.weight("_fc.weight")[:, :, None, None])
    graph.constant("fc_b", graph.weight("_fc.bias"))
    graph.node("Conv", ["gap", "fc_w", "fc_b"], "fc_y", name="fc", kernel_shape=[1, 1], strides=[1, 1], pads=[0] * 4,
               group=1, dilations=[1, 1])
    graph.node("Flatten", ["fc_y"], "logits", name="flatten", axis=1)
    unused = sorted(set(weights) - graph.used)
    assert not unused, f"unused weights: {unused[:5]}"
    return graph


def main(checkpoint, out):
    graph = build(load_checkpoint(checkpoint))
    model = helper.make_model(
        helper.make_graph(graph.nodes, "efficientnet_lite0",
                          [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
                          [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1000])], graph.constants),
        opset_imports=[helper.make_opsetid("", 13)], producer_name="build_effnet_lite_onnx")
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
