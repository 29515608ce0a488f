#!/usr/bin/env bash
# Runs the agent on emulated boards: builds it for ARM, makes kernel and initramfs, and runs the tests of tests/boards one by one.
#
#   tests/boards/run.sh [--aarch64] [NAME…]     all tests, or those whose names contain NAME; --aarch64: build for aarch64 only
#
# Consoles are kept in target/tmp/boards/<test>/console.log. An agent that is built already: OCELLI_AARCH64_AGENT, OCELLI_ARMV7_AGENT.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root"
target=${CARGO_TARGET_DIR:-$root/target}

architectures=(aarch64 armv7)
if [ "${1:-}" = --aarch64 ]; then
    architectures=(aarch64)
    shift
fi
tests/setup.sh
tests/install.sh qemu-system-arm cpio kmod e2fsprogs
for architecture in "${architectures[@]}"; do
    case $architecture in
    aarch64) triple=aarch64-unknown-linux-musl debian=arm64 ;;
    armv7) triple=armv7-unknown-linux-musleabihf debian=armhf ;;
    esac
    agent=OCELLI_${architecture^^}_AGENT image=OCELLI_${architecture^^}_IMAGE
    cross/setup.sh "$triple"
    if [ -z "${!agent:-}" ]; then
        built=$(cross/build.sh "$triple" --profile "${OCELLI_BOARDS_PROFILE:-thin}")
        export "$agent=$built"
    fi
    export "$image=$target/boards/$debian"
    "$here/image.sh" "$debian" "${!image}"
done

rm -f "$target/tmp/boards/figures.md"
# For model updates, which are pushed from here.
cargo build --locked --workspace --bin ocelctl
# One at a time: each emulates a whole board.
cargo test --locked --workspace --test boards -- --ignored --test-threads=1 "$@"
if [ -e "$target/tmp/boards/figures.md" ]; then
    echo
    echo "| board | model | delegates | peak RSS, MiB | RSS, MiB | to first result, s of the guest | of the host |"
    echo "|---|---|---|---|---|---|---|"
    cat "$target/tmp/boards/figures.md"
fi
