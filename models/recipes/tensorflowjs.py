"""A TensorFlow.js graph model (model.json and weight files) to ONNX, through TensorFlow and tf2onnx.

Use: tensorflowjs.py MODEL.json OUT.onnx
Half-precision weights become float32; TensorFlow.js's fused convolutions are split into convolution, bias and
activation. All outputs `Identity…` are kept.
"""

import json
import os
import sys

import numpy as np
import tensorflow as tf
import tf2onnx
from google.protobuf import json_format
from tensorflow.core.framework import graph_pb2

OPSET = 13
OUTPUTS = ["Identity:0"] + [f"Identity_{index}:0" for index in range(1, 6)]
FUSED = {"_FusedConv2D": "Conv2D", "FusedDepthwiseConv2dNative": "DepthwiseConv2dNative"}
CONVOLUTION_ATTRIBUTES = ("T", "strides", "padding", "data_format", "dilations", "explicit_paddings")
ELEMENTS = {"float32": "f4", "int32": "i4", "bool": "?", "uint8": "u1"}


def read_weights(manifest, folder):
    """Tensors by name."""
    weights = {}
    for group in manifest:
        data = b"".join(open(os.path.join(folder, path), "rb").read() for path in group["paths"])
        offset = 0
        for weight in group["weights"]:
            count = int(np.prod(weight["shape"]))
            stored = weight.get("quantization", {}).get("dtype")
            assert stored in (None, "float16"), f"{weight['name']} is stored as {stored}"
            element = np.dtype(np.float16 if stored else ELEMENTS[weight["dtype"]])
            values = np.frombuffer(data, element, count, offset)
            offset += count * element.itemsize
            weights[weight["name"]] = values.astype(ELEMENTS[weight["dtype"]]).reshape(weight["shape"])
    return weights


def constant(node, values, graph):
    element = tf.as_dtype(node.attr["dtype"].type)
    copy = graph.node.add(name=node.name, op="Const")
    copy.attr["dtype"].type = element.as_datatype_enum
    values = values.astype(element.as_numpy_dtype)
    copy.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values, element, values.shape))


def split(node, graph):
    """A fused convolution as the chain it stands for; the last node keeps the name."""
    steps = [step.decode() for step in node.attr["fused_ops"].list.s]
    names = [f"{node.name}/f{index}" for index in range(len(steps) - 1)] + [node.name]
    convolution = graph.node.add(name=node.name + "/conv" if steps else node.name, op=FUSED[node.op])
    convolution.input.extend(node.input[:2])
    for key in CONVOLUTION_ATTRIBUTES:
        if key in node.attr:
            convolution.attr[key].CopyFrom(node.attr[key])
    previous, arguments = convolution.name, list(node.input[2:])
    for step, name in zip(steps, names):
        part = graph.node.add(name=name, op=step)
        part.attr["T"].CopyFrom(node.attr["T"])
        part.input.append(previous)
        if step == "BiasAdd":
            part.input.append(arguments.pop(0))
            part.attr["data_format"].CopyFrom(node.attr["data_format"])
        elif step == "LeakyRelu":
            given = "leakyrelu_alpha" in node.attr
            part.attr["alpha"].f = node.attr["leakyrelu_alpha"].f if given else 0.2
        else:
            assert step in ("Relu", "Relu6"), f"no rule for {step}"
        previous = name


def main(source, out):
    with open(source) as file:
        description = json.load(file)
    weights = read_weights(description["weightsManifest"], os.path.dirname(os.path.abspath(source)))
    given = json_format.ParseDict(description["modelTopology"], graph_pb2.GraphDef(), ignore_unknown_fields=True)
    graph = graph_pb2.GraphDef()
    graph.versions.producer = 1395
    for node in given.node:
        if node.op == "Const" and node.name in weights:
            constant(node, weights[node.name], graph)
        elif node.op in FUSED:
            split(node, graph)
        else:
            graph.node.add().CopyFrom(node)
    inputs = [node.name + ":0" for node in given.node if node.op == "Placeholder"]
    with tf.Graph().as_default() as plain:
        kept = [name.split(":")[0] for name in OUTPUTS]
        tf.import_graph_def(tf.compat.v1.graph_util.extract_sub_graph(graph, kept), name="")
        definition = plain.as_graph_def()
    tf2onnx.convert.from_graph_def(definition, input_names=inputs, output_names=OUTPUTS, opset=OPSET, output_path=out)


if __name__ == "__main__":
    main(*sys.argv[1:])
