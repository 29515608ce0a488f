#!/usr/bin/env python3
# The inner loops of the kernels and what llvm-mca says of them: cycles a round, what the busiest unit needs, products a cycle.
#   inner_loops.py BINARY
# BINARY holds the engine and is not stripped: target/kernels/deps/nets-… (cargo bench -p ocelli-int8 --profile kernels --no-run), for
# aarch64 the same in target/aarch64-…/ (cross/loops.sh builds it and runs this).
# Needs llvm-objdump and llvm-mca, 16 or later for x86 (Debian package llvm-19).
import re
import shutil
import subprocess
import sys

# Multiplying instruction -> 8-bit products of one, on x86 for each 128 bits.
PRODUCTS = {"smull": 8, "smull2": 8, "smlal": 8, "smlal2": 8, "sdot": 16, "smmla": 32, "vpmaddwd": 8, "vpdpbusd": 16}
WIDTHS = {"xmm": 1, "ymm": 2, "zmm": 4}
CORES = {
    "neon": ["cortex-a53", "cortex-a55", "cortex-a72"],
    "sdot": ["cortex-a55", "cortex-a76"],
    "smmla": ["neoverse-n2"],
    "vpmaddwd ymm": ["znver3", "icelake-server", "alderlake"],
    "vpdpbusd ymm": ["alderlake"],
    "vpdpbusd zmm": ["icelake-server", "sapphirerapids"],
}
INSTRUCTION = re.compile(r"\s*([0-9a-f]+):\s+((?:\{\w+\}\s+)?\S+)\s*(.*)")
ARM = {"triple": "aarch64", "mattr": "+dotprod,+i8mm", "module": "arm64", "options": []}
X86 = {"triple": "x86_64", "mattr": "+avxvnni", "module": "kernels", "options": ["-M", "intel"]}


def tool(name):
    """The newest one there is."""
    found = [n for n in (f"{name}-{v}" for v in range(25, 15, -1)) if shutil.which(n)] + [name]
    return found[0]


def functions(binary, machine):
    """(name, instructions) of each kernel; an instruction is (address, mnemonic, operands)."""
    command = [tool("llvm-objdump"), "-d", "--no-show-raw-insn", "--demangle", *machine["options"], binary]
    if machine is ARM:
        command.insert(2, f"--mattr={machine['mattr']}")
    name, found = None, []
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n"):
        if line.endswith(">:"):
            if name:
                yield name, found
            name = line.split("<", 1)[1][:-2] if machine["module"] in line else None
            found = []
        elif name and (match := INSTRUCTION.match(line)):
            found.append((int(match[1], 16), match[2], match[3].split("<")[0].strip()))
    if name:
        yield name, found


def products(mnemonic, operands):
    """8-bit products of an instruction, and what it is called in CORES."""
    count = PRODUCTS.get(mnemonic.split()[-1], 0)
    if width := next((width for width in WIDTHS if count and width in operands), None):
        return count * WIDTHS[width], f"{mnemonic.split()[-1]} {width}"
    return count, mnemonic if mnemonic in CORES else "neon"


def loops(body):
    """Innermost loops: backward branches without another one inside."""
    places = {address: index for index, (address, *_) in enumerate(body)}
    ends = []
    for index, (address, mnemonic, operands) in enumerate(body):
        target = re.search(r"0x([0-9a-f]+)$", operands)
        if target and mnemonic.startswith(("b.", "cb", "tb", "j")) and int(target[1], 16) < address:
            if (start := places.get(int(target[1], 16))) is not None:
                ends.append((start, index))
    for start, end in ends:
        if not any(start <= a and b < end for a, b in ends):
            yield body[start : end + 1]


def cycles(text, core, machine):
    """Cycles of one round in a long run, and the least that the busiest unit needs."""
    command = [tool("llvm-mca"), f"-mtriple={machine['triple']}", f"-mcpu={core}", "-iterations=200"]
    command.append(f"-mattr={machine['mattr']}")
    if machine is X86:
        text = ".intel_syntax noprefix\n" + text
    result = subprocess.run(command, input=text, capture_output=True, text=True)
    total = re.search(r"Total Cycles:\s+(\d+)", result.stdout)
    least = re.search(r"Block RThroughput:\s+([0-9.]+)", result.stdout)
    return (int(total[1]) / 200, float(least[1])) if total and least else None


def main():
    described = subprocess.run(
        [tool("llvm-objdump"), "-f", sys.argv[1]], capture_output=True, text=True, check=True
    ).stdout
    machine = ARM if "aarch64" in described else X86
    for name, body in functions(sys.argv[1], machine):
        best = {}
        for loop in loops(body):
            counted = [products(mnemonic, operands) for _, mnemonic, operands in loop]
            total = sum(count for count, _ in counted)
            # Winograd's inner product: two additions stand for as many multiplications.
            multiplications = sum(mnemonic == "vpmaddwd" for _, mnemonic, _ in loop)
            if multiplications and sum(mnemonic == "vpaddw" for _, mnemonic, _ in loop) == 2 * multiplications:
                total *= 2
            kinds = {kind for count, kind in counted if count}
            for kind in kinds & set(CORES) if total >= 64 else ():
                # Of loops that multiply as much, the shortest: the others hold a rare case besides.
                if (total, -len(loop)) > best.get(kind, (0, 0, None))[:2]:
                    best[kind] = (total, -len(loop), loop)
        for kind, (total, _, loop) in best.items():
            # Branches lead nowhere here: llvm-mca repeats the block anyway.
            branches = ("b.", "cb", "tb", "j", "call")
            text = "\n".join(f"{m} {o}" for _, m, o in loop if not m.startswith(branches))
            print(f"{name}: {kind}, {len(loop)} instructions, {total} products")
            for core in CORES[kind]:
                if (taken := cycles(text, core, machine)) is not None:
                    taken, least = taken
                    print(f"  {core}: {taken:.1f} cycles, {least:.1f} at least; {total / taken:.1f} products a cycle")


main()
