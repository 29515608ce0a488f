"""Records every quantised tensor of the zoo's models as onnxruntime computes it, for tests of the int8 engine.

Use: tensors.py [MODEL_FOLDER ...] > tests/fixtures/zoo-tensors.json
The input is a pattern that the test makes anew: value i is ((i * 2654435761 mod 2^32) / 2^24 - 127.5) / 64. Of each tensor
the CRC-32 of its bytes (N, C, H, W) is kept, and every n-th value so that there are at most 24. onnxruntime runs with
`session.x64quantprecision = 1`: by default its u8 x s8 products saturate on x86 processors without VNNI.
"""

import json
import os
import sys
import zlib

import numpy as np
import onnx
import onnxruntime

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../tests/parity"))
from first_difference import opened  # noqa: E402

ZOO = ["efficientnet-lite0", "nanodet-g-coco", "centerface"]


def pattern(shape):
    index = np.arange(np.prod(shape), dtype=np.uint64)
    byte = (index * np.uint64(2654435761)) % np.uint64(1 << 32) >> np.uint64(24)
    return ((byte.astype(np.float32) - np.float32(127.5)) / np.float32(64)).reshape(shape)


def record(folder):
    model, makers = opened(onnx.load(os.path.join(folder, "model.onnx")))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    names = [one.name for one in session.get_outputs()]
    tensors = {}
    for name, values in zip(names, session.run(None, {given.name: pattern(given.shape)})):
        if name in makers:
            flat = np.ascontiguousarray(values).ravel()
            step = max(1, flat.size // 24)
            tensors[name] = {"crc": zlib.crc32(flat.tobytes()), "samples": flat[::step][:24].tolist()}
    return tensors


if __name__ == "__main__":
    folders = sys.argv[1:] or [os.path.join(HERE, "..", name) for name in ZOO]
    recorded = {os.path.basename(os.path.normpath(folder)): record(folder) for folder in folders}
    lines = []
    for model, tensors in recorded.items():
        rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(one, separators=(',', ':'))}" for name, one in tensors.items())
        lines.append(f"  {json.dumps(model)}: {{\n{rows}\n  }}")
    print("{\n" + ",\n".join(lines) + "\n}")
