#!/usr/bin/env bash
# The size of the device binary: against its limit, and what it is made of.
#   cross/size.sh --check TARGET…   the stripped release binary of each target against cross/limits.toml; fails above it
#   cross/size.sh TARGET            sections, and bytes by crate, of the release binary, linked once more with its symbols
#   cross/size.sh FILE [LINES]      the same of any unstripped binary
# Generic code counts for the crate that its name begins with, so sums are a guide and no account.
set -euo pipefail
. "$(dirname "$0")/env.sh"

check() {
    local target=$1 limit binary size
    check_target "$target"
    limit=$(sed -n "s/^$target = \([0-9]*\)\$/\1/p" "$root/cross/limits.toml")
    [ -n "$limit" ] || die "cross/limits.toml has no limit for $target"
    binary=$("$root/cross/build.sh" "$target")
    size=$(stat -c %s "$binary")
    printf '%s: %d bytes, limit %d (%d %%)\n' "$target" "$size" "$limit" $((size * 100 / limit))
    [ "$size" -le "$limit" ] || die "$binary is $((size - limit)) bytes too large; see cross/size.sh $target"
}

sections() {
    LC_ALL=C readelf --section-headers --wide "$1" | awk '
        function hex(text,   value, at) {
            for (at = 1; at <= length(text); at++) value = value * 16 + index("0123456789abcdef", substr(text, at, 1)) - 1
            return value
        }
        # The number in brackets may be split by a space.
        { sub(/^ *\[ *[0-9]+\] */, "") }
        $1 ~ /^\./ && $2 != "NOBITS" && $7 ~ /A/ { printf "%9d  %s\n", hex($5), $1 }' | sort -rn
}

crates() {
    LC_ALL=C nm --print-size --radix=d --demangle "$1" | awk '
        NF >= 4 && $3 ~ /[tTrRdD]/ {
            size = $2 + 0
            name = $0
            sub(/^[0-9]+ [0-9]+ . /, "", name)
            crate = "C and assembler"
            if (name ~ /^sqlite3|^sqlite|^[a-z]*Sqlite|^fts[0-9]|^rtree|^pager|^btree|^vdbe/) crate = "SQLite"
            else if (name ~ /^ring_core|^aes|^x25519|^p256|^p384|^chacha20|^bn_|^LIMBS|^sha[0-9]/) crate = "ring (C and assembler)"
            else if (match(name, /[a-z_][a-z0-9_]*::/)) crate = substr(name, RSTART, RLENGTH - 2)
            bytes[crate] += size
            all += size
        }
        END {
            for (crate in bytes) printf "%9d  %4.1f %%  %s\n", bytes[crate], 100 * bytes[crate] / all, crate
            printf "%9d  in all\n", all
        }' | sort -rn | sed -n "1,${2}p"
}

case ${1:-} in
    --check)
        shift
        [ $# -gt 0 ] || set -- "${targets[@]}"
        for target in "$@"; do check "$target"; done
        ;;
    "") die "which target, or which file? One of: ${targets[*]}" ;;
    *)
        file=$1
        if [ ! -f "$file" ]; then
            check_target "$1"
            zig_cargo "$1" rustc --release --package ocelli --bin ocelli -- -C strip=none >&2
            file=$target_dir/$1/release/ocelli
        fi
        sections "$file"
        echo
        crates "$file" "${2:-25}"
        ;;
esac
