#!/bin/sh
# int8 nets through ocelli, onnxruntime and OpenVINO on one core; writes the tables of docs/performance.md.
#   benches/peers.sh [core] [more options of compare.py]
# With `--threads 2` on two cores, [core] and the one before; that table is printed only.
# The nets: the zoo's, and known shapes with random weights from models/recipes/shapes.py (kept in target/shapes).
# OCELLI names a binary to measure instead of building the release one; then say with --build how it was built.
# PEERS names a Python that has numpy, onnx, onnxruntime, openvino and sympy, instead of installing them.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
core=${1:-1}
[ $# -eq 0 ] || shift
cd "$here/.."
target=${CARGO_TARGET_DIR:-target}
if [ -z "${PEERS:-}" ]; then
    PEERS=$target/venv-peers/bin/python
    [ -x "$PEERS" ] || python3 -m venv "$target/venv-peers"
    "$PEERS" -m pip install --quiet numpy onnx onnxruntime openvino sympy
fi
if [ -z "${OCELLI:-}" ]; then
    cargo build --locked --release -p ocelli --bin ocelli
    OCELLI=$target/release/ocelli
fi
shapes="mobilenetv2-224 mobilenetv3-small-224 resnet18-224 resnet50-224 yolov8n-320"
for net in $shapes; do
    [ -e "$target/shapes/$net.onnx" ] || "$PEERS" models/recipes/shapes.py "$target/shapes" "$net"
done
set -- --core "$core" --doc docs/performance.md "$@"
for net in $shapes; do
    set -- "$target/shapes/$net.onnx" "$@"
done
exec "$PEERS" "$here/compare.py" "$OCELLI" models/*/model.onnx "$@"
