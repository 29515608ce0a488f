#!/usr/bin/env bash
# Tests an ARM build in QEMU's user emulator: the agent's binary, driven by the integration tests of this machine, and the unit
# tests of the libraries; those of the int8 kernels on several processors.
#   cross/test.sh TARGET [--binary] [--profile PROFILE]
# --binary: the agent's binary only, for `make test`.
# Links with the profile `thin` unless named. Needs cross/setup.sh TARGET and tests/setup.sh.
set -euo pipefail
. "$(dirname "$0")/env.sh"

target=${1:-}
check_target "$target"
shift
only_binary=
if [ "${1:-}" = --binary ]; then
    only_binary=yes
    shift
fi
profile=thin
[ "${1:-}" != --profile ] || profile=${2:?--profile needs a name}
runner=$(emulator "$target")
started=$SECONDS
step() { printf '\n== %s: %s (%ss)\n' "$target" "$*" $((SECONDS - started)); }
unit_tests() { zig_cargo "$target" test --profile "$profile" --lib "$@"; }

step build the binary
binary=$("$root/cross/build.sh" "$target" --profile "$profile")

step the binary in the integration tests
(
    cd "$root"
    export OCELLI_BINARY=$binary OCELLI_RUNNER=$runner
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --profile emulated --locked --workspace --lib --bins --tests --examples
    else
        cargo test --locked --package ocelli --test cli --test run --test agent --test watchdog
        cargo build --locked --workspace --bins
        cargo test --locked --package ocelctl --test update -- _wrong_answers_and_a_stranger_
    fi
)

if [ -n "$only_binary" ]; then
    step done
    exit
fi

step unit tests
unit_tests --package ocelli --package ocelli-protocol --package ocelli-tuf

for processor in $(processors "$target"); do
    step "int8 kernels on $processor"
    QEMU_CPU=$processor zig_cargo "$target" test --profile "$profile" --package ocelli-int8 --lib --tests
done

step done
