# Sourced by the scripts of this folder: where the tools are, and how cargo is called for an ARM target.
# Nothing here installs anything; setup.sh does.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target_dir=${CARGO_TARGET_DIR:-$root/target}
# The tools move when their versions do. OCELLI_ZIG names a virtual environment that has them already.
tools=${OCELLI_ZIG:-${XDG_CACHE_HOME:-$HOME/.cache}/ocelli/zig-$(sha256sum "$root/cross/requirements.txt" | cut -c1-12)}
targets=(aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf)

die() { echo "$(basename "$0"): $*" >&2; exit 1; }

check_target() {
    [[ " ${targets[*]} " == *" ${1:-} "* ]] || die "no target '${1:-}'; one of: ${targets[*]}"
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
zig_cargo() {
    local target=$1 command=$2
    shift 2
    [ -x "$tools/bin/cargo-zigbuild" ] || die "no cargo-zigbuild; run cross/setup.sh $target first"
    local environment=("PATH=$tools/bin:$PATH") options=(--locked --target "$target")
    if has_std "$target"; then
        environment+=("CARGO=$(command -v cargo)")
    elif has_debian_std; then
        local name=${target^^} flags=-Clink-self-contained=no
        # These replace those of .cargo/config.toml.
        [ "$target" != aarch64-unknown-linux-musl ] || flags+=" -Cllvm-args=-enable-machine-outliner=always"
        # The standard library is built along. Debian has no start files of musl; zig brings them.
        environment+=(CARGO=/usr/bin/cargo RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc RUSTC_BOOTSTRAP=1
            "CARGO_TARGET_${name//-/_}_RUSTFLAGS=$flags")
        options+=(-Z build-std=std,panic_unwind)
    else
        die "no standard library for $target; run cross/setup.sh $target first"
    fi
    (cd "$root" && env "${environment[@]}" cargo-zigbuild "$command" "${options[@]}" "$@")
}
