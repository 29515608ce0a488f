#!/usr/bin/env bash
# Runs the plug-ins against vendors' own libraries, fetched from PyPI by name into ~/.cache/ocelli/npu: ONNX Runtime (24 MB), Qualcomm's
# provider with its HTP simulator (99 MB), Rockchip's toolkit with its x86 library (700 MB installed). Says what it runs.
# Usage: run.sh [--aarch64] (with it, also ONNX Runtime for aarch64 under QEMU's user emulator, 21 MB; needs cross/setup.sh).
# Needs python3 with venv, a C compiler, cargo and the network. No vendor's file enters the repository.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v cc >/dev/null || tests/install.sh gcc libc6-dev
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ocelli/npu
mkdir -p "$cache"

# environment NAME: a Python environment of its own in the cache.
environment() {
    if [ ! -x "$cache/$1/bin/python" ]; then
        python3 -m venv --help >/dev/null 2>&1 || tests/install.sh python3-venv
        python3 -m venv "$cache/$1"
    fi
}
install() {
    local name=$1
    shift
    "$cache/$name/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}
environment venv
echo "== onnxruntime 1.31.1 and onnxruntime-qnn 2.7.0 from PyPI"
install venv --only-binary :all: --no-deps onnxruntime==1.31.1 onnxruntime-qnn==2.7.0
packages=$(echo "$cache"/venv/lib/python3*/site-packages)
library=$(echo "$packages"/onnxruntime/capi/libonnxruntime.so.*)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
strict=(-std=c11 -O2 -Wall -Wextra -Werror -pedantic -I crates/delegate/include)
cc "${strict[@]}" -shared -fPIC -fvisibility=hidden crates/delegate/plugins/ort.c -o "$work/ort.so" -ldl
cc "${strict[@]}" crates/delegate/tests/host.c -o "$work/host" -ldl -lm

# say WHAT EXPECTED COMMAND…: runs a command whose output must hold a text.
say() {
    local what=$1 expected=$2 said
    shift 2
    said=$("$@" 2>&1) || true
    if [[ $said != *"$expected"* ]]; then
        printf '%s: expected "%s", found:\n%s\n' "$what" "$expected" "$said" >&2
        exit 1
    fi
    echo "ok: $what"
}
relu=tests/fixtures/relu.onnx
say "a Relu on the CPU provider" "run 0 0 0 0.5 1 3" "$work/host" "$work/ort.so" "$relu" "library=$library"
say "a file that is no model is refused" "compile: model: " "$work/host" "$work/ort.so" "$work/ort.so" "library=$library"
say "another library is no ONNX Runtime" "no OrtGetApiBase" "$work/host" "$work/ort.so" "$relu" library=libm.so.6
say "a library that is not there" "cannot open ONNX Runtime" "$work/host" "$work/ort.so" "$relu" library=/nowhere.so
say "an unknown option is named" "unknown option, or too many: colour" "$work/host" "$work/ort.so" "$relu" "library=$library" colour=red
say "a provider's library that is none" "provider library: " "$work/host" "$work/ort.so" "$relu" "library=$library" \
    provider=QNNExecutionProvider provider_library=libm.so.6
say "a provider without a device" "no device of this provider" "$work/host" "$work/ort.so" "$relu" "library=$library" provider=NoProvider

echo "== rknn-toolkit2 2.5.0 from PyPI, and files for two chips"
environment rknn
install rknn --no-deps rknn-toolkit2==2.5.0
install rknn --only-binary :all: 'setuptools<81' 'numpy<=1.26.4' 'onnx<=1.18' 'protobuf<=4.25.4' psutil ruamel.yaml scipy tqdm \
    fast-histogram opencv-python-headless onnxruntime==1.22.1
"$cache/rknn/bin/python" tests/npu/make_rknn.py "$work" rk3588 rk3566 >"$work/toolkit.log" 2>&1 || {
    tail -20 "$work/toolkit.log" >&2
    exit 1
}

echo "== the agent's delegates with these libraries"
export OCELLI_ORT=$library OCELLI_QNN=$packages/onnxruntime_qnn OCELLI_RKNN_FILES=$work
OCELLI_RKNN=$(echo "$cache"/rknn/lib/python3*/site-packages/rknn/api/lib/linux-x86_64/librknn_api.so)
export OCELLI_RKNN
cargo build --locked --workspace --bins
cargo test --locked --workspace --test npu_vendor -- --include-ignored --nocapture --test-threads 1 --skip on_aarch64

if [ "${1:-}" = --aarch64 ]; then
    tests/npu/aarch64.sh "$cache" "$work"
fi
echo "== done"
