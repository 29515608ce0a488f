#!/usr/bin/env bash
# Installs what firmware/build.sh, flash.sh, package.sh and the boot tests need on Debian 12; does nothing when it is there.
#
#   firmware/setup.sh
set -euo pipefail
export PATH=$PATH:/sbin:/usr/sbin

missing=()
for tool in sfdisk:fdisk mcopy:mtools mke2fs:e2fsprogs mksquashfs:squashfs-tools mkimage:u-boot-tools bmaptool:bmap-tools \
    cpio:cpio depmod:kmod python3:python3 qemu-system-aarch64:qemu-system-arm mosquitto:mosquitto \
    mosquitto_sub:mosquitto-clients lintian:lintian readelf:binutils; do
    [ -n "$(type -P "${tool%%:*}")" ] || missing+=("${tool##*:}")
done
[ -e /usr/lib/u-boot/qemu_arm64/u-boot.bin ] || missing+=(u-boot-qemu)
[ ${#missing[@]} -gt 0 ] || exit 0

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
if [ -z "$(type -P apt-get)" ]; then
    echo "setup.sh: these are missing, and this machine has no apt-get to install them: ${missing[*]}" >&2
    exit 1
fi
as_root apt-get update -q
as_root apt-get install -y -q --no-install-recommends "${missing[@]}"
