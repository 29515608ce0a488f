"""Where `ocelli` and onnxruntime first give other bytes: compares every quantised tensor of a model on one picture.

Use: first_difference.py OCELLI MODEL_FOLDER PICTURE [OTHER.onnx] [--float]
Quantised tensors become outputs of a temporary copy of the model. Prints those that differ, in the order in which they
are computed: how many values, by how many steps, and the operator. --float: onnxruntime without graph optimisation, which
dequantises, computes in float and quantises.
"""

import os
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../../models/recipes"))
from preparation import prepare, read_manifest  # noqa: E402


def opened(model):
    """The model with each computed quantised tensor as an output, and who computes it."""
    constants = {one.name: one for one in model.graph.initializer}
    made = {name: node for node in model.graph.node for name in node.output}
    quantised = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            quantised[node.output[0]] = (constants[node.input[2]].data_type, made.get(node.input[0], node))
        elif node.op_type in ("QLinearConv", "QGemm", "QLinearConcat") or node.op_type.startswith("QLinear"):
            quantised[node.output[0]] = (onnx.TensorProto.UINT8, node)
    known = {one.name for one in model.graph.output}
    for name, (element, _) in quantised.items():
        if name not in known:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, element, None))
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {one.name: one for one in (*inferred.graph.output, *inferred.graph.value_info)}
    for one in model.graph.output:
        if one.name in shapes:
            one.CopyFrom(shapes[one.name])
    return model, {name: node for name, (_, node) in quantised.items()}


def main(binary, folder, picture, *rest):
    names = [one for one in rest if not one.startswith("--")]
    manifest = read_manifest(os.path.join(folder, "manifest.toml"))
    model, makers = opened(onnx.load(names[0] if names else os.path.join(folder, manifest["model"])))
    tensor, _ = prepare(picture, manifest["input"])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    if "--float" in rest:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as work:
        file, npy, npz = (os.path.join(work, name) for name in ("m.onnx", "x.npy", "y.npz"))
        onnx.save(model, file)
        np.save(npy, tensor)
        command = [binary, "bench", file, "--runs", "1", "--warmup", "0", "--input", npy, "--dump-output", npz]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        order = [one.name for one in session.get_outputs()]
        theirs = dict(zip(order, session.run(None, {manifest["input"]["tensor"]: tensor})))
        mine = dict(np.load(npz))
    same = 0
    for name in order:
        apart = np.abs(theirs[name].astype(np.float64) - mine[name].astype(np.float64))
        if apart.max() == 0:
            same += 1
            continue
        kind = makers[name].op_type if name in makers else "output"
        print(f"{name} ({kind}): {np.count_nonzero(apart)} of {apart.size} values, at most {apart.max():.4g}")
    print(f"{same} of {len(order)} tensors are equal")


if __name__ == "__main__":
    main(*sys.argv[1:])
