#!/bin/sh
# Runs as init in the virtual machine: our camera against the kernel's vivid driver. Prints `ok` or `FAIL` a check, and at the end
# `V4L2 PASS` when none failed.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
failed=0

# check NAME COMMAND…: the command must succeed.
check() {
    name=$1
    shift
    if "$@" >/tmp/check 2>&1; then echo "ok   $name"; else
        echo "FAIL $name: $*"
        tail -n 5 /tmp/check
        failed=$((failed + 1))
    fi
}

# says FILE TEXT…: the file has a line with each text.
says() {
    file=$1
    shift
    for text in "$@"; do grep -q -- "$text" "$file" || { echo "no '$text' in:"; cat "$file"; return 1; }; done
}

# refused TEXT… -- ARGUMENTS…: the capture must fail, and its error must say this.
refused() {
    texts=
    while [ "$1" != -- ]; do texts="$texts$1
"; shift; done
    shift
    if v4l2-capture "$@" >/tmp/refused 2>&1; then echo "captured"; return 1; fi
    echo "$texts" | while IFS= read -r text; do
        [ -z "$text" ] || says /tmp/refused "$text" || return 1
    done
}

# numbers FILE: frame numbers rise, and every frame is the same size.
numbers() {
    awk '/^frame / { split($2, n, "="); if (seen && n[2] <= last) bad = 1; last = n[2]; seen++ }
         END { exit bad || !seen }' "$1"
}

# wait_for FILE TEXT SECONDS
wait_for() {
    for _ in $(seq $(($3 * 5))); do grep -q -- "$2" "$1" && return 0; sleep 0.2; done
    echo "no '$2' in $1 after $3 s"
    tail -n 5 "$1"
    return 1
}

# loop CODE INTERFACE: the pixels that were fed come back, bit for bit.
loop() {
    rm -f /tmp/expected /tmp/got
    vivid feed /dev/video1 /dev/video0 "$1" /tmp/expected >/tmp/feed 2>&1 &
    feeder=$!
    check "$2 $1: the picture is fed" wait_for /tmp/feed feeding 10
    size=$(sed -n 's/feeding .* \([0-9]*x[0-9]*\),.*/\1/p' /tmp/feed)
    check "$2 $1: 15 frames come" v4l2-capture /dev/video0 --format "$1" --size "$size" --frames 15 --save /tmp/got
    cp /tmp/check /tmp/captured
    check "$2 $1: at $size" says /tmp/captured "size=$size" 'damaged=0'
    check "$2 $1: numbers rise" numbers /tmp/captured
    check "$2 $1: same $(wc -c </tmp/expected) bytes out as in" cmp /tmp/expected /tmp/got
    kill "$feeder"
    wait "$feeder" 2>/dev/null
}

hdmi="n_devs=1 node_types=0x101 num_inputs=1 input_types=0x3 num_outputs=1 output_types=0x1"
modprobe vivid $hdmi multiplanar=1 || echo "FAIL no vivid"
for code in YUYV NV12 GREY; do loop $code "single-planar"; done
check "an output node is refused" refused "no capture device" "v4l2-ctl" -- /dev/video1
rmmod vivid
modprobe vivid $hdmi multiplanar=2
for code in YUYV NV12 NM12 GREY; do loop $code "multi-planar"; done
rmmod vivid

check "no device" refused "/dev/video0: cannot be opened: no such device" "plug the camera in" -- /dev/video0
check "no camera" refused "it is no V4L2 device" -- /dev/null
modprobe vivid n_devs=1 node_types=0x1 num_inputs=1 input_types=0x0
check "webcam: chooses NV12 at the size that covers" v4l2-capture /dev/video0 --size 600x300 --fps 10
cp /tmp/check /tmp/captured
check "webcam: mode" says /tmp/captured 'camera="vivid (vivid)" format=Nv12 size=640x360 fps=10.00'
check "webcam: age is that of a fresh frame" awk '/^frame / { split($7, a, "="); if (a[2] < 1 || a[2] > 500000) exit 1 }' /tmp/captured
check "webcam: no such format" refused "offers only" "use a camera" -- /dev/video0 --format MJPG

v4l2-capture /dev/video0 --fps 10 --frames 20 >/tmp/live 2>&1 &
live=$!
check "damage: frames come" wait_for /tmp/live "frame number=3 " 10
vivid set /dev/video0 "Inject V4L2_BUF_FLAG_ERROR" 1
wait $live
check "a buffer flagged as corrupt is skipped and counted" says /tmp/live "frames=20 damaged=1 "

v4l2-capture /dev/video0 --fps 10 --frames 100000 --patience 20 >/tmp/live 2>&1 &
live=$!
check "live: frames come" wait_for /tmp/live "frame number=3 " 10
check "a second program is refused" refused "another program uses it" "fuser" -- /dev/video0
vivid set /dev/video0 "Percentage of Dropped Buffers" 50
sleep 2
vivid set /dev/video0 "Percentage of Dropped Buffers" 0
vivid set /dev/video0 "Inject Fatal Streaming Error" 1
check "a fatal streaming error is told" wait_for /tmp/live "error: camera /dev/video0: NV12 .*transfer failed; check cable" 10
check "and the stream is opened again" wait_for /tmp/live "^restarted" 10
check "numbers rise over drops and restart" numbers /tmp/live
check "dropped frames are gaps" awk '/^frame / { split($2, n, "="); if (seen++ && n[2] > last + 1) gap = 1; last = n[2] } END { exit !gap }' /tmp/live

frames=$(grep -c '^frame ' /tmp/live)
echo vivid.0 >/sys/bus/platform/drivers/vivid/unbind
check "unplug is told" wait_for /tmp/live "error: camera /dev/video0: NV12 .*it was unplugged; plug it in again" 10
check "and the missing node" wait_for /tmp/live "no such device" 10
check "the node is free while it is away" test ! -e /dev/video0
echo vivid.0 >/sys/bus/platform/drivers/vivid/bind
check "replug brings frames" sh -c "for _ in \$(seq 50); do [ \$(grep -c ^restarted /tmp/live) -ge 2 ] && exit 0; sleep 0.2; done; exit 1"
sleep 1
check "more of them" test "$(grep -c '^frame ' /tmp/live)" -gt $((frames + 4))
check "numbers go on over the replug" numbers /tmp/live
kill $live
wait $live 2>/dev/null

# The module goes and comes, as after a driver update: only possible when nothing is left open.
v4l2-capture /dev/video0 --fps 10 --frames 30 --patience 20 >/tmp/live 2>&1 &
live=$!
wait_for /tmp/live "frame number=3 " 10
echo vivid.0 >/sys/bus/platform/drivers/vivid/unbind
wait_for /tmp/live "unplugged" 10
check "the module can be removed while the camera waits" rmmod vivid
modprobe vivid n_devs=1 node_types=0x1 num_inputs=1 input_types=0x0
check "and the capture ends well after the reload" wait $live
check "after a restart" says /tmp/live "^restarted" "frames=30 "

echo "dmesg: $(dmesg | grep -c -E 'BUG|Oops|WARNING') warnings of the kernel"
[ $failed -eq 0 ] && echo "V4L2 PASS" || echo "V4L2 FAIL: $failed checks"
poweroff -f
