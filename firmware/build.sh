#!/usr/bin/env bash
# Builds the image of a board without root or loop devices: BOARD.img with BOARD.img.bmap to flash, and BOARD.slot to install on a
# running board. The same inputs give the same bytes. What every step needs is installed by firmware/setup.sh, which this calls.
#
#   firmware/build.sh BOARD [--out DIR] [--extra DIR] [--modules "NAME…"] [--agent FILE] [--slot FILE] [--profile PROFILE]
#                     [--sign KEY] [--key PUB] [--confirm-after S] [--kernel-words "WORD…"]
#
# BOARD           a file name in firmware/boards/
# --out DIR       where the files go (default: target/firmware)
# --extra DIR     files added to the root file system; executable etc/init.d/S* run at the end of start-up
# --modules NAMES further kernel modules, with what they need
# --agent FILE    the agent, static, for the board (default: built with cross/build.sh)
# --slot FILE     likewise `ocelli-slot` for the board
# --profile NAME  cargo profile of both programs (default: release; `thin` links in seconds and is larger)
# --sign KEY      signs the slot file with a key of `ocelli-slot keygen`
# --key PUB       the board takes only firmware signed with one of these public keys
# --kernel-words  further words for the kernel's command line
# --confirm-after seconds that the agent must be ready and alive before a new slot counts (default 30)
# Environment: OCELLI_FIRMWARE_VERSION (default: the package's), SOURCE_DATE_EPOCH (default: the time of the last commit).
set -euo pipefail
export PATH=$PATH:/sbin:/usr/sbin LC_ALL=C TZ=UTC
umask 022
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/.." && pwd)

die() { echo "build.sh: $*" >&2; exit 1; }

board=${1:-}
[[ $board =~ ^[a-z0-9-]+$ && -e $here/boards/$board ]] || die "no board '$board'; boards are: $(ls "$here/boards" | tr '\n' ' ')"
shift
out=${CARGO_TARGET_DIR:-$root/target}/firmware extra= more_modules= agent= slot= profile=release sign= key= confirm_after=30 words=
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || die "$1 needs a value"
    case $1 in
        --out) out=$2 ;;
        --extra) extra=$2 ;;
        --modules) more_modules=$2 ;;
        --agent) agent=$2 ;;
        --slot) slot=$2 ;;
        --profile) profile=$2 ;;
        --sign) sign=$2 ;;
        --key) key=$2 ;;
        --confirm-after) confirm_after=$2 ;;
        --kernel-words) words=$2 ;;
        *) die "unknown option $1" ;;
    esac
    shift 2
done
[ -z "$extra" ] || [ -d "$extra" ] || die "--extra: no folder $extra"
for program in "$agent" "$slot"; do [ -z "$program" ] || [ -x "$program" ] || die "no program $program"; done
"$here/setup.sh" >&2

FAT_FILES= CONFIG_TXT= LOADER_PARTS= MODULES= STORAGE_MODULES= DTB= DTB_ADDR= UNPACK_ADDR=
. "$here/boards/$board"
version=${OCELLI_FIRMWARE_VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct)}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The same program in the host's build packs what the board's build reads.
target_folder() { echo "${CARGO_TARGET_DIR:-$root/target}"; }
(cd "$root" && cargo build --quiet --locked -p ocelli-slot)
slot_tool=$(target_folder)/debug/ocelli-slot
eval "$("$slot_tool" layout)"

case $ARCHITECTURE in
    arm64) triple=aarch64-unknown-linux-musl ;;
    armhf) triple=armv7-unknown-linux-musleabihf ;;
esac
if [ -z "$agent" ] || [ -z "$slot" ]; then "$root/cross/setup.sh" $triple >&2; fi
slot_program=(--package ocelli-slot --bin ocelli-slot)
if [ -z "$agent" ]; then
    # Both programs in one call, so that what they share is compiled once.
    agent=$("$root/cross/build.sh" $triple --profile "$profile" "${slot_program[@]}" | tail -n 1)
elif [ -z "$slot" ]; then
    (. "$root/cross/env.sh" && zig_cargo $triple zigbuild --profile "$profile" "${slot_program[@]}" >&2)
fi
slot=${slot:-$(target_folder)/$triple/$profile/ocelli-slot}

packages=("$KERNEL" busybox-static e2fsprogs libc6 libext2fs2 libcom-err2 libblkid1 libuuid1)
[ "$LOADER" = none ] || packages+=("$LOADER")
[[ $FAT_FILES != *raspi-firmware* ]] || packages+=(raspi-firmware)
declare -A tree_of
mapfile -t trees < <("$here/debian.sh" "$ARCHITECTURE" "${packages[@]}")
[ ${#trees[@]} = ${#packages[@]} ] || die "not all packages could be fetched"
for number in "${!packages[@]}"; do tree_of[${packages[number]}]=${trees[number]}; done

# fetch PACKAGE: the folder that holds it.
fetch() { echo "${tree_of[$1]:?$1 is not among the packages of build.sh}"; }
kernel_tree=$(fetch "$KERNEL")
release=$(basename "$kernel_tree"/lib/modules/*)
busybox=$(fetch busybox-static)/bin/busybox

# copy_modules TREE NAME…: modules and what they need, with an index; names that this kernel has built in are no error.
copy_modules() {
    local tree=$1 name path
    shift
    mkdir -p "$tree/lib/modules/$release"
    for name in "$@"; do
        modprobe -d "$kernel_tree" -S "$release" --show-depends "$name" >"$work/depends" 2>/dev/null ||
            die "$KERNEL has no module $name"
        sed -n 's/^insmod \([^ ]*\).*/\1/p' "$work/depends" | while read -r path; do
            mkdir -p "$tree/$(dirname "${path#"$kernel_tree"}")"
            cp "$path" "$tree/${path#"$kernel_tree"}"
        done
    done
    cp "$kernel_tree/lib/modules/$release"/modules.{order,builtin,builtin.modinfo} "$tree/lib/modules/$release/"
    depmod -b "$tree" "$release"
    # These hold nothing that busybox reads, and the kmod tools' own version.
    rm -f "$tree/lib/modules/$release"/modules.*.bin "$tree/lib/modules/$release"/modules.{devname,softdep,symbols}
}

# busybox_links TREE: busybox under the names that scripts use.
busybox_links() {
    local tree=$1 name
    mkdir -p "$tree/bin"
    cp "$busybox" "$tree/bin/busybox"
    for name in $(applets); do [ -e "$tree/bin/$name" ] || ln -s busybox "$tree/bin/$name"; done
}
applets() { grep -v "^#" "$here/applets"; }

make_initramfs() {
    local tree=$work/initramfs
    mkdir -p "$tree"/{bin,dev,etc,proc,root,run,sys}
    busybox_links "$tree"
    cp "$slot" "$tree/bin/ocelli-slot"
    copy_modules "$tree" $STORAGE_MODULES loop squashfs
    echo "$STORAGE_MODULES ${WATCHDOG_MODULE:-} loop squashfs" >"$tree/etc/modules"
    sed "s/@ROOT_OFFSET@/$((ROOT_AT * 512))/" "$here/init" >"$tree/init"
    chmod 755 "$tree/init"
    find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    (cd "$tree" && find . -mindepth 1 -print0 | sort -z |
        cpio --quiet --null -o -H newc --owner 0:0 --reproducible) | gzip -9n >"$work/initrd"
}

# Programs that busybox has not, with the libraries that they are linked with.
copy_e2fsprogs() {
    local tree=$1 package library
    for package in libc6 libext2fs2 libcom-err2 libblkid1 libuuid1; do
        for library in "$(fetch $package)"/lib/*-linux-gnu*/{ld-*.so.*,libc.so.6,lib{ext2fs,com_err,blkid,uuid,e2p}.so.*} \
            "$(fetch $package)"/usr/lib/*-linux-gnu*/lib{blkid,uuid}.so.*; do
            [ -e "$library" ] || continue
            mkdir -p "$tree/lib/$(basename "$(dirname "$library")")"
            cp -L "$library" "$tree/lib/$(basename "$(dirname "$library")")/"
        done
    done
    case $ARCHITECTURE in
        arm64) ln -s aarch64-linux-gnu/ld-linux-aarch64.so.1 "$tree/lib/ld-linux-aarch64.so.1" ;;
        armhf) ln -s arm-linux-gnueabihf/ld-linux-armhf.so.3 "$tree/lib/ld-linux-armhf.so.3" ;;
    esac
    mkdir -p "$tree/sbin"
    for library in mke2fs e2fsck resize2fs; do cp "$(fetch e2fsprogs)/sbin/$library" "$tree/sbin/"; done
}

make_root() {
    local tree=$work/root model
    mkdir -p "$tree"/{bin,sbin,data,dev,etc/ocelli-firmware,proc,root,run,sys,tmp,var,usr/bin,usr/sbin,usr/share/ocelli/models}
    cp -R "$here/root/." "$tree/"
    busybox_links "$tree"
    ln -s ../bin/busybox "$tree/sbin/init"
    ln -s /run/resolv.conf "$tree/etc/resolv.conf"
    cp "$(fetch e2fsprogs)/etc/mke2fs.conf" "$tree/etc/"
    copy_e2fsprogs "$tree"
    cp "$agent" "$tree/usr/bin/ocelli"
    cp "$slot" "$tree/usr/bin/ocelli-slot"
    for model in nanodet-g-coco pictures; do cp -R "$root/models/$model" "$tree/usr/share/ocelli/models/"; done
    copy_modules "$tree" $MODULES $STORAGE_MODULES loop squashfs $COMMON_MODULES $more_modules
    echo "$MODULES $more_modules crc32c_generic ext4 vfat nls_cp437 nls_ascii nls_utf8" >"$tree/etc/modules"
    echo "$board" >"$tree/etc/ocelli-firmware/board"
    echo "$version" >"$tree/etc/ocelli-firmware/version"
    echo "$SOURCE_DATE_EPOCH" >"$tree/etc/ocelli-firmware/built"
    echo "$confirm_after" >"$tree/etc/ocelli-firmware/confirm-after"
    [ -z "$key" ] || cp "$key" "$tree/etc/ocelli-firmware/slot.pub"
    [ -z "$extra" ] || cp -R "$extra/." "$tree/"
    chmod 700 "$tree/root"
    # mksquashfs takes the time from one place only.
    env -u SOURCE_DATE_EPOCH mksquashfs "$tree" "$work/root.squashfs" -quiet -no-progress -noappend -all-root -no-xattrs -comp zstd -Xcompression-level 19 \
        -b 256K -mkfs-time "$SOURCE_DATE_EPOCH" -all-time "$SOURCE_DATE_EPOCH" -processors 1 >/dev/null
}
COMMON_MODULES="ext4 crc32c_generic vfat nls_cp437 nls_ascii nls_iso8859-1 nls_utf8 softdog usb-storage uas uvcvideo
    r8152 asix ax88179_178a smsc95xx cdc_ether"

hex() { printf '%x' "$1"; }
plus() { printf '%08x' $((16#$1 + 16#$2)); }

make_boot_script() {
    local load_dtb='setenv oc_ok yes' unpack= header script=$work/boot.cmd
    header=$(plus $SCRATCH 400)
    if [ -n "$DTB_ADDR" ]; then
        load_dtb="setenv oc_to $DTB_ADDR; setenv oc_from \${oc_at_dtb}; setenv oc_n \${oc_dtb_n}; setenv oc_size \${oc_dtb_size}; setenv oc_crc1 $(plus $header 1c8); setenv oc_crc2 $(plus $header 1cc); run oc_part"
    fi
    if [ -n "$UNPACK_ADDR" ]; then
        unpack="setenv kernel_comp_addr_r $UNPACK_ADDR; setenv kernel_comp_size \${oc_kernel_size};"
    fi
    sed -e "s|@BOARD@|$board|g; s|@DISK@|$DISK|g; s|@CONSOLE@|$CONSOLE|g; s|@WORDS@|$words|g; s|@SIGNATURE@|$signature|g; s|@BOOT@|$BOOT|g" \
        -e "s|@STATE0@|$(hex $STATE0)|g; s|@STATE1@|$(hex $STATE1)|g" \
        -e "s|@STATE@|$SCRATCH|g; s|@STATE_CRC1@|$(plus $SCRATCH 1f8)|g; s|@STATE_CRC2@|$(plus $SCRATCH 1fc)|g; s|@CRC@|$(plus $SCRATCH 300)|g" \
        -e "s|@HEADER@|$header|g; s|@HEADER_CRC1@|$(plus $header 1f8)|g; s|@HEADER_CRC2@|$(plus $header 1fc)|g" \
        -e "s|@INITRD_CRC1@|$(plus $header 1d0)|g; s|@INITRD_CRC2@|$(plus $header 1d4)|g" \
        -e "s|@KERNEL_CRC1@|$(plus $header 1d8)|g; s|@KERNEL_CRC2@|$(plus $header 1dc)|g" \
        -e "s|@KERNEL_ADDR@|$KERNEL_ADDR|g; s|@INITRD_ADDR@|$INITRD_ADDR|g; s|@FDT@|$FDT|g" \
        -e "s|@A_HEADER@|$(hex $A_START)|g; s|@B_HEADER@|$(hex $B_START)|g" \
        -e "s|@A_KERNEL@|$(hex $((A_START + KERNEL_AT)))|g; s|@B_KERNEL@|$(hex $((B_START + KERNEL_AT)))|g" \
        -e "s|@A_INITRD@|$(hex $((A_START + INITRD_AT)))|g; s|@B_INITRD@|$(hex $((B_START + INITRD_AT)))|g" \
        -e "s|@A_DTB@|$(hex $((A_START + DTB_AT)))|g; s|@B_DTB@|$(hex $((B_START + DTB_AT)))|g" \
        -e "s|@LOAD_DTB@|$load_dtb|; s|@UNPACK@|$unpack|" "$here/boot.cmd" >"$script"
    ! grep -n '@[A-Z_0-9]*@' "$script" || die "boot.cmd has names that are not filled in"
    mkimage -A arm -T script -C none -n "ocelli $board" -d "$script" "$work/boot.scr" >/dev/null
}

make_slot() {
    local arguments=(--board "$board" --version-name "$version" --built "$SOURCE_DATE_EPOCH")
    cp "$kernel_tree/boot/vmlinuz-$release" "$work/kernel"
    if [ -n "$UNPACK_ADDR" ]; then gzip -9n "$work/kernel" && mv "$work/kernel.gz" "$work/kernel"; fi
    [ -z "$DTB" ] || arguments+=(--dtb "$kernel_tree/usr/lib/linux-image-$release/$DTB")
    [ -z "$sign" ] || arguments+=(--key "$sign")
    "$slot_tool" pack "${arguments[@]}" --kernel "$work/kernel" --initrd "$work/initrd" --root "$work/root.squashfs" \
        --out "$work/slot"
    mv "$work/slot" "$out/$board.slot"
}

make_fat() {
    local tree=$work/fat package path name
    mkdir -p "$tree/boot"
    cp "$here/fat/"* "$tree/"
    # U-Boot looks for both: a damaged one has a spare.
    cp "$work/boot.scr" "$tree/boot.scr"
    cp "$work/boot.scr" "$tree/boot/boot.scr"
    while IFS=: read -r package path name; do
        [ -n "$package" ] || continue
        case $package in
            kernel) cp "$kernel_tree/usr/lib/linux-image-$release/$path" "$tree/$name" ;;
            *) cp "$(fetch "$package")/$path" "$tree/$name" ;;
        esac
    done <<<"$FAT_FILES"
    [ -z "$CONFIG_TXT" ] || echo "$CONFIG_TXT" >"$tree/config.txt"
    find "$tree" -exec touch -d "@$SOURCE_DATE_EPOCH" {} +
    truncate -s $((FAT_SECTORS * 512)) "$work/fat.img"
    mformat -i "$work/fat.img" -T "$FAT_SECTORS" -h 64 -s 32 -H "$FAT_START" -v OCELLI -N "$signature" ::
    mmd -i "$work/fat.img" ::/boot
    (cd "$tree" && find . -type f | sort | while read -r path; do mcopy -m -i "$work/fat.img" "$path" "::/${path#./}"; done)
}

make_image() {
    local image=$work/image part offset
    truncate -s $(((DATA_START + DATA_SECTORS) * 512)) "$image"
    sfdisk -q "$image" <<S
label: dos
label-id: 0x$signature
start=$FAT_START, size=$FAT_SECTORS, type=c, bootable
start=$A_START, size=$SLOT_SECTORS, type=da
start=$B_START, size=$SLOT_SECTORS, type=da
start=$DATA_START, size=$DATA_SECTORS, type=83
S
    for part in $LOADER_PARTS; do
        offset=${part##*:}
        dd if="$(fetch "$LOADER")/usr/lib/u-boot/${part%:*}" of="$image" bs=512 seek="$offset" conv=notrunc status=none
    done
    "$slot_tool" state --disk "$image"
    dd if="$work/fat.img" of="$image" bs=1M seek=$((FAT_START / 2048)) conv=notrunc,sparse status=none
    dd if="$out/$board.slot" of="$image" bs=1M seek=$((A_START / 2048)) conv=notrunc,sparse status=none
    dd if="$out/$board.slot" of="$image" bs=1M seek=$((B_START / 2048)) conv=notrunc,sparse status=none
    mv "$image" "$out/$board.img"
    bmaptool -q create -o "$out/$board.img.bmap" "$out/$board.img"
}

# Names the disk on the kernel's command line: the same in each image of a board.
signature=$(printf 'ocelli %s' "$board" | sha256sum | cut -c1-8)
make_initramfs
make_root
make_boot_script
make_slot
make_fat
make_image
mapped=$(($(stat -c '%b' "$out/$board.img") * 512))
for part in kernel initrd root.squashfs; do printf '%-16s %9d bytes\n' "${part%.*}" "$(stat -c %s "$work/$part")"; done
printf '%-16s %9d bytes to write, %d bytes on the disk before data\n' "$board.img" "$mapped" $((DATA_START * 512))
