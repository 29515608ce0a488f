#!/usr/bin/env bash
# Builds the Debian package of the agent, for boards that run Debian 12 or Raspberry Pi OS already: a service of its own user, shut
# in by systemd. The same inputs give the same bytes.
#
#   firmware/package.sh arm64|armhf|amd64 [--agent FILE] [--worker FILE] [--out DIR]
#
# --agent FILE   the agent (default: built; for ARM static with cross/build.sh, for amd64 with cargo)
# --worker FILE  ocelli-npu-worker, dynamic for glibc (default: built; for ARM with cross/worker.sh, for amd64 with cargo)
# --out DIR      where ocelli_VERSION_ARCHITECTURE.deb goes (default: target/firmware)
# Environment: OCELLI_FIRMWARE_VERSION, SOURCE_DATE_EPOCH as for firmware/build.sh.
set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/.." && pwd)

die() { echo "package.sh: $*" >&2; exit 1; }

architecture=${1:-}
case $architecture in
    arm64) triple=aarch64-unknown-linux-musl gnu=aarch64-unknown-linux-gnu machine=AArch64 ;;
    armhf) triple=armv7-unknown-linux-musleabihf gnu=armv7-unknown-linux-gnueabihf machine=ARM ;;
    amd64) triple= gnu= machine='Advanced Micro Devices X86-64' ;;
    *) die "no architecture '$architecture'; one of arm64, armhf, amd64" ;;
esac
shift
target=${CARGO_TARGET_DIR:-$root/target}
agent= worker= out=$target/firmware
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || die "$1 needs a value"
    case $1 in
        --agent) agent=$2 ;;
        --worker) worker=$2 ;;
        --out) out=$2 ;;
        *) die "unknown option $1" ;;
    esac
    shift 2
done
"$here/setup.sh" >&2
if [ -z "$agent" ] && [ -n "$triple" ]; then
    "$root/cross/setup.sh" $triple >&2
    agent=$("$root/cross/build.sh" $triple | tail -n 1)
elif [ -z "$agent" ]; then
    (cd "$root" && cargo build --locked --release -p ocelli --bin ocelli >&2)
    agent=$target/release/ocelli
fi
if [ -z "$worker" ] && [ -n "$gnu" ]; then
    "$root/cross/setup.sh" $gnu >&2
    worker=$("$root/cross/worker.sh" $gnu | tail -n 1)
elif [ -z "$worker" ]; then
    (cd "$root" && cargo build --locked --release -p ocelli-npu-worker >&2)
    worker=$target/release/ocelli-npu-worker
fi
for program in "$agent" "$worker"; do
    [ -x "$program" ] || die "no program $program"
    readelf -h "$program" 2>/dev/null | grep -q "Machine: *$machine\$" || die "$program is no program for $architecture"
done
# The newest interface of the C library that a program asks for, and every library beside it. ARM agents are static.
glibc=$(readelf -V "$agent" "$worker" | grep -o 'GLIBC_[0-9.]*' | sort -V | tail -n 1)
[ -n "$glibc" ] || die "$worker is static: it cannot load a plug-in"
libraries="libc6 (>= ${glibc#GLIBC_})"
[[ $(readelf -d "$agent" "$worker") != *libgcc_s.so* ]] || libraries+=", libgcc-s1"

version=${OCELLI_FIRMWARE_VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct)}
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
doc=$tree/usr/share/doc/ocelli
maintainer="Ocelli authors <ocelli@users.noreply.github.com>"
install -D -m 755 "$agent" "$tree/usr/bin/ocelli"
install -D -m 755 "$worker" "$tree/usr/bin/ocelli-npu-worker"
install -D -m 644 "$here/debian/ocelli.service" "$tree/lib/systemd/system/ocelli.service"
install -D -m 644 "$here/debian/sysusers.conf" "$tree/usr/lib/sysusers.d/ocelli.conf"
install -D -m 644 "$here/debian/udev.rules" "$tree/lib/udev/rules.d/60-ocelli.rules"
install -D -m 644 "$here/debian/README.Debian" "$doc/README.Debian"
install -D -m 644 "$here/fat/ocelli-example.toml" "$doc/ocelli-example.toml"
mkdir -p "$tree/usr/share/ocelli/models" "$tree/usr/share/lintian/overrides" "$tree/DEBIAN"
for model in nanodet-g-coco pictures; do cp -R "$root/models/$model" "$tree/usr/share/ocelli/models/"; done
find "$tree/usr/share" -type f -exec chmod 644 {} +
gzip -9n <"$root/CHANGELOG.md" >"$doc/CHANGELOG.md.gz"
gzip -9n >"$doc/changelog.gz" <<C
ocelli ($version) stable; urgency=medium

  * CHANGELOG.md.gz says what changed.

 -- $maintainer  $(date -R -d "@$SOURCE_DATE_EPOCH")
C
cat >"$doc/copyright" <<C
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: ocelli

Files: *
Copyright: 2026 the Ocelli authors
License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.
 The models' own licences stand in their manifest.toml and README.md.
C
# One agent for every distribution: static on ARM.
cat >"$tree/usr/share/lintian/overrides/ocelli" <<L
ocelli: statically-linked-binary
ocelli: embedded-library
ocelli: unstripped-binary-or-object
L
cp "$here/debian/"{postinst,prerm,postrm} "$tree/DEBIAN/"
cat >"$tree/DEBIAN/control" <<C
Package: ocelli
Version: $version
Architecture: $architecture
Maintainer: $maintainer
Installed-Size: $(du -sk --apparent-size --exclude=DEBIAN "$tree" | cut -f1)
Depends: $libraries, systemd (>= 247)
Section: science
Priority: optional
Homepage: https://github.com/ocelli/ocelli
Description: on-device vision inference agent
 Turns the pictures of a camera into detections with a quantised ONNX model,
 on the device, and reports them over MQTT. Runs as a service of its own user
 that may use cameras, GPIO lines and I2C buses and nothing else, and is
 restarted when it makes no progress.
C
find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
mkdir -p "$out"
dpkg-deb --root-owner-group -Zxz --build "$tree" "$out/ocelli_${version}_$architecture.deb" >/dev/null
echo "$out/ocelli_${version}_$architecture.deb"
