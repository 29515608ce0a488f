#!/usr/bin/env bash
# Installs what the builds for ARM need, and nothing that is there already: zig and cargo-zigbuild (PyPI, in a folder of their
# own below ~/.cache), a standard library for each target, and QEMU's user emulators.
#   cross/setup.sh [TARGET…]          (all targets of the agent unless named; those of cross/worker.sh are known, too)
# The standard library comes from rustup; where rustup has none, from Debian's rustc-web, which is built along with the program.
set -euo pipefail
. "$(dirname "$0")/env.sh"

wanted=("$@")
[ $# -gt 0 ] || wanted=("${targets[@]}")
for target in "${wanted[@]}"; do check_target "$target" "${targets[@]}" "${worker_targets[@]}"; done

"$root/tests/setup.sh" build
command -v rustc >/dev/null || die "no Rust; install it first (https://rustup.rs)"

if [ ! -x "$tools/bin/cargo-zigbuild" ]; then
    python3 -c 'import ensurepip, venv' 2>/dev/null || "$root/tests/install.sh" python3-venv
    # Built aside and renamed, so that a download that was cut short is not taken for the tools. A virtual environment knows its
    # own path, but only in scripts that are not used here.
    rm -rf "$tools.part"
    python3 -m venv "$tools.part"
    "$tools.part/bin/pip" install --quiet --requirement "$root/cross/requirements.txt" ||
        die "cannot install zig and cargo-zigbuild from PyPI; is the network there?"
    rm -rf "$tools"
    mv "$tools.part" "$tools"
fi

for target in "${wanted[@]}"; do
    if ! has_std "$target" && command -v rustup >/dev/null; then
        echo "setup: rustup target add $target" >&2
        timeout 600 rustup target add "$target" >/dev/null 2>&1 || echo "setup: rustup has no $target here" >&2
    fi
    if ! has_std "$target" && ! has_debian_std; then
        "$root/tests/install.sh" rustc-web cargo-web rust-web-src ||
            die "neither rustup nor Debian has a standard library for $target"
    fi
    command -v "$(emulator "$target")" >/dev/null || "$root/tests/install.sh" qemu-user-static
done
