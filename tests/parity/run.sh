#!/usr/bin/env bash
# Compares the agent with onnxruntime and Pillow (docs/inference.md), in a Python environment of its own.
#
# OCELLI_DATA         folder with `imagenet-sample/` (labels.csv and pictures) and `coco-sample/` (images, labels in YOLO form)
# OCELLI_QOP_MODELS   folder with `<model>-qop.onnx` of the recipes; without it, QOperator files are left out
# OCELLI_PYTHON       Python with the packages of models/recipes/requirements.txt; without it, a temporary one is made
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ ! -d "${OCELLI_DATA:-}" ]; then
    echo "test-parity: set OCELLI_DATA to the folder of labelled pictures; tests/parity/run.sh says what lies in it" >&2
    exit 1
fi
if [ -z "${OCELLI_PYTHON:-}" ]; then
    environment=$(mktemp -d)
    trap 'rm -rf "$environment"' EXIT
    python3 -m venv "$environment"
    OCELLI_PYTHON=$environment/bin/python
    "$OCELLI_PYTHON" -m pip install --quiet --disable-pip-version-check --requirement models/recipes/requirements.txt
fi
export OCELLI_PYTHON
left_out=()
if [ -z "${OCELLI_QOP_MODELS:-}" ]; then
    echo "test-parity: OCELLI_QOP_MODELS is not set: the QOperator files are left out" >&2
    left_out=(qoperator)
fi
targets=(--locked --workspace --test parity)
if cargo nextest --version >/dev/null 2>&1; then
    filter="not test(${left_out[0]:-/^$/})"
    cargo nextest run "${targets[@]}" --run-ignored all -E "$filter"
else
    cargo test "${targets[@]}" -- --include-ignored --nocapture --test-threads 1 ${left_out[0]:+--skip "${left_out[0]}"}
fi
