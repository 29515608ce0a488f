# Sourced by the scripts of this folder: where the tools are, and how cargo is called for an ARM target.
# Nothing here installs anything; setup.sh does.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target_dir=${CARGO_TARGET_DIR:-$root/target}
# The tools move when their versions do. OCELLI_ZIG names a virtual environment that has them already.
tools=${OCELLI_ZIG:-${XDG_CACHE_HOME:-$HOME/.cache}/ocelli/zig-$(sha256sum "$root/cross/requirements.txt" | cut -c1-12)}
targets=(aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf)
# Of ocelli-npu-worker, which is dynamic.
worker_targets=(aarch64-unknown-linux-gnu armv7-unknown-linux-gnueabihf)

die() { echo "$(basename "$0"): $*" >&2; exit 1; }

# check_target NAME [TARGET…]: NAME is one of these targets, the agent's unless named.
check_target() {
    local name=${1:-} known=("${@:2}")
    [ $# -gt 1 ] || known=("${targets[@]}")
    [[ " ${known[*]} " == *" $name "* ]] || die "no target '$name'; one of: ${known[*]}"
}

# The user emulator that runs programs of TARGET.
emulator() {
    case $1 in
        aarch64-*) echo qemu-aarch64-static ;;
        armv7-*) echo qemu-arm-static ;;
    esac
}

# The processors as which the int8 kernels are tested: without and with the dot product instructions, and with everything.
processors() {
    case $1 in
        aarch64-*) echo cortex-a53 neoverse-n1 max ;;
        armv7-*) echo cortex-a7 max ;;
    esac
}

# Whether the compiler in use has a standard library for TARGET.
has_std() { compgen -G "$(rustc --print target-libdir --target "$1" 2>/dev/null)/libstd-*.rlib" >/dev/null; }

# Whether Debian's compiler is there with the source of its standard library (packages rustc-web, cargo-web, rust-web-src).
has_debian_std() { [ -x /usr/bin/cargo ] && [ -f /usr/lib/rustlib/src/rust/library/Cargo.lock ]; }

# zig_cargo TARGET COMMAND [OPTIONS…]: `cargo zigbuild`, or with COMMAND `test` `cargo zigbuild`'s test, for a target.
# OCELLI_OUTLINER, set and empty, builds aarch64 without the compiler's outliner (docs/footprint.md).
zig_cargo() {
    local target=$1 command=$2
    shift 2
    [ -x "$tools/bin/cargo-zigbuild" ] || die "no cargo-zigbuild; run cross/setup.sh $target first"
    # What is dynamic is linked for the C library of Debian 10, of 2018.
    local environment=("PATH=$tools/bin:$PATH") options=(--locked --target "$target")
    [[ $target != *-gnu* ]] || options=(--locked --target "$target.2.28")
    if has_std "$target"; then
        environment+=("CARGO=$(command -v cargo)")
        # Instead of the outliner of .cargo/config.toml.
        [ -z "${OCELLI_OUTLINER+set}" ] || environment+=("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUSTFLAGS=$OCELLI_OUTLINER")
    elif has_debian_std; then
        local name=${target^^} flags=
        # Debian has no start files of musl; zig brings them. For glibc the compiler never has its own.
        [[ $target != *-musl* ]] || flags=-Clink-self-contained=no
        # These replace those of .cargo/config.toml.
        [ "$target" != aarch64-unknown-linux-musl ] || flags+=" ${OCELLI_OUTLINER--Cllvm-args=-enable-machine-outliner=always}"
        # The standard library is built along.
        environment+=(CARGO=/usr/bin/cargo RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc RUSTC_BOOTSTRAP=1
            "CARGO_TARGET_${name//-/_}_RUSTFLAGS=$flags")
        options+=(-Z build-std=std,panic_unwind)
    else
        die "no standard library for $target; run cross/setup.sh $target first"
    fi
    (cd "$root" && env "${environment[@]}" cargo-zigbuild "$command" "${options[@]}" "$@")
}
