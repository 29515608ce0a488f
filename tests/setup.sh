#!/usr/bin/env bash
# Installs what a Rust toolchain does not bring: a C compiler (SQLite, ring) and, unless called as `setup.sh build`, the
# mosquitto broker that tests talk to, and what verifies systemd units.
set -euo pipefail

packages=()
command -v cc >/dev/null || packages+=(gcc libc6-dev)
if [ "${1:-test}" != build ]; then
    # The header of accelerators' plug-ins is tried as C++, too.
    command -v c++ >/dev/null || packages+=(g++)
    [ -x /usr/sbin/mosquitto ] || command -v mosquitto >/dev/null || packages+=(mosquitto)
    # The shipped units are verified with it; nothing of it is started.
    command -v systemd-analyze >/dev/null || packages+=(systemd)
    command -v mosquitto_sub >/dev/null || packages+=(mosquitto-clients)
fi
[ ${#packages[@]} -eq 0 ] || "$(dirname "$0")/install.sh" "${packages[@]}"
