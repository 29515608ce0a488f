#!/usr/bin/env bash
# Builds ocelli-npu-worker for ARM and prints its path. It is dynamic, for glibc 2.28 or later, since it loads vendors' libraries.
#   cross/worker.sh aarch64-unknown-linux-gnu|armv7-unknown-linux-gnueabihf
# Needs cross/setup.sh TARGET.
set -euo pipefail
. "$(dirname "$0")/env.sh"

target=${1:-}
check_target "$target" "${worker_targets[@]}"
zig_cargo "$target" zigbuild --package ocelli-npu-worker --bin ocelli-npu-worker --profile thin >&2
binary=$target_dir/$target/thin/ocelli-npu-worker
LC_ALL=C readelf --program-headers --wide "$binary" | grep -q INTERP || die "$binary is static: it cannot load a plug-in"
echo "$binary"
