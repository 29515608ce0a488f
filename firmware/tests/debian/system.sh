#!/usr/bin/env bash
# Makes a Debian 12 system for an emulated arm64 board, systemd and all, without root: debootstrap unpacks it here, and the board itself runs
# the packages' scripts (some ten minutes; kept in the cache for a month).
#   firmware/tests/debian/system.sh FOLDER       writes FOLDER/{kernel,initramfs,system.img}
set -euo pipefail
export PATH=$PATH:/sbin:/usr/sbin
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
out=$1
"$root/tests/install.sh" debootstrap fakeroot e2fsprogs qemu-system-arm cpio kmod
"$root/cross/setup.sh" aarch64-unknown-linux-musl
"$root/tests/boards/image.sh" arm64 "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The kernel takes the last archive's /init.
install -m 755 "$here/init" "$work/init"
(cd "$work" && echo init | cpio --quiet -o -H newc -R 0:0 | gzip -1n >"$work/archive")
cat "$out/initramfs" "$work/archive" >"$out/initramfs.debian"

cache=${OCELLI_DEBIAN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ocelli/debian}
state=$(cat "$here"/{serve.service,system.sh} "$root/firmware/tests/root/etc/init.d/serve" | sha256sum | cut -c1-16)
system=$cache/system-arm64-$state.img
if [ -z "$(find "$system" -mtime -30 2>/dev/null)" ]; then
    rm -f "$cache"/system-arm64-*.img
    tree=$work/tree
    # fakeroot: files belong to root in the image only.
    cat >"$work/make" <<'S'
set -e
debootstrap --foreign --arch=arm64 --variant=minbase --include=systemd-sysv,udev bookworm "$1" >"$1.log" 2>&1 || { tail "$1.log" >&2; exit 1; }
# Where it cannot mount, debootstrap links this folder to the one outside.
[ ! -L "$1/proc" ] || { rm "$1/proc"; mkdir "$1/proc"; }
install -D -m 644 "$2/serve.service" "$1/etc/systemd/system/serve.service"
install -D -m 755 "$3" "$1/usr/local/sbin/serve"
echo board >"$1/etc/hostname"
: >"$1/etc/machine-id"
mkdir -p "$1/packages"
mke2fs -q -t ext4 -d "$1" "$4" 1500M
S
    fakeroot bash "$work/make" "$tree" "$here" "$root/firmware/tests/root/etc/init.d/serve" "$work/system.img"
    echo "system.sh: the board sets up its packages; this takes a while" >&2
    timeout 3600 qemu-system-aarch64 -M virt -cpu cortex-a72 -smp 2 -m 768 -nographic -no-reboot -nic none \
        -kernel "$out/kernel" -initrd "$out/initramfs.debian" -append "console=ttyAMA0 panic=-1 quiet" \
        -drive "file=$work/system.img,if=none,id=system,format=raw,cache=unsafe" -device virtio-blk-pci,drive=system \
        </dev/null >"$out/setup.log" 2>&1 || true
    grep -q 'init: the system is made' "$out/setup.log" || { tail -n 30 "$out/setup.log" >&2; exit 1; }
    cp --sparse=always "$work/system.img" "$system.part"
    mv "$system.part" "$system"
fi
cp --sparse=always "$system" "$out/system.img"
