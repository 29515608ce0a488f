#!/usr/bin/env bash
# ONNX Runtime for aarch64 from PyPI (21 MB) behind the plug-in, under QEMU's user emulator. The runtime reads /proc/cpuinfo and dies of an
# x86 one, so that QEMU is given a folder in which an ARM one lies.
# Usage: aarch64.sh CACHE WORK (called by run.sh); installs gcc-aarch64-linux-gnu, qemu-user and libstdc++ for arm64, and what cross/setup.sh does.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=$1 work=$2
command -v aarch64-linux-gnu-g++ >/dev/null || tests/install.sh g++-aarch64-linux-gnu
command -v qemu-aarch64-static >/dev/null || tests/install.sh qemu-user-static
echo "== onnxruntime 1.31.1 for aarch64 from PyPI"
wheel=$cache/onnxruntime-aarch64
if [ ! -d "$wheel" ]; then
    "$cache/venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --platform manylinux_2_28_aarch64 --python-version 3.11 --dest "$work" onnxruntime==1.31.1
    "$cache/venv/bin/python" -m zipfile -e "$work"/onnxruntime-*aarch64.whl "$wheel.new"
    mv "$wheel.new" "$wheel"
fi
library=$(echo "$wheel"/onnxruntime/capi/libonnxruntime.so.*)
root=$work/root
mkdir -p "$root/proc"
ln -sfn /usr/aarch64-linux-gnu/lib "$root/lib"
{
    for core in 0 1; do
        printf 'processor\t: %s\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n' "$core"
        printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n'
    done
} >"$root/proc/cpuinfo"
strict=(-std=c11 -O2 -Wall -Wextra -Werror -pedantic -I crates/delegate/include)
aarch64-linux-gnu-gcc "${strict[@]}" -shared -fPIC -fvisibility=hidden crates/delegate/plugins/ort.c -o "$work/ort-aarch64.so" -ldl
aarch64-linux-gnu-gcc "${strict[@]}" crates/delegate/tests/host.c -o "$work/host-aarch64" -ldl -lm
said=$(qemu-aarch64-static -cpu cortex-a76 -L "$root" "$work/host-aarch64" "$work/ort-aarch64.so" tests/fixtures/relu.onnx "library=$library" 2>&1) || true
if [[ $said != *"run 0 0 0 0.5 1 3"* ]]; then
    printf 'a Relu on the CPU provider for aarch64: found:\n%s\n' "$said" >&2
    exit 1
fi
echo "ok: a Relu on the CPU provider for aarch64, emulated"

echo "== the agent with a worker for aarch64, the zoo's classifier"
cross/setup.sh aarch64-unknown-linux-musl
worker=$(cross/worker.sh aarch64-unknown-linux-gnu)
OCELLI_ORT=$library OCELLI_AARCH64_WORKER=$worker OCELLI_AARCH64_PLUGIN=$work/ort-aarch64.so \
    OCELLI_AARCH64_RUNNER="qemu-aarch64-static -cpu cortex-a76 -L $root" \
    cargo test --locked --workspace --test npu_vendor -- --ignored --exact --nocapture the_cpu_provider_runs_the_zoo_classifier_on_aarch64
