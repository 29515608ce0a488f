#!/bin/sh
# Runs as init of an emulated board: mounts, loads modules, brings the network up, runs /data/rc, then serves commands that the
# harness sends over the serial console (tests/boards/console.rs has the other side). Words on the kernel's command line:
#   board.net=off      no network
# `service start|stop` starts and ends the agent as a supervised service; its log goes to /run/agent.log and the console.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
terminal=/dev/$(sed -n 's/.*console=\([^ ,]*\).*/\1/p' /proc/cmdline)
exec <"$terminal" >"$terminal" 2>&1
stty -echo

cat >/bin/service <<'SERVICE'
#!/bin/sh
# Starts or stops the agent; a supervised agent that ends is started anew after a second.
case $1 in
start)
    echo >>/run/agent.log
    (while :; do
        ocelli run --config /data/ocelli.toml >>/run/agent.log 2>&1
        echo "supervisor: the agent ended with code $?" >>/run/agent.log
        sleep 1
    done) >/dev/null 2>&1 </dev/null &
    echo $! >/run/supervisor
    ;;
stop)
    kill "$(cat /run/supervisor)"
    killall -TERM ocelli
    while pidof ocelli >/dev/null; do usleep 50000; done
    ;;
esac
SERVICE
chmod +x /bin/service

if grep -q AST2600 /proc/device-tree/model 2>/dev/null; then
    modules="mdio-aspeed realtek ftgmac100 sdhci-of-aspeed i2c-aspeed gpio-aspeed i2c-dev lm75"
else
    modules="virtio_pci virtio_blk virtio_net"
fi
for module in $modules crc32c_generic ext4; do modprobe "$module" || echo "init: no module $module"; done
ip link set lo up
if ! grep -q board.net=off /proc/cmdline; then
    for _ in $(seq 50); do [ -e /sys/class/net/eth0 ] && break || usleep 100000; done
    ip link set eth0 up
    ip addr add 10.0.2.15/24 dev eth0
    ip route add default via 10.0.2.2
fi
for _ in $(seq 100); do
    for disk in /dev/vda /dev/mmcblk0; do [ -b $disk ] && break 2; done
    usleep 100000
done
mount -t ext4 -o noatime "$disk" /data || echo "init: no data partition on $disk"
touch /run/agent.log
tail -n +1 -f /run/agent.log >"$terminal" &
echo "board: ready after $(cut -d' ' -f1 /proc/uptime) s"
[ ! -e /data/rc ] || sh /data/rc </dev/null

# A command is a line `NUMBER COMMAND`. The answer goes out in one write, so that no log line can lie in it.
while read -r number command; do
    (eval "$command") >/run/output 2>&1 </dev/null
    printf '\n<<%s %s\n%s\n%s>>\n' "$number" "$?" "$(cat /run/output)" "$number" >/run/answer
    cat /run/answer
done
reboot -f
