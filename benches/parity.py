#!/usr/bin/env python3
"""Compares `ocelli bench` with onnxruntime on the same input tensors, picture by picture.

usage: parity.py OCELLI_BINARY MODEL.onnx PICTURES_FOLDER [--limit N] [--mean a,b,c --std a,b,c --bgr]
Prints agreement of the arg-max of the first output, and the largest difference of each output. onnxruntime runs with
session.x64quantprecision=1: without it, its u8s8 kernels saturate 16-bit sums on x86 without VNNI and are wrong.
"""
import argparse
import glob
import os
import subprocess
import sys
import tempfile

import numpy as np
import onnxruntime as ort
from PIL import Image


def tensor(path, shape, mean, std, bgr):
    size = (shape[3], shape[2])
    pixels = np.asarray(Image.open(path).convert("RGB").resize(size, Image.BICUBIC), np.float32)
    if bgr:
        pixels = pixels[:, :, ::-1]
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1)[None], np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("pictures")
    parser.add_argument("--limit", type=int, default=10**9)
    parser.add_argument("--mean", default="127,127,127")
    parser.add_argument("--std", default="128,128,128")
    parser.add_argument("--bgr", action="store_true")
    parser.add_argument("--at-least", type=float, default=0.995)
    arguments = parser.parse_args()
    mean, std = (np.array(text.split(","), np.float32) for text in (arguments.mean, arguments.std))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(arguments.model, options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    found = sorted(glob.glob(os.path.join(arguments.pictures, "*.jp*g")))[: arguments.limit]
    same, worst = 0, {output.name: 0.0 for output in session.get_outputs()}
    with tempfile.TemporaryDirectory() as folder:
        npy, npz = os.path.join(folder, "x.npy"), os.path.join(folder, "y.npz")
        for picture in found:
            x = tensor(picture, source.shape, mean, std, arguments.bgr)
            np.save(npy, x)
            command = [arguments.binary, "bench", arguments.model, "--runs", "1", "--warmup", "0"]
            command += ["--input", npy, "--dump-output", npz]
            subprocess.run(command, check=True, capture_output=True)
            mine = np.load(npz)
            theirs = session.run(None, {source.name: x})
            for output, values in zip(session.get_outputs(), theirs):
                worst[output.name] = max(worst[output.name], float(np.abs(values - mine[output.name]).max()))
            first = session.get_outputs()[0].name
            same += int(mine[first].argmax() == theirs[0].argmax())
    print(f"{os.path.basename(arguments.model)}: top-1 agrees on {same} of {len(found)}; largest difference {worst}")
    return 0 if found and same >= arguments.at_least * len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
