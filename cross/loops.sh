#!/usr/bin/env bash
# Judges the inner loops of the int8 kernels for aarch64 with llvm-mca: cycles a round against the limit of the busiest unit
# (docs/performance.md). Needs cross/setup.sh aarch64-unknown-linux-musl and Debian's llvm-19.
set -euo pipefail
. "$(dirname "$0")/env.sh"

target=aarch64-unknown-linux-musl
zig_cargo "$target" zigbuild --profile kernels --package ocelli-int8 --bench nets
nets=$(find "$target_dir/$target/kernels/deps" -name 'nets-*' -type f -perm /111 -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2)
python3 "$root/crates/int8/benches/inner_loops.py" "$nets"
