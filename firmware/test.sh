#!/usr/bin/env bash
# Builds the images and packages, each image of the tests twice, and boots them in QEMU: `make test-boards` calls it.
#
#   firmware/test.sh [NAME…]      all tests, or those whose names contain NAME
#
# Consoles are kept in target/tmp/firmware/<test>/console.log. Agents that are built already: OCELLI_AARCH64_AGENT,
# OCELLI_ARMV7_AGENT, OCELLI_AMD64_AGENT (with its worker beside it); else cross/build.sh makes them with the profile
# OCELLI_BOARDS_PROFILE (default: thin). Workers for ARM: OCELLI_AARCH64_WORKER, OCELLI_ARMV7_WORKER, else cross/worker.sh.
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
for architecture in aarch64:aarch64-unknown-linux-gnu armv7:armv7-unknown-linux-gnueabihf; do
    worker=OCELLI_${architecture%%:*}_WORKER
    worker=${worker^^}
    if [ -z "${!worker:-}" ]; then
        cross/setup.sh "${architecture#*:}"
        export "$worker=$(cross/worker.sh "${architecture#*:}")"
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
# package ARCHITECTURE FOLDER: prints its path.
package() {
    local agent=$OCELLI_AMD64_AGENT worker
    worker=$(dirname "$OCELLI_AMD64_AGENT")/ocelli-npu-worker
    [ "$1" != arm64 ] || agent=$OCELLI_AARCH64_AGENT worker=$OCELLI_AARCH64_WORKER
    [ "$1" != armhf ] || agent=$OCELLI_ARMV7_AGENT worker=$OCELLI_ARMV7_WORKER
    "$here/package.sh" "$1" --agent "$agent" --worker "$worker" --out "$2"
}
for architecture in arm64 armhf amd64; do package $architecture "$OCELLI_FIRMWARE_IMAGES"; done
# Another version of it to upgrade from, a Debian system to install it on, and a plug-in for that board.
debian=$OCELLI_FIRMWARE_IMAGES/debian
"$here/tests/debian/system.sh" "$debian"
for architecture in arm64 amd64; do
    older=$(OCELLI_FIRMWARE_VERSION=0.0.9 package $architecture "$debian")
    mv "$older" "$debian/older-$architecture.deb"
    cp "$OCELLI_FIRMWARE_IMAGES"/ocelli_*_$architecture.deb "$debian/newer-$architecture.deb"
done
(. cross/env.sh && PATH=$tools/bin:$PATH && exec python3 -m ziglang cc -target aarch64-linux-gnu.2.28 -std=c11 -O2 -shared -fPIC \
    -fvisibility=hidden -I crates/delegate/include crates/delegate/plugins/ref.c -o "$debian/ref.so" -lm)

# One at a time: each emulates a whole board.
cargo test --locked --workspace --test firmware -- --ignored --test-threads=1 "$@"
if [ -e "$target/tmp/firmware/figures.md" ]; then
    echo
    echo "| board | image, MiB | of it to write, MiB | to first result, s of the host | of the guest | peak RSS of the agent, KiB |"
    echo "|---|---|---|---|---|---|"
    cat "$target/tmp/firmware/figures.md"
fi
