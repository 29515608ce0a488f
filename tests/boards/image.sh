#!/usr/bin/env bash
# Makes kernel and initramfs of an emulated board from Debian's packages and what lies beside this script.
#
#   tests/boards/image.sh arm64|armhf FOLDER      writes FOLDER/{kernel,initramfs} and, for armhf, FOLDER/ast2600.dtb
#
# The initramfs has busybox, the modules that the boards need, the feeder of the virtual camera (tests/v4l2/vivid.c) and init.sh.
# The agent is not in it: the harness appends it. Nothing is done when nothing changed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
architecture=$1 out=$2
export PATH=$PATH:/sbin:/usr/sbin

# What boards are made of; vivid is the virtual camera.
modules="virtio_pci virtio_blk virtio_net ext4 crc32c_generic vivid"
case $architecture in
arm64)
    flavour=arm64 triple=aarch64-linux-musl
    modules+=" i6300esb"
    ;;
armhf)
    flavour=armmp triple=arm-linux-musleabihf
    # The AST2600: network, eMMC, I2C, GPIO, thermometer.
    modules+=" mdio-aspeed realtek ftgmac100 sdhci-of-aspeed i2c-aspeed gpio-aspeed i2c-dev lm75"
    ;;
*)
    echo "image.sh: unknown architecture $architecture; arm64 or armhf" >&2
    exit 2
    ;;
esac

{
    read -r kernel
    read -r busybox
} < <("$root/firmware/debian.sh" "$architecture" "linux-image-$flavour" busybox-static)
[ -n "${busybox:-}" ] || exit 1
release=$(basename "$kernel"/lib/modules/*)
state=$(echo "$kernel $busybox" | cat - "$here/image.sh" "$here/init.sh" "$root/tests/v4l2/vivid.c" | sha256sum)
[ "$(cat "$out/state" 2>/dev/null)" != "$state" ] || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work"/{bin,dev,proc,sys,run,data,etc} "$work/lib/modules/$release"
cp "$busybox/bin/busybox" "$work/bin/"
for applet in sh mount umount mkdir mknod modprobe rmmod ip ls cat cp rm cut grep sed head tail tr dd df dmesg date sleep kill killall \
    pidof setsid stty sync reboot poweroff printf test true false seq sha256sum touch chmod usleep awk wc mv; do
    ln -s busybox "$work/bin/$applet"
done
cp "$here/init.sh" "$work/init"
chmod +x "$work/init"
# zig is a C compiler and C library for every target, installed by cross/setup.sh.
zig() (. "$root/cross/env.sh" && PATH=$tools/bin:$PATH && exec python3 -m ziglang "$@")
zig cc -target "$triple" -static -O1 -Wall -o "$work/bin/vivid" "$root/tests/v4l2/vivid.c"
for module in $modules; do
    modprobe -d "$kernel" -S "$release" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
done | sort -u | while read -r file; do
    install -D -m 644 "$file" "$work/lib/modules/$release/${file##*/"$release"/}"
done
cp "$kernel/lib/modules/$release"/modules.{order,builtin,builtin.modinfo} "$work/lib/modules/$release/"
depmod -b "$work" "$release"

(cd "$work" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 | gzip -1n) >"$out/initramfs"
# Archives that follow begin at a multiple of four bytes.
truncate -s %4 "$out/initramfs"
cp "$kernel/boot/vmlinuz-$release" "$out/kernel"
[ "$architecture" = arm64 ] || cp "$kernel/usr/lib/linux-image-$release/aspeed-ast2600-evb-a1.dtb" "$out/ast2600.dtb"
echo "$state" >"$out/state"
