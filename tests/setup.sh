#!/usr/bin/env bash
# Installs what a Rust toolchain does not bring: a C compiler (SQLite, ring) and, unless called as `setup.sh build`, the
# mosquitto broker that tests talk to.
set -euo pipefail

missing=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
if [ "${1:-test}" != build ]; then
    [ -x /usr/sbin/mosquitto ] || command -v mosquitto >/dev/null || missing+=(mosquitto)
fi
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "setup: please install ${missing[*]} with your package manager, then run make again" >&2
    exit 1
fi
sudo=()
[ "$(id -u)" -eq 0 ] || sudo=(sudo)
echo "setup: installing ${missing[*]}"
"${sudo[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
