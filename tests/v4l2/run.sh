#!/usr/bin/env bash
# Captures from the kernel's vivid driver with our camera, in a virtual machine with Debian's kernel. Opt-in: `make test-v4l2`.
# Needs Debian on x86_64 with apt; installs QEMU, and downloads the kernel package (70 MB) into a temporary folder. Nothing of
# that kernel is installed. Keep the folder for further runs with OCELLI_V4L2_DIR=<folder>.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
missing=()
for tool in qemu-system-x86_64:qemu-system-x86 cpio:cpio depmod:kmod gcc:gcc; do
    [ -n "$(PATH=$PATH:/sbin:/usr/sbin type -P "${tool%%:*}")" ] || missing+=("${tool##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
    as_root apt-get update -q
    as_root apt-get install -y -q --no-install-recommends "${missing[@]}" libc6-dev
fi
export PATH=$PATH:/sbin:/usr/sbin

if [ -n "${OCELLI_V4L2_DIR:-}" ]; then
    work=$OCELLI_V4L2_DIR
    mkdir -p "$work"
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
if ! compgen -G "$work/kernel/boot/vmlinuz-*" >/dev/null; then
    package=$(apt-cache depends linux-image-amd64 | sed -n 's/ *Depends: \(linux-image-\)/\1/p' | head -n 1)
    (cd "$work" && apt-get download -q "$package" busybox-static)
    dpkg -x "$work"/linux-image-*.deb "$work/kernel"
    dpkg -x "$work"/busybox-static_*.deb "$work/busybox"
    rm "$work"/*.deb
fi
release=$(basename "$work"/kernel/lib/modules/*)
depmod -b "$work/kernel" "$release"

(cd "$root" && cargo build --quiet --package ocelli --example v4l2-capture)
target=$(cd "$root" && cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
capture=$target/debug/examples/v4l2-capture

image=$work/initramfs
rm -rf "$image"
mkdir -p "$image"/{bin,dev,proc,sys,tmp,lib/modules}
cp "$work/busybox/bin/busybox" "$image/bin/"
for applet in $("$image/bin/busybox" --list); do [ "$applet" = busybox ] || ln -s busybox "$image/bin/$applet"; done
cp "$here/guest.sh" "$image/init"
chmod +x "$image/init"
cp "$capture" "$image/bin/"
gcc -static -O1 -Wall -o "$image/bin/vivid" "$here/vivid.c"
# The libraries that the program is linked with, at the paths where its loader looks for them.
ldd "$capture" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$image$(dirname "$library")"
    cp -L "$library" "$image$library"
done
modules=$image/lib/modules/$release
mkdir -p "$modules"
modprobe -d "$work/kernel" -S "$release" --show-depends vivid | sed -n 's/^insmod \([^ ]*\).*/\1/p' | while read -r module; do
    cp "$module" "$modules/"
done
cp "$work/kernel/lib/modules/$release"/modules.{order,builtin,builtin.modinfo} "$modules/"
depmod -b "$image" "$release"
(cd "$image" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initramfs.gz"

log=$work/log
timeout "${OCELLI_V4L2_TIMEOUT:-400}" qemu-system-x86_64 -accel tcg -cpu max -m 768 -nographic -no-reboot \
    -kernel "$work/kernel/boot/vmlinuz-$release" -initrd "$work/initramfs.gz" \
    -append "console=ttyS0 panic=-1 quiet loglevel=3" </dev/null | tee "$log" | grep --line-buffered -a -v '^.\[' || true
grep -aq 'V4L2 PASS' "$log" && ! grep -aq '^FAIL' "$log"
