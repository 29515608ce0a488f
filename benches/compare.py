#!/usr/bin/env python3
"""`make bench-peers`: ocelli bench beside onnxruntime and OpenVINO on the same files, same core, same run.

usage: compare.py OCELLI_BINARY MODEL.onnx… [--runs N] [--rounds N]      (pin it: taskset -c 1 …)
Needs numpy, onnxruntime and, for its column, openvino. Prints a Markdown table: minimum / median ms, batch 1, one
thread. The peers take turns in rounds, so that a noisy minute hits all of them.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnxruntime as ort


def timed(run, runs):
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def onnxruntime_peer(path, x):
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feed)


def openvino_peer(path, x):
    import openvino

    config = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(path, "CPU", config).create_infer_request()
    return lambda: request.infer([x])


def ocelli_times(binary, path, npy, runs):
    command = [binary, "bench", path, "--input", npy, "--runs", str(runs), "--warmup", "3", "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def row(binary, path, runs, rounds):
    shape = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0].shape
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    peers = {"onnxruntime": onnxruntime_peer(path, x)}
    try:
        peers["OpenVINO"] = openvino_peer(path, x)
    except ImportError:
        pass
    times = {name: [] for name in peers}
    mine = []
    with tempfile.TemporaryDirectory() as folder:
        npy = os.path.join(folder, "x.npy")
        np.save(npy, x)
        for peer in peers.values():
            timed(peer, 3)
        for _ in range(rounds):
            mine.append(ocelli_times(binary, path, npy, runs))
            for name, peer in peers.items():
                times[name] += timed(peer, runs)
    best = min(figures["min_ms"] for figures in mine)
    median = statistics.median(figures["p50_ms"] for figures in mine)
    cells = [f"{best:.2f} / {median:.2f}"]
    for name in ("onnxruntime", "OpenVINO"):
        found = times.get(name)
        cells.append(f"{min(found):.2f} / {statistics.median(found):.2f}" if found else "-")
    last = mine[-1]
    who = "+".join(dict.fromkeys(segment["delegate"] for segment in last["segments"]))
    cells += [who, f"{last['load_ms']:.0f}", f"{last['peak_rss_mib']:.0f}"]
    return f"| {os.path.basename(path)} | " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print("| model | ocelli ms | onnxruntime ms | OpenVINO ms | delegates | load ms | RSS MiB |")
    print("|---|---|---|---|---|---|---|")
    for path in arguments.models:
        print(row(arguments.binary, path, arguments.runs, arguments.rounds), flush=True)


if __name__ == "__main__":
    sys.exit(main())
