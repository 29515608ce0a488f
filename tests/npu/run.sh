#!/usr/bin/env bash
# Runs the plug-in for ONNX Runtime against the real library, fetched from PyPI by name into ~/.cache/ocelli (24 MB); needs
# python3 with venv, a C compiler and the network. Says what it runs.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v cc >/dev/null || tests/install.sh gcc libc6-dev
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ocelli/npu
python=$cache/venv/bin/python
if [ ! -x "$python" ]; then
    python3 -m venv --help >/dev/null 2>&1 || tests/install.sh python3-venv
    python3 -m venv "$cache/venv"
fi
echo "== onnxruntime 1.31.1 from PyPI"
"$python" -m pip install --quiet --disable-pip-version-check --only-binary :all: --no-deps onnxruntime==1.31.1
library=$(echo "$cache"/venv/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.*)

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
say "a provider without a device" "sees no device of this provider" "$work/host" "$work/ort.so" "$relu" "library=$library" provider=QNNExecutionProvider
say "a provider's library that is none" "provider library: " "$work/host" "$work/ort.so" "$relu" "library=$library" provider=X "provider_library=$work/ort.so"
say "an unknown option" "unknown option" "$work/host" "$work/ort.so" "$relu" "library=$library" colour=red
