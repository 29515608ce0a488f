#!/usr/bin/env bash
# Runs the public TUF conformance suite and both directions of python-tuf interoperability against this crate.
#   TUF_CONFORMANCE=DIR crates/tuf/conformance.sh [pytest arguments]
# DIR is a checkout of github.com/theupdateframework/tuf-conformance (docs/tuf.md names the commit). Nothing of it is kept.
# Needs python3 with venv, faketime, and the Python package index once.
set -euo pipefail
suite=${TUF_CONFORMANCE:?name a checkout of theupdateframework/tuf-conformance in TUF_CONFORMANCE}
suite=$(realpath "$suite")
cd "$(dirname "$0")/../.."

command -v faketime >/dev/null || { echo "conformance: install the package faketime" >&2; exit 1; }
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
python=$target/tuf-venv/bin/python
if ! "$python" -c 'import tuf, pytest' 2>/dev/null; then
    python3 -m venv "$target/tuf-venv"
    "$python" -m pip install -q 'securesystemslib[crypto]==1.4.0' tuf==7.0.0 pytest==9.1.1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The client must be linked to the C library dynamically: faketime works by preloading.
cargo build --locked -p ocelli-tuf --features repository --examples

echo "== python-tuf reads what our writing side wrote"
"$target/debug/examples/tuf-repository" "$work/ours"
"$python" crates/tuf/tests/interop/read.py "$work/ours" readme.txt 'named by targets' \
    releases/nanodet-1.0.0.tar 'named by releases' rollout/nanodet.json 'named by rollout'

echo "== we read what python-tuf wrote"
"$python" crates/tuf/tests/interop/write.py "$work/theirs"
TUF_INTEROP_REPOSITORY=$work/theirs \
    cargo test --locked -q -p ocelli-tuf --test interop -- --exact reads_what_python_tuf_wrote

echo "== conformance"
cp "$target/debug/examples/tuf-client" "$work/client"
cd "$suite"
PYTHONDONTWRITEBYTECODE=1 "$python" -m pytest -q -p no:cacheprovider tuf_conformance --entrypoint "$work/client" "$@"
