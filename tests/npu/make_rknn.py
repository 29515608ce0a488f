#!/usr/bin/env python3
# Compiles a small network for Rockchip chips with rknn-toolkit2, which wants torch to be there and does not use it for ONNX files.
# Usage: make_rknn.py FOLDER TARGET… (writes FOLDER/small.onnx and FOLDER/TARGET.rknn; needs rknn-toolkit2, onnx, numpy)
import importlib.abc
import importlib.machinery
import pathlib
import sys
import types

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

folder = pathlib.Path(sys.argv[1])
rng = np.random.default_rng(7)
weights = rng.normal(0, 0.2, (8, 3, 3, 3)).astype(np.float32)
graph = helper.make_graph(
    [
        helper.make_node("Conv", ["input", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["logits"], name="flatten"),
    ],
    "small",
    [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 32, 32])],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 8])],
    [numpy_helper.from_array(weights, "w")],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "small.onnx")
np.save(folder / "sample.npy", rng.normal(0, 1, (1, 3, 32, 32)).astype(np.float32))
(folder / "samples.txt").write_text("sample.npy\n")



class Absent(types.ModuleType):
    """Stands for torch and all that is in it: any name is a class that does nothing."""

    __path__ = []
    __version__ = "2.0.0"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        # Some are used as decorators when the toolkit is imported.
        return type(name, (), {"__init__": lambda self, *_, **__: None, "__call__": lambda self, decorated=None, *_, **__: decorated})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name.split(".")[0] == "torch" else None

    def create_module(self, spec):
        return Absent(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Finder())
from rknn.api import RKNN  # noqa: E402

for target in sys.argv[2:]:
    rknn = RKNN(verbose=False)
    rknn.config(target_platform=target)
    assert rknn.load_onnx(str(folder / "small.onnx")) == 0
    assert rknn.build(do_quantization=True, dataset=str(folder / "samples.txt")) == 0
    assert rknn.export_rknn(str(folder / f"{target}.rknn")) == 0
    rknn.release()
