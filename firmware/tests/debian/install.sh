#!/usr/bin/env bash
# Installs, upgrades, removes and purges the package for amd64 in a fresh Debian 12 root folder, which is made and thrown away
# (mmdebstrap; without root it works in a user namespace). Packages come from apt's mirror, 60 MB.
#   firmware/tests/debian/install.sh OLDER.deb NEWER.deb
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
"$root/tests/install.sh" mmdebstrap
[ "$(id -u)" = 0 ] || "$root/tests/install.sh" uidmap
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Somebody else's namespace reads them.
chmod 755 "$work"
install -m 644 "$1" "$work/older.deb"
install -m 644 "$2" "$work/newer.deb"
install -m 755 "$here/steps.sh" "$work/steps.sh"
cat >"$work/all" <<'S'
#!/bin/sh
# mmdebstrap calls this with the root folder.
set -e
mkdir "$1/packages"
cp "$(dirname "$0")"/*.deb "$(dirname "$0")/steps.sh" "$1/packages/"
step() { chroot "$1" /packages/steps.sh "$2" ${3:+/packages/$3.deb}; }
step "$1" install older
step "$1" configure
step "$1" upgrade newer
step "$1" keep-off newer
step "$1" remove
step "$1" return newer
step "$1" purge
S
chmod 755 "$work/all"
mmdebstrap --quiet --variant=minbase --include=systemd,init-system-helpers --customize-hook="$work/all" bookworm /dev/null \
    >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    echo "install.sh: see above" >&2
    exit 1
}
grep '^steps.sh' "$work/log"
