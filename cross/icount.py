"""Counts the instructions that one inference and one frame take, exactly, with QEMU's user emulation and icount.c.

    icount.py --binary OCELLI --emulator "qemu-aarch64 -plugin libicount.so" [--all-speed OCELLI] [--cpu CPU…]
              [--delegates int8,tract] [--runs FEW MANY] [--doc docs/performance.md] [MODEL FOLDER…]

Two runs that differ only in how often they do the thing are subtracted, so start and loading cancel out. With --all-speed, the
same is counted for another build, and the ratio printed. `cross/icount.sh` builds what this needs.
"""

import argparse
import datetime
import re
import subprocess
import sys
from pathlib import Path

BEGIN, END = "<!-- figures: cross/icount.py -->", "<!-- end of icount -->"


def instructions(words):
    """Instructions of one run in an empty environment: its size moves the stack, and with it the count."""
    done = subprocess.run(["env", "-i", *words], capture_output=True, text=True, check=False)
    counted = re.search(r"^insns: (\d+)$", done.stderr, re.MULTILINE)
    if done.returncode != 0 or not counted:
        sys.exit(f"icount: {' '.join(words)} ended with {done.returncode}: {done.stderr[-500:]}")
    return int(counted.group(1))


def per_time(program, few, many, command):
    """What each further time costs."""
    low, high = (instructions(program + command(times)) for times in (few, many))
    if high <= low:
        sys.exit(f"icount: {many} times cost no more than {few}: {' '.join(program + command(many))}")
    return (high - low) / (many - few)


def inference(package, delegates):
    """`ocelli bench` of the network alone."""
    options = ["--delegates", delegates] if delegates else []
    file = str(package / "model.onnx")
    return lambda times: ["bench", file, "--warmup", "0", "--runs", str(times), *options]


def picture(package, image, delegates):
    """`ocelli infer`: JPEG decoding, preprocessing, inference, postprocessing and JSON for each picture."""
    options = ["--delegates", delegates] if delegates else []
    return lambda times: ["infer", "--json", "--model", str(package), *options, *[str(image)] * times]


def million(count):
    return f"{count / 1e6:.2f}"


def rows(arguments, emulator):
    few, many = arguments.runs
    for package in arguments.models:
        image = sorted((package / "golden").glob("*.jpg"))[0]
        work = [
            ("inference", inference(package, arguments.delegates)),
            (f"frame ({image.name})", picture(package, image, arguments.delegates)),
        ]
        for cpu in arguments.cpu:
            counts = []
            for _, command in work:
                builds = [arguments.binary] + ([arguments.all_speed] if arguments.all_speed else [])
                counts.append([per_time([*emulator, "-cpu", cpu, binary], few, many, command) for binary in builds])
            # A frame holds an inference; what is left is its way before and after.
            path = [frame - own for frame, own in zip(counts[1], counts[0])]
            cells = [package.name, cpu, million(counts[0][0]), million(path[0])]
            if arguments.all_speed:
                cells += [f"{one[0] / one[1]:.3f}" for one in (counts[0], path)]
            print("  ".join(cells), file=sys.stderr, flush=True)
            yield cells


def table(arguments, emulator):
    heads = ["model", "cpu", "inference, M", "the rest of a JPEG frame, M"]
    if arguments.all_speed:
        heads += ["inference / all-speed build", "rest / all-speed build"]
    lines = [heads, ["---"] * len(heads), *rows(arguments, emulator)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(doc, text):
    page = doc.read_text()
    if BEGIN not in page or END not in page:
        sys.exit(f"icount: {doc} has no lines `{BEGIN}` and `{END}`; put them where the table belongs")
    before, rest = page.split(BEGIN)
    doc.write_text(before + BEGIN + "\n" + text + "\n" + END + rest.split(END)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--binary", required=True)
    parser.add_argument("--emulator", required=True)
    parser.add_argument("--all-speed")
    parser.add_argument("--cpu", nargs="+", default=["cortex-a53", "cortex-a72", "neoverse-n1", "max"])
    parser.add_argument("--delegates")
    parser.add_argument("--runs", nargs=2, type=int, default=[1, 3], metavar=("FEW", "MANY"))
    parser.add_argument("--doc", type=Path)
    parser.add_argument("--build", default="release profile", help="how the binary was built, for the page")
    arguments = parser.parse_args()
    emulator = arguments.emulator.split()
    version = subprocess.run([emulator[0], "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]
    few, many = arguments.runs
    about = (
        f"{datetime.date.today()}, aarch64, {arguments.build}, {Path(arguments.binary).stat().st_size} bytes, {version}; "
        f"delegates: {arguments.delegates or 'the default'}; {many} against {few} times. Millions of instructions."
    )
    text = f"{about}\n\n{table(arguments, emulator)}"
    if arguments.doc:
        write(arguments.doc, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
