#!/usr/bin/env bash
# Installs the Debian packages that are missing, with apt-get and, unless root, sudo.
#   tests/install.sh PACKAGE…
set -euo pipefail

missing=()
for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "install: please install ${missing[*]} (Debian's names) with your package manager, then run this again" >&2
    exit 1
fi
sudo=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "install: ${missing[*]} need root; run apt-get install ${missing[*]} as root" >&2; exit 1; }
    sudo=(sudo)
fi
echo "install: ${missing[*]}" >&2
apt() { "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 "$@" >&2; }
# A list of packages from last month names files that are gone; a fresh machine has none.
apt update
apt install -y --no-install-recommends "${missing[@]}"
