#!/usr/bin/env bash
# Judges the inner loops of the int8 kernels for aarch64 with llvm-mca: cycles a round against the limit of the busiest unit
# (docs/performance.md). Debian only, for its llvm-19.
set -euo pipefail
. "$(dirname "$0")/env.sh"
cd "$root"

target=aarch64-unknown-linux-musl
cross/setup.sh "$target"
command -v llvm-mca-19 >/dev/null || tests/install.sh llvm-19
zig_cargo "$target" zigbuild --profile kernels --package ocelli-int8 --bench nets
nets=$(find "$target_dir/$target/kernels/deps" -name 'nets-*' -type f -perm /111 -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2)
python3 "$root/crates/int8/benches/inner_loops.py" "$nets"
