#!/usr/bin/env python3
"""ocelli bench beside onnxruntime and OpenVINO: same files, same input, same core, same run. `make bench-peers` runs it.

usage: compare.py OCELLI_BINARY MODEL.onnx… [--runs N] [--rounds N] [--core N] [--threads N] [--build TEXT] [--doc FILE.md]
Needs numpy, onnxruntime and openvino. Prints two Markdown tables, speed (minimum / median ms at batch 1 and one thread)
and load; --doc puts them between the `figures` marks of a page, unless --threads asks for more than one thread: they
then run on as many cores, the named one and those before it. The peers take turns in rounds, so that a noisy minute
hits all of them; what is timed runs on one core, as root with real-time priority, so that nothing else gets in between.
onnxruntime runs twice: as it is, and with session.x64quantprecision = 1. On x86 without VNNI its default saturates
16-bit sums of u8 x s8 products: quicker, and its answers are then wrong.
"""
import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

BEGIN, END = "<!-- figures: benches/compare.py -->", "<!-- end of figures -->"
WARMUP = 3
# tract takes long, and is here to be checked against.
TRACT_RUNS = 5
# The peer's load, told by the `child` function below.
LOAD = "--child-load"


def real_time(wanted):
    """This process, all threads: on with the highest priority, or off. Ordinary users keep theirs."""
    policy, priority = (os.SCHED_FIFO, 50) if wanted else (os.SCHED_OTHER, 0)
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.sched_setscheduler(int(thread), policy, os.sched_param(priority))


def timed(run, runs):
    times = []
    real_time(True)
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    real_time(False)
    return times


def onnxruntime_peer(path, x, exact, threads):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feed)


def openvino_peer(path, x, threads):
    import openvino

    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(path, "CPU", config).create_infer_request()
    return lambda: request.infer([x])


def ocelli(arguments, *options):
    """Standard output of `ocelli bench`, on the core and with the priority of the peers."""
    root = ["chrt", "-f", "50"] if os.geteuid() == 0 else []
    command = [*root, arguments.binary, "bench", *options]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def ocelli_run(arguments, path, npy, runs, *options):
    return json.loads(ocelli(arguments, path, "--input", npy, "--runs", str(runs), "--json", *options,
                             "--threads", str(arguments.threads)))  # fmt: skip


def name(path):
    """models/nanodet-g-coco/model.onnx is better known by its folder."""
    folder, file = os.path.split(os.path.abspath(path))
    return os.path.basename(folder) if file == "model.onnx" else file.removesuffix(".onnx")


def shown(times):
    return f"{min(times):.2f} / {statistics.median(times):.2f}"


def picture(path):
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    return x, [output.name for output in session.get_outputs()]


def speed(arguments, path, peak):
    x, outputs = picture(path)
    peers = {
        "default": onnxruntime_peer(path, x, False, arguments.threads),
        "exact": onnxruntime_peer(path, x, True, arguments.threads),
        "OpenVINO": openvino_peer(path, x, arguments.threads),
    }
    times = {peer: [] for peer in peers}
    mine = []
    with tempfile.TemporaryDirectory() as folder:
        npy, npz = os.path.join(folder, "x.npy"), os.path.join(folder, "y.npz")
        np.save(npy, x)
        for run in peers.values():
            timed(run, WARMUP)
        for _ in range(arguments.rounds):
            mine.append(ocelli_run(arguments, path, npy, arguments.runs, "--dump-output", npz))
            for peer, run in peers.items():
                times[peer] += timed(run, arguments.runs)
        with np.load(npz) as arrays:
            answers = [arrays[output] for output in outputs]
        tract = ocelli_run(arguments, path, npy, TRACT_RUNS, "--delegates", "tract", "--warmup", "1")
    exact = peers["exact"]()
    away = {"ocelli": answers, "default": peers["default"](), "OpenVINO": list(peers["OpenVINO"]().values())}
    # In parts of each output's range, so that models compare.
    worst = {
        who: max(float(np.abs(a - b).max() / max(np.ptp(b), 1e-9)) for a, b in zip(found, exact))
        for who, found in away.items()
    }
    best = min(figures["min_ms"] for figures in mine)
    median = statistics.median(figures["p50_ms"] for figures in mine)
    peer_best = min(min(times[peer]) for peer in ("default", "OpenVINO"))
    peer_median = min(statistics.median(times[peer]) for peer in ("default", "OpenVINO"))
    segments = mine[-1]["segments"]
    macs = sum(segment["macs"] for segment in segments)
    return [
        name(path),
        f"{macs / 1e6:.0f}",
        f"{best:.2f} / {median:.2f}",
        shown(times["default"]),
        shown(times["exact"]),
        shown(times["OpenVINO"]),
        f"{tract['min_ms']:.0f}",
        f"**{best / peer_best:.2f} / {median / peer_median:.2f}**",
        f"{1e5 * macs / peak / best:.0f} %",
        " / ".join(f"{100 * worst[who]:.1f}" for who in ("ocelli", "default", "OpenVINO")),
        "+".join(f"{segment['delegate']} {segment['nodes']}" for segment in segments),
    ]


def bare_mib(arguments):
    """What ocelli's process takes for next to no model."""
    tiny = os.path.join(os.path.dirname(__file__), "../tests/fixtures/tiny-qop.onnx")
    return min(json.loads(ocelli(arguments, tiny, "--runs", "1", "--json"))["peak_rss_mib"] for _ in range(3))


def load(arguments, path, bare):
    """File to first result, and memory. Each in a process of its own, which has loaded nothing before."""
    x, _ = picture(path)
    with tempfile.TemporaryDirectory() as folder:
        npy = os.path.join(folder, "x.npy")
        np.save(npy, x)
        mine, peer = [], []
        for _ in range(arguments.rounds):
            mine.append(ocelli_run(arguments, path, npy, 1, "--warmup", "0"))
            told = subprocess.run(
                [sys.executable, __file__, LOAD, path, npy], check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            peer.append(json.loads(told))
    own = min(figures["load_ms"] + figures["min_ms"] for figures in mine)
    theirs = min(figures["load_ms"] for figures in peer)
    memory = min(figures["peak_rss_mib"] for figures in mine)
    return [
        name(path),
        f"{own:.0f}",
        f"{theirs:.0f}",
        f"{own / theirs:.2f}",
        f"{memory:.0f}",
        f"{memory - bare:.0f}",
        f"{min(figures['rss_mib'] for figures in peer):.0f}",
    ]


def resident_mib(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024


def child(path, npy):
    """onnxruntime's load and first result, and the most memory above what Python with the library takes."""
    import onnxruntime  # noqa: F401, its own load is not the model's

    x = np.load(npy)
    before = resident_mib("VmRSS")
    real_time(True)
    start = time.perf_counter()
    onnxruntime_peer(path, x, False, 1)()
    spent = (time.perf_counter() - start) * 1e3
    real_time(False)
    print(json.dumps({"load_ms": spent, "rss_mib": resident_mib("VmHWM") - before}))


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


def table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measured_peak(arguments):
    """MAC/s of one thread, the best of several moments: the other core's work slows this one."""
    peak = 0.0
    for _ in range(5):
        text = ocelli(arguments, arguments.models[0], "--layers", "--runs", "1", "--warmup", "0")
        found = re.search(r"multiplications: ([0-9.]+) GMAC/s", text)
        peak = max(peak, float(found[1]) * 1e9 if found else 0.0)
    return peak or float("nan")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--build", default="release profile", help="how the binary was built, for the page")
    parser.add_argument("--doc")
    arguments = parser.parse_args()
    cores = {arguments.core - nth for nth in range(arguments.threads)}
    os.sched_setaffinity(0, cores)
    import onnxruntime as ort
    import openvino

    before = os.getloadavg()[0]
    peak, bare = measured_peak(arguments), bare_mib(arguments)
    speeds, loads = [], []
    for path in arguments.models:
        speeds.append(speed(arguments, path, peak))
        loads.append(load(arguments, path, bare))
        print(speeds[-1], loads[-1], file=sys.stderr, flush=True)
    version = subprocess.run([arguments.binary, "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout
    about = (
        f"{datetime.date.today()}, {machine()}, pinned to {len(cores)} core(s) and as many threads, load average {before:.1f} before and "
        f"{os.getloadavg()[0]:.1f} after. {version.strip()} ({arguments.build}), onnxruntime {ort.__version__}, OpenVINO "
        f"{openvino.__version__.split('-')[0]}. {arguments.rounds} rounds of {arguments.runs} runs. Minimum / median, ms. "
        f"Peak: {peak / 1e9:.0f} GMAC/s."
    )
    text = "\n\n".join(
        [
            about,
            table(
                ["model, int8 QDQ", "MMAC", "ocelli", "onnxruntime, default", "onnxruntime, exact", "OpenVINO", "tract",
                 "ratio", "of peak", "off by, %", "nodes"],
                speeds,
            ),
            table(
                ["model", "ocelli, ms to first result", "onnxruntime", "ratio", "ocelli, MiB in all", "for the model",
                 "onnxruntime, MiB for the model"],
                loads,
            ),
        ]
    )  # fmt: skip
    print(text)
    if arguments.doc and arguments.threads == 1:
        with open(arguments.doc) as file:
            page = file.read()
        start, rest = page.split(BEGIN)
        after = rest.split(END)[1]
        with open(arguments.doc, "w") as file:
            file.write(f"{start}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(child(*sys.argv[2:]) if sys.argv[1:2] == [LOAD] else main())
