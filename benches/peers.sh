#!/bin/sh
# The zoo's models through ocelli, onnxruntime and OpenVINO on one core; writes the table of docs/performance.md.
#   benches/peers.sh [core] [more options of compare.py]
# OCELLI names a binary to measure instead of building the release one; then say with --build how it was built.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
core=${1:-1}
[ $# -eq 0 ] || shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$here/.."
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy onnxruntime openvino
if [ -z "${OCELLI:-}" ]; then
    cargo build --locked --release -p ocelli --bin ocelli
    OCELLI=${CARGO_TARGET_DIR:-target}/release/ocelli
fi
taskset -c "$core" "$work/venv/bin/python" "$here/compare.py" "$OCELLI" models/*/model.onnx \
    --doc docs/performance.md "$@"
