#!/usr/bin/env bash
# Builds the images and packages, each image of the tests twice, and boots them in QEMU: `make test-boards` calls it.
#
#   firmware/test.sh [NAME…]      all tests, or those whose names contain NAME
#
# Consoles are kept in target/tmp/firmware/<test>/console.log. Agents that are built already: OCELLI_AARCH64_AGENT,
# OCELLI_ARMV7_AGENT, OCELLI_AMD64_AGENT; else cross/build.sh makes them with the profile OCELLI_BOARDS_PROFILE (default: thin).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/.." && pwd)
cd "$root"
target=${CARGO_TARGET_DIR:-$root/target}
profile=${OCELLI_BOARDS_PROFILE:-thin}

"$here/setup.sh"
for architecture in aarch64:aarch64-unknown-linux-musl armv7:armv7-unknown-linux-musleabihf; do
    agent=OCELLI_${architecture%%:*}_AGENT
    agent=${agent^^}
    if [ -z "${!agent:-}" ]; then
        cross/setup.sh "${architecture#*:}"
        export "$agent=$(cross/build.sh "${architecture#*:}" --profile "$profile")"
    fi
done
if [ -z "${OCELLI_AMD64_AGENT:-}" ]; then
    cargo build --locked --workspace --bins
    OCELLI_AMD64_AGENT=$target/debug/ocelli
fi

export OCELLI_FIRMWARE_IMAGES=$target/firmware-tests
mkdir -p "$OCELLI_FIRMWARE_IMAGES"
# The tests' images: a model that loads in a moment under emulation, and a console that takes commands.
extra=$(mktemp -d)
trap 'rm -rf "$extra"' EXIT
cp -R "$here/tests/root/." "$extra/"
mkdir -p "$extra/usr/share/ocelli/models"
cp -R tests/fixtures/tiny-classifier "$extra/usr/share/ocelli/models/tiny"

build() {
    local board=$1 out=$2 agent=$OCELLI_AARCH64_AGENT words=
    [[ $board != qemu-armv7 && $board != nanopi-neo ]] || agent=$OCELLI_ARMV7_AGENT
    # Emulated, four processors wait for each other for minutes, and clocks switched off stay off.
    [ "$board" != nanopi-neo ] || words="maxcpus=1 clk_ignore_unused"
    echo "firmware: building $board"
    "$here/build.sh" "$board" --agent "$agent" --profile "$profile" --extra "$extra" --out "$out" \
        --kernel-words "$words"
}
for board in qemu-arm64 qemu-armv7 nanopi-neo; do build "$board" "$OCELLI_FIRMWARE_IMAGES"; done
# A second time, elsewhere: every byte must be the same.
again=$OCELLI_FIRMWARE_IMAGES/again
for board in qemu-arm64 nanopi-neo; do
    build "$board" "$again"
    for file in img slot img.bmap; do
        cmp "$OCELLI_FIRMWARE_IMAGES/$board.$file" "$again/$board.$file" || { echo "test.sh: two builds of $board differ" >&2; exit 1; }
    done
done
rm -r "$again"
# Boards that nothing here can boot: that their images can be made is all that is shown.
for board in rockpro64 raspberrypi-4; do build "$board" "$OCELLI_FIRMWARE_IMAGES"; done
rm -f "$OCELLI_FIRMWARE_IMAGES"/*.deb "$target/tmp/firmware/figures.md"
for package in arm64:$OCELLI_AARCH64_AGENT armhf:$OCELLI_ARMV7_AGENT amd64:$OCELLI_AMD64_AGENT; do
    "$here/package.sh" "${package%%:*}" --agent "${package#*:}" --out "$OCELLI_FIRMWARE_IMAGES"
done

# One at a time: each emulates a whole board.
cargo test --locked --workspace --test firmware -- --ignored --test-threads=1 "$@"
if [ -e "$target/tmp/firmware/figures.md" ]; then
    echo
    echo "| board | image, MiB | of it to write, MiB | to first result, s of the host | of the guest | peak RSS of the agent, KiB |"
    echo "|---|---|---|---|---|---|"
    cat "$target/tmp/firmware/figures.md"
fi
