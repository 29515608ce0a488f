#!/usr/bin/env bash
# Runs the tests of the int8 kernels on emulated processors with VNNI, which QEMU does not have: Bochs boots Debian's
# kernel with the test binaries. For machines without VNNI, or to try all kinds on one; Debian or Ubuntu on x86_64.
#   tests/vnni/run.sh [CASES]
# CASES: random cases of each test (default 40). Bochs is built from Debian's sources once (about five minutes), into
# ~/.cache/ocelli/bochs.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
cases=${1:-40}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ocelli/bochs
work=${CARGO_TARGET_DIR:-$root/target}/vnni
version=3.0
source=http://deb.debian.org/debian/pool/main/b/bochs/bochs_$version+dfsg.orig.tar.xz
digest=78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b
# Name, instruction set, Bochs' model of a processor with what is added or taken away. Models that have all of this
# themselves do not get Linux up.
machines=(
    'avx512-vnni|avx512vnni|corei3_cnl, add_features="avx512vnni", exclude_features="avx512vbmi"'
    'avx512-vnni-vbmi|avx512vnni|corei3_cnl, add_features="avx512vnni"'
    'avx-vnni|avxvnni|corei7_haswell_4770, add_features="avx_vnni"'
)
limit=1800

packages=()
for pair in g++:g++ make:make xz:xz-utils curl:curl cpio:cpio xorriso:xorriso busybox:busybox-static; do
    command -v "${pair%%:*}" >/dev/null || packages+=("${pair##*:}")
done
[ -f /usr/lib/ISOLINUX/isolinux.bin ] || packages+=(isolinux syslinux-common)
[ -f /usr/share/bochs/BIOS-bochs-latest ] || packages+=(bochsbios)
[ -f /usr/share/vgabios/vgabios.bin ] || packages+=(vgabios)
[ ${#packages[@]} -eq 0 ] || "$root/tests/install.sh" "${packages[@]}"

bochs=$cache/bochs-$version/bochs
if [ ! -x "$bochs" ]; then
    echo "== build Bochs $version in $cache"
    mkdir -p "$cache"
    curl -fsSL --retry 3 -o "$cache/bochs.tar.xz" "$source"
    echo "$digest  $cache/bochs.tar.xz" | sha256sum --check --quiet
    tar -xf "$cache/bochs.tar.xz" -C "$cache"
    (
        cd "$cache/bochs-$version"
        # Haswell has no second part of CPUID's leaf 7, where AVX-VNNI is announced.
        sed -i '/::get_std_cpuid_leaf_7(/,/^}/ {
            s|leaf->eax = 0; /\* report|leaf->eax = 1; /* report|
            /default:/,/leaf->eax/ s|leaf->eax = 0;|leaf->eax = subfunction == 1 ? get_std_cpuid_leaf_7_subleaf_1_eax() : 0;|
        }' cpu/cpudb/intel/corei7_haswell_4770.cc
        ./configure --enable-cpu-level=6 --enable-x86-64 --enable-avx --enable-evex --enable-all-optimizations \
            --with-nogui --disable-plugins --disable-docbook >configure.log 2>&1
        make -j"$(nproc)" >make.log 2>&1 || { tail -n 20 make.log >&2; exit 1; }
    )
fi

mkdir -p "$work"
kernel=$(ls "$work"/kernel/boot/vmlinuz-* 2>/dev/null | head -n 1 || true)
if [ -z "$kernel" ]; then
    echo "== fetch Debian's kernel"
    image=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    [ -n "$image" ] || { echo "apt knows no linux-image-cloud-amd64: this needs Debian's package lists" >&2; exit 1; }
    (cd "$work" && apt-get download "$image" >/dev/null && dpkg-deb -x "$image"_*.deb kernel && rm "$image"_*.deb)
    kernel=$(ls "$work"/kernel/boot/vmlinuz-*)
fi

echo "== build the tests"
cd "$root"
# Static, so that the emulated machine needs nothing else; in a folder of its own because of the flags.
binaries=$(RUSTFLAGS="-C target-feature=+crt-static" cargo test --locked -p ocelli-int8 --no-run --lib --tests \
    --target x86_64-unknown-linux-gnu --target-dir "$work/target" --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
[ -n "$binaries" ] || { echo "cargo built no tests" >&2; exit 1; }

# boot NAME ISA MODEL: runs the tests on one machine.
boot() {
    local name=$1 isa=$2 model=$3 folder=$work/$1 binary
    rm -rf "$folder"
    mkdir -p "$folder"/root/{bin,proc,sys,dev,tmp} "$folder"/iso/isolinux
    cp "$(command -v busybox)" "$folder/root/bin/busybox"
    for binary in $binaries; do
        strip -o "$folder/root/bin/$(basename "$binary")" "$binary"
    done
    cat >"$folder/root/init" <<END
#!/bin/busybox sh
cd /
bin/busybox mount -t proc proc proc
bin/busybox mount -t devtmpfs dev dev
export OCELLI_ISA=$isa OCELLI_CASES=$cases
echo "== processor: \$(bin/busybox grep -m 1 flags proc/cpuinfo | bin/busybox grep -o -w -E 'avx2|avx512f|avx512vbmi|avx512_vnni|avx_vnni' | bin/busybox tr '\\n' ' ')"
for test in $(for binary in $binaries; do basename "$binary"; done | tr '\n' ' '); do
    echo "== \$test"
    bin/\$test --test-threads=1 || failed=yes
done
[ -n "\$failed" ] || echo ALL TESTS PASSED
# What is still on its way through the serial line would be lost.
bin/busybox sleep 3
bin/busybox poweroff -f
END
    chmod +x "$folder/root/init"
    (cd "$folder/root" && find . | cpio -o -H newc 2>/dev/null | gzip -1) >"$folder/iso/initrd.gz"
    cp "$kernel" "$folder/iso/vmlinuz"
    cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$folder/iso/isolinux/"
    cat >"$folder/iso/isolinux/isolinux.cfg" <<END
DEFAULT test
LABEL test
    KERNEL /vmlinuz
    INITRD /initrd.gz
    APPEND console=ttyS0 loglevel=4 panic=-1 nokaslr mitigations=off lsm=capability
END
    xorriso -as mkisofs -quiet -o "$folder/boot.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat \
        -no-emul-boot -boot-load-size 4 -boot-info-table "$folder/iso" >"$folder/xorriso.log" 2>&1
    cat >"$folder/bochsrc" <<END
display_library: nogui
cpu: model=$model, ips=100000000
memory: guest=2048, host=2048
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=$folder/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$folder/serial.txt
log: $folder/bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
clock: sync=none
END
    timeout "$limit" "$bochs" -q -f "$folder/bochsrc" >"$folder/out.txt" 2>&1 || true
    sed -n '/^==/p; /^test /p; /panicked/p; /^ALL/p' "$folder/serial.txt" | tr -d '\r'
    grep -q 'ALL TESTS PASSED' "$folder/serial.txt" || {
        echo "$name: tests failed or did not end within $limit s; see $folder/serial.txt and bochs.log" >&2
        exit 1
    }
}

for machine in "${machines[@]}"; do
    IFS='|' read -r name isa model <<<"$machine"
    echo "== $name"
    boot "$name" "$isa" "$model"
done
