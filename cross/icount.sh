#!/usr/bin/env bash
# Counts ARM instructions per inference and per frame for the zoo, beside a build that is optimised for speed only, and writes
# the table of docs/performance.md.
#   cross/icount.sh [--delegates A,B] [--cpu CPU…] [further options of icount.py] [-- MODEL…]
# OCELLI and OCELLI_ALL_SPEED name binaries to count instead of building them; with OCELLI alone, nothing is compared. Say with
# --build how they were built.
set -euo pipefail
. "$(dirname "$0")/env.sh"

target=aarch64-unknown-linux-musl
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    options+=("$1")
    shift
done
[ $# -eq 0 ] || shift
cd "$root"
[ $# -gt 0 ] || set -- models/*/model.onnx

# Debian's static emulator takes no plugins, the dynamic one does.
command -v qemu-aarch64 >/dev/null || tests/install.sh qemu-user
command -v cc >/dev/null || tests/install.sh gcc libc6-dev
mkdir -p "$target_dir/icount"
cc -shared -fPIC -O2 -Wall -Wextra -o "$target_dir/icount/libicount.so" cross/icount.c

# Every package at opt-level 3, also those for which the release profile says otherwise, and nothing outlined.
all_speed() {
    local config=(--config 'profile.all-speed.inherits="release"' --config profile.all-speed.opt-level=3) package
    for package in $(sed -n '/^\[profile\.release\.package\]$/,/^$/s/^\([^.]*\)\.opt-level.*/\1/p' Cargo.toml); do
        config+=(--config "profile.all-speed.package.\"$package\".opt-level=3")
    done
    OCELLI_OUTLINER='' cross/build.sh "$target" --profile all-speed "${config[@]}"
}

if [ -z "${OCELLI:-}" ]; then
    cross/setup.sh "$target"
    OCELLI=$(cross/build.sh "$target")
    OCELLI_ALL_SPEED=$(all_speed)
fi
[ -z "${OCELLI_ALL_SPEED:-}" ] || options+=(--all-speed "$OCELLI_ALL_SPEED")
python3 cross/icount.py "${@%/model.onnx}" --binary "$OCELLI" --doc docs/performance.md \
    --emulator "qemu-aarch64 -plugin $target_dir/icount/libicount.so" "${options[@]}"
