#!/usr/bin/env bash
# The long tests of model updates, with their figures: 200 kills, 50 devices, a large model, python-tuf, and fuzzing.
#   tests/updates.sh [kill] [fleet] [classifier] [python] [fuzz]      without words: all of them
# OCELLI_KILL_ROUNDS, OCELLI_FLEET and OCELLI_FUZZ_SECONDS (of each target) change how much. Needs tests/setup.sh and, for
# python-tuf, python3 with venv and the Python package index once.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
[ $# -gt 0 ] || set -- kill fleet classifier python fuzz
# Agents of the same build, beside ocelctl.
cargo build --locked --workspace --bins
run() { cargo test --locked --workspace "$@" --nocapture; }

for part; do
    printf '\n== %s\n' "$part"
    case $part in
        kill) OCELLI_KILL_ROUNDS=${OCELLI_KILL_ROUNDS:-200} run --test update -- kill_9 ;;
        fleet) OCELLI_FLEET=${OCELLI_FLEET:-50} run --test update -- many_devices ;;
        classifier) run --test update -- --ignored a_device_fetches_a_new_head_only ;;
        python)
            python=$target/tuf-venv/bin/python
            if ! "$python" -c 'import tuf' 2>/dev/null; then
                python3 -m venv "$target/tuf-venv"
                "$python" -m pip install -q 'securesystemslib[crypto]==1.4.0' tuf==7.0.0
            fi
            OCELLI_PYTHON_TUF=$python run --test update -- --ignored python_tuf
            ;;
        fuzz) OCELLI_FUZZ_SECONDS=${OCELLI_FUZZ_SECONDS:-600} run --test fuzz -- --test-threads 1 ;;
        *) echo "updates.sh: no part $part; there are kill, fleet, classifier, python and fuzz" >&2; exit 2 ;;
    esac
done
