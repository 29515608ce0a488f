#!/usr/bin/env bash
# Writes the image of a board to an SD card or eMMC with bmaptool, and compares what the card gives back with the image.
#
#   firmware/flash.sh BOARD DEVICE [--image FILE] [--fixed-disk-may-be-erased]
#
# Refused, with the reason, before anything is written: a board without description or image, an image of another board, what is
# no whole disk, a disk with anything mounted or used as swap, the disk that the system runs from, one that is too small, and one
# that cannot be removed (unless the long option says that it may be erased). DEVICE may be a file, for emulators.
# Environment, for tests: OCELLI_LSBLK, a program that prints what `lsblk --json` would.
set -euo pipefail
export PATH=$PATH:/sbin:/usr/sbin
here=$(cd "$(dirname "$0")" && pwd)

die() { echo "flash.sh: $*" >&2; exit 1; }
usage() { echo "flash.sh: $*; usage: firmware/flash.sh BOARD DEVICE [--image FILE] [--fixed-disk-may-be-erased]" >&2; exit 2; }

board=${1:-} device=${2:-}
[ -n "$board" ] && [ -n "$device" ] || usage "board or device is missing"
shift 2
image= fixed=refused
while [ $# -gt 0 ]; do
    case $1 in
        --image) image=${2:-}; shift; [ -n "$image" ] || usage "--image needs a file" ;;
        --fixed-disk-may-be-erased) fixed=allowed ;;
        *) usage "unknown option $1" ;;
    esac
    shift
done
[[ $board =~ ^[a-z0-9-]+$ && -e $here/boards/$board ]] ||
    die "no board '$board'; boards are: $(ls "$here/boards" | tr '\n' ' ')"
image=${image:-${CARGO_TARGET_DIR:-$here/../target}/firmware/$board.img}
[ -e "$image" ] || die "no image $image; build it: firmware/build.sh $board"
# The partition table's signature names the board (firmware/build.sh).
expected=$(printf 'ocelli %s' "$board" | sha256sum | cut -c1-8)
found=$(od -A n -t x4 -j 440 -N 4 "$image" | tr -d ' ')
[ "$found" = "$expected" ] || die "$image is not an image of board $board"
size=$(stat -L -c %s "$image")
"$here/setup.sh" >&2

# judge DEVICE SIZE FIXED: reads lsblk's JSON from standard input; prints why the device is refused, or nothing.
judge() {
    python3 -c '
import json, sys
device, needed, fixed = sys.argv[1], int(sys.argv[2]), sys.argv[3]
found = json.load(sys.stdin)["blockdevices"]

def mounts(node):
    points = node.get("mountpoints") or [node.get("mountpoint")]
    here = [(node["path"], point) for point in points if point]
    return here + [pair for child in node.get("children", []) for pair in mounts(child)]

disk = next((node for node in found if node["path"] == device), None)
if disk is None:
    print(f"{device} is no disk of this machine; disks are: " + " ".join(node["path"] for node in found))
elif disk["type"] not in ("disk",):
    print(device + " is a " + disk["type"] + ", not a whole disk")
elif any(point in ("/", "/boot", "/boot/efi", "/usr", "[SWAP]") for _, point in mounts(disk)):
    print(f"{device} is the disk that this system runs from")
elif mounts(disk):
    part, point = mounts(disk)[0]
    print(f"{part} is mounted at {point}: unmount it first (umount {part})")
elif disk.get("ro"):
    print(f"{device} is write-protected: look at the switch of the card")
elif int(disk["size"]) < needed:
    print("%s has %d MiB, the image needs %d MiB: take a larger card" % (device, int(disk["size"]) >> 20, needed >> 20))
elif not (disk.get("rm") or disk.get("hotplug")) and fixed != "allowed":
    print(f"{device} cannot be removed from this machine, so it may be the wrong one;"
          " if it is the right one, add --fixed-disk-may-be-erased")
' "$1" "$2" "$3"
}

if [ -f "$device" ]; then
    room=$(stat -c %s "$device")
    [ "$room" -ge "$size" ] || die "$device has $((room >> 20)) MiB, the image needs $((size >> 20)) MiB"
else
    lsblk=${OCELLI_LSBLK:-lsblk}
    refusal=$("$lsblk" --json --bytes --output PATH,TYPE,SIZE,RM,HOTPLUG,RO,MOUNTPOINTS | judge "$device" "$size" "$fixed")
    [ -z "$refusal" ] || die "$refusal"
    [ -b "$device" ] || die "$device is no block device"
    [ -w "$device" ] || die "$device: no right to write; run this as root, or as a member of group disk"
fi

bmap=$image.bmap
[ -e "$bmap" ] || die "no $bmap beside the image; build both again: firmware/build.sh $board"
# bmaptool checks each block of the image against the digests of the map.
bmaptool -q copy --bmap "$bmap" "$image" "$device" || die "writing failed, or the image does not fit its .bmap: build it again"
# It cuts a file off behind the image; a card keeps its size, and so does a file that stands for one.
[ ! -f "$device" ] || truncate -s "$room" "$device"
sync "$device" 2>/dev/null || sync
[ ! -b "$device" ] || blockdev --flushbufs "$device"
# What the card gives back, block by block of the map.
python3 - "$image" "$device" "$bmap" <<'P' || die "$device gives back something else than was written: take another card"
import re, sys, xml.etree.ElementTree as tree
image, device, bmap = sys.argv[1:]
root = tree.parse(bmap).getroot()
block = int(root.findtext("BlockSize"))
with open(image, "rb") as want, open(device, "rb") as have:
    for entry in root.find("BlockMap"):
        first, last = (int(n) for n in (re.findall(r"\d+", entry.text) * 2)[:2])
        for number in range(first, last + 1):
            want.seek(number * block), have.seek(number * block)
            data = want.read(block)
            if have.read(len(data)) != data:
                sys.exit(f"block {number} differs")
P
echo "flash.sh: $board is on $device, verified. Its first partition (OCELLI) takes ocelli.toml; see README.txt there."
