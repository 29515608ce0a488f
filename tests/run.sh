#!/usr/bin/env bash
# Runs every test: one build of everything, unit and integration tests, documentation examples, lints; then the ARM build in
# an emulator, and on an emulated board.
set -euo pipefail
cd "$(dirname "$0")/.."

# Benches have their own main and are built by the lints only.
targets=(--locked --workspace --lib --bins --tests --examples)
started=$SECONDS
step() { printf '\n== %s (%ss)\n' "$*" $((SECONDS - started)); }

step build
cargo build "${targets[@]}"

step tests
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run "${targets[@]}"
else
    cargo test "${targets[@]}"
fi

step documentation examples
cargo test --locked --workspace --doc

step formatting and lints
make --no-print-directory lint

step the ARM build
cross/setup.sh aarch64-unknown-linux-musl
cross/test.sh aarch64-unknown-linux-musl --binary

step an emulated board: camera, classification, broker
tests/boards/run.sh --aarch64 aarch64_classifies

step done
