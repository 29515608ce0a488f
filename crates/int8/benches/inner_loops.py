#!/usr/bin/env python3
# The inner loops of the ARM kernels and what llvm-mca says of them: cycles a round, products a cycle.
# Called with an aarch64 binary that holds the engine, not stripped: inner_loops.py target/aarch64-…/release/…
# Needs llvm-objdump and llvm-mca (Debian package llvm).
import re
import subprocess
import sys

# Multiplying instruction -> 8-bit products of one.
PRODUCTS = {"smull": 8, "smull2": 8, "smlal": 8, "smlal2": 8, "sdot": 16, "smmla": 32}
CORES = {
    "neon": ["cortex-a53", "cortex-a55", "cortex-a72"],
    "sdot": ["cortex-a55", "cortex-a76"],
    "smmla": ["neoverse-n2"],
}
INSTRUCTION = re.compile(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)")


def functions(binary):
    """(name, instructions) of each kernel; an instruction is (address, mnemonic, operands)."""
    command = ["llvm-objdump", "-d", "--no-show-raw-insn", "--mattr=+dotprod,+i8mm", binary]
    name, found = None, []
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n"):
        if line.endswith(">:"):
            if name:
                yield name, found
            name = line.split("<")[1] if "arm64" in line else None
            found = []
        elif name and (match := INSTRUCTION.match(line)):
            found.append((int(match[1], 16), match[2], match[3].split("<")[0].strip()))
    if name:
        yield name, found


def loops(body):
    """Innermost loops: backward branches without another one inside."""
    places = {address: index for index, (address, *_) in enumerate(body)}
    ends = []
    for index, (address, mnemonic, operands) in enumerate(body):
        target = re.search(r"0x([0-9a-f]+)$", operands)
        if target and mnemonic.startswith(("b.", "cb", "tb")) and int(target[1], 16) < address:
            if (start := places.get(int(target[1], 16))) is not None:
                ends.append((start, index))
    for start, end in ends:
        if not any(start <= a and b < end for a, b in ends):
            yield body[start : end + 1]


def cycles(text, core):
    """Cycles of one round in a long run."""
    command = ["llvm-mca", "-mtriple=aarch64", f"-mcpu={core}", "-mattr=+dotprod,+i8mm", "-iterations=200"]
    result = subprocess.run(command, input=text, capture_output=True, text=True)
    match = re.search(r"Total Cycles:\s+(\d+)", result.stdout)
    return int(match[1]) / 200 if match else None


def main():
    for name, body in functions(sys.argv[1]):
        best = {}
        for loop in loops(body):
            products = sum(PRODUCTS.get(mnemonic, 0) for _, mnemonic, _ in loop)
            kind = next((m for _, m, _ in loop if m in ("sdot", "smmla")), "neon")
            if products >= 64 and products > best.get(kind, (0, None))[0]:
                best[kind] = (products, loop)
        for kind, (products, loop) in best.items():
            # A branch to nowhere: llvm-mca repeats the block anyway.
            text = "\n".join(f"{mnemonic} {operands}" for _, mnemonic, operands in loop[:-1])
            print(f"{name}: {kind}, {len(loop)} instructions, {products} products")
            for core in CORES[kind]:
                if (taken := cycles(text, core)) is not None:
                    print(f"  {core}: {taken:.1f} cycles, {products / taken:.1f} products a cycle")


main()
