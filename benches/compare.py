#!/usr/bin/env python3
"""ocelli bench beside onnxruntime and OpenVINO: same files, same input, same core, same run. `make bench-peers` runs it.

usage: compare.py OCELLI_BINARY MODEL.onnx… [--runs N] [--rounds N] [--delegates A,B] [--build TEXT] [--doc FILE.md]
Pin it to one core (taskset -c 1 …). Needs numpy, onnxruntime and openvino. Prints a Markdown table, minimum / median
ms at batch 1 and one thread; --doc puts it between the `figures` marks of a page. The peers take turns in rounds, so that
a noisy minute hits all of them. onnxruntime runs twice: as it is, and with session.x64quantprecision = 1. On x86
without VNNI its default saturates 16-bit sums of u8 x s8 products: quicker, and its answers are then wrong.
"""
import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnxruntime as ort
import openvino

BEGIN, END = "<!-- figures: benches/compare.py -->", "<!-- end of figures -->"
WARMUP = 3


def timed(run, runs):
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def onnxruntime_peer(path, x, exact):
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feed)


def openvino_peer(path, x):
    config = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(path, "CPU", config).create_infer_request()
    return lambda: request.infer([x])


def ocelli_run(arguments, path, npy, dump):
    command = [arguments.binary, "bench", path, "--delegates", arguments.delegates, "--input", npy,
               "--runs", str(arguments.runs), "--warmup", str(WARMUP), "--dump-output", dump, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def name(path):
    """models/nanodet-g-coco/model.onnx is better known by its folder."""
    folder, file = os.path.split(os.path.abspath(path))
    return os.path.basename(folder) if file == "model.onnx" else file


def shown(times):
    return f"{min(times):.2f} / {statistics.median(times):.2f}"


def row(arguments, path):
    shape = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0].shape
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    peers = {
        "default": onnxruntime_peer(path, x, exact=False),
        "exact": onnxruntime_peer(path, x, exact=True),
        "openvino": openvino_peer(path, x),
    }
    times = {peer: [] for peer in peers}
    mine = []
    with tempfile.TemporaryDirectory() as folder:
        npy, npz = os.path.join(folder, "x.npy"), os.path.join(folder, "y.npz")
        np.save(npy, x)
        for run in peers.values():
            timed(run, WARMUP)
        for _ in range(arguments.rounds):
            mine.append(ocelli_run(arguments, path, npy, npz))
            for peer, run in peers.items():
                times[peer] += timed(run, arguments.runs)
        outputs = [session_output.name for session_output in ort.InferenceSession(path).get_outputs()]
        with np.load(npz) as arrays:
            answers = [arrays[output] for output in outputs]
    exact = peers["exact"]()
    away = {"ocelli": answers, "default": peers["default"](), "openvino": list(peers["openvino"]().values())}
    # In parts of each output's range, so that models compare.
    worst = {
        who: max(float(np.abs(a - b).max() / max(np.ptp(b), 1e-9)) for a, b in zip(found, exact))
        for who, found in away.items()
    }
    best = min(figures["min_ms"] for figures in mine)
    median = statistics.median(figures["p50_ms"] for figures in mine)
    exactly, openvino_ms = (statistics.median(times[peer]) for peer in ("exact", "openvino"))
    last = mine[-1]
    cells = [
        name(path),
        f"{best:.2f} / {median:.2f}",
        shown(times["default"]),
        shown(times["exact"]),
        shown(times["openvino"]),
        f"{median / exactly:.1f} / {median / openvino_ms:.1f}",
        f"{100 * worst['ocelli']:.1f} / {100 * worst['default']:.1f} / {100 * worst['openvino']:.1f}",
        "+".join(dict.fromkeys(segment["delegate"] for segment in last["segments"])),
        f"{last['load_ms']:.0f}",
        f"{last['peak_rss_mib']:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def machine():
    with open("/proc/cpuinfo") as file:
        lines = file.read().splitlines()
    field = lambda key: next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "unknown")
    flags = set(field("flags").split())
    simd = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni") if flag in flags]
    processor = field("model name")
    if processor.startswith("unknown"):
        processor = platform.machine()
    return f"{processor} (family {field('cpu family')}, model {field('model')}; {', '.join(simd) or 'no avx2'})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delegates", default="tract")
    parser.add_argument("--build", default="release profile", help="how the binary was built, for the page")
    parser.add_argument("--doc")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    rows = [
        "| model, int8 QDQ | ocelli | onnxruntime, default | onnxruntime, exact | OpenVINO | ratios "
        "| off by, % | who | load ms | RSS MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for path in arguments.models:
        rows.append(row(arguments, path))
        print(f"{name(path)} done", file=sys.stderr, flush=True)
    ocelli = subprocess.run([arguments.binary, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    cores = len(os.sched_getaffinity(0))
    about = (
        f"{datetime.date.today()}, {machine()}, pinned to {cores} core{'s' if cores > 1 else ''}, one thread, "
        f"load average {load:.1f} before and {os.getloadavg()[0]:.1f} after. {ocelli} ({arguments.build}, "
        f"`--delegates {arguments.delegates}`), onnxruntime {ort.__version__}, OpenVINO {openvino.__version__.split('-')[0]}. "
        f"{arguments.rounds} rounds of {arguments.runs} runs after {WARMUP}. Minimum / median, ms."
    )
    text = "\n".join([about, ""] + rows)
    print(text)
    if arguments.doc:
        with open(arguments.doc) as file:
            page = file.read()
        before, rest = page.split(BEGIN)
        after = rest.split(END)[1]
        with open(arguments.doc, "w") as file:
            file.write(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
