#!/bin/sh
# One step in the life of the package on the Debian system that this runs in, as root; ends with an error at the first thing that is not
# as docs/firmware.md says.
#   steps.sh install DEB | configure | upgrade DEB | keep-off DEB | remove | return DEB | purge
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
unit=/lib/systemd/system/ocelli.service

die() { echo "steps.sh: $*" >&2; exit 1; }
# same WHAT FOUND EXPECTED
same() { [ "$2" = "$3" ] || die "$1 is '$2', not '$3'"; }
apt() { apt-get -q -y --no-install-recommends -o APT::Sandbox::User=root "$@"; }
version_of() { dpkg-deb -f "$1" Version; }
installed() { dpkg-query -W -f '${Status} ${Version}' ocelli; }
enabled() { systemctl is-enabled ocelli.service || true; }
# Bytes, owner and rights of the configuration.
configuration() { sha256sum /etc/ocelli/*; stat -c '%n %U:%G %a' /etc/ocelli /etc/ocelli/*; }

case $1 in
install)
    apt install "$2"
    same "the package" "$(installed)" "install ok installed $(version_of "$2")"
    same "the user's shell" "$(getent passwd ocelli | cut -d: -f7)" /usr/sbin/nologin
    for group in video gpio i2c; do id -nG ocelli | grep -qw "$group" || die "the user is not in group $group"; done
    same "the configuration's folder" "$(stat -c '%U:%G %a' /etc/ocelli)" "root:ocelli 750"
    same "the service" "$(enabled)" enabled
    ocelli --version
    ocelli-npu-worker --version
    ldd /usr/bin/ocelli-npu-worker
    told=$(systemd-analyze verify "$unit" 2>&1) || die "$told"
    same "what systemd says of the unit" "$told" ""
    # Exposure in tenths: 10.0 is a service without any fence, 2.0 and below systemd calls OK.
    systemd-analyze security --offline=true --threshold=20 --no-pager "$unit" | tail -n 1
    ;;
configure)
    # As the package's README.Debian says.
    cp /usr/share/doc/ocelli/ocelli-example.toml /etc/ocelli/ocelli.toml
    echo "for tests only" >/tmp/password
    install -m 640 -g ocelli /tmp/password /etc/ocelli/
    ocelli check /etc/ocelli/ocelli.toml
    install -d -o ocelli -g ocelli -m 700 /var/lib/ocelli
    touch /var/lib/ocelli/stored
    ;;
upgrade)
    before=$(configuration)
    apt install "$2"
    same "the package" "$(installed)" "install ok installed $(version_of "$2")"
    same "the configuration" "$(configuration)" "$before"
    same "the service" "$(enabled)" enabled
    ;;
keep-off)
    systemctl disable ocelli.service
    apt install --reinstall "$2"
    same "the service that was switched off" "$(enabled)" disabled
    systemctl enable ocelli.service
    ;;
remove)
    before=$(configuration)
    apt remove ocelli
    for path in /usr/bin/ocelli /usr/bin/ocelli-npu-worker "$unit" /usr/share/ocelli; do
        [ ! -e "$path" ] || die "$path is still there"
    done
    [ -d /var/lib/ocelli ] || die "what was stored is gone"
    same "the configuration" "$(configuration)" "$before"
    ;;
return)
    before=$(configuration)
    apt install "$2"
    same "the configuration" "$(configuration)" "$before"
    same "the service" "$(enabled)" enabled
    ;;
purge)
    before=$(configuration)
    apt purge ocelli
    [ ! -e /var/lib/ocelli ] || die "what was stored is still there"
    same "the configuration" "$(configuration)" "$before"
    left=$(find /etc/systemd /var/lib/systemd /lib/systemd /usr/lib/sysusers.d /lib/udev -name '*ocelli*')
    same "what systemd still knows" "$left" ""
    same "the package" "$(dpkg-query -W -f '${Status}' ocelli 2>/dev/null || true)" ""
    ;;
*) die "unknown step $1" ;;
esac
echo "steps.sh: $1: as it should be"
