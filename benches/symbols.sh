#!/bin/sh
# What an unstripped binary is made of: bytes of code and data by crate, largest first.
#   CARGO_PROFILE_RELEASE_STRIP=none cargo build --release -p ocelli --bin ocelli && benches/symbols.sh target/release/ocelli
# Generic code counts for the crate that its name begins with, so sums are a guide and no account.
set -eu
nm --print-size --radix=d --demangle "$1" | awk '
    NF >= 4 && $3 ~ /[tTrRdDbB]/ {
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
    }' | sort -rn | head -n "${2:-25}"
