#!/usr/bin/env bash
# Builds the agent for an ARM target, fully static, and prints its path.
#   cross/build.sh TARGET [--profile PROFILE] [cargo's options]
# PROFILE is `release`, the shipped binary, unless named; `thin` links in seconds.
set -euo pipefail
. "$(dirname "$0")/env.sh"

target=${1:-}
check_target "$target"
shift
profile=release
if [ "${1:-}" = --profile ]; then
    profile=${2:?--profile needs a name}
    shift 2
fi

zig_cargo "$target" zigbuild --package ocelli --bin ocelli --profile "$profile" "$@" >&2
binary=$target_dir/$target/$profile/ocelli
# Every ELF program header by name: an interpreter is what a static program has not.
if LC_ALL=C readelf --program-headers --wide "$binary" | grep -q INTERP; then
    die "$binary is not static: $(LC_ALL=C readelf --program-headers "$binary" | grep interpreter)"
fi
echo "$binary"
