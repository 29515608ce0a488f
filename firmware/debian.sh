#!/usr/bin/env bash
# Fetches Debian 12 packages of any architecture and unpacks them in a cache; installs nothing and needs no root.
#
#   firmware/debian.sh ARCHITECTURE PACKAGE…      prints one folder a package, in order
#
# linux-image-FLAVOUR stands for the newest kernel of that flavour. Package lists are kept apart from the system's, and refreshed
# once a day. Without network the newest copy in the cache (~/.cache/ocelli/debian, or OCELLI_DEBIAN_CACHE) serves.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: firmware/debian.sh ARCHITECTURE PACKAGE…, as in: firmware/debian.sh arm64 linux-image-arm64 busybox-static" >&2
    exit 2
fi
architecture=$1
shift
cache=${OCELLI_DEBIAN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ocelli/debian}/$architecture
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
if [ -z "$(type -P apt-get)" ] || [ ! -e "$keyring" ]; then
    echo "debian.sh: needs apt-get and $keyring; on a Debian or Ubuntu machine: apt-get install debian-archive-keyring" >&2
    exit 1
fi
mkdir -p "$cache"/{lists/partial,archives/partial}

# What this day already resolved needs no apt, which takes seconds for every question.
if [ -n "$(find "$cache/stamp" -mmin -1440 2>/dev/null)" ]; then
    known=()
    for package in "$@"; do
        [ "$cache/resolved/$package" -nt "$cache/stamp" ] || break
        folder=$(cat "$cache/resolved/$package")
        [ -d "$folder" ] || break
        known+=("$folder")
    done
    if [ ${#known[@]} = $# ]; then
        printf '%s\n' "${known[@]}"
        exit
    fi
fi

exec 9>"$cache/lock"
flock 9

# The system's own mirrors where it has them, else Debian's.
mirror() {
    local known
    known=$(apt-get indextargets --format '$(ORIGIN) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk -v release="$1" '$1 == "Debian" && $2 == release { print $3; exit }')
    echo "${known:-$2}"
}
for suite in bookworm:debian bookworm-updates:debian bookworm-security:debian-security; do
    echo "deb [signed-by=$keyring] $(mirror "${suite%:*}" "http://deb.debian.org/${suite#*:}") ${suite%:*} main non-free-firmware"
done >"$cache/sources.new"

options=(-q -q -o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture" -o APT::Sandbox::User=root
    -o "Dir::Etc::sourcelist=$cache/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::status=/dev/null
    -o "Dir::State::lists=$cache/lists" -o "Dir::Cache=$cache" -o Dir::Cache::archives=archives -o Acquire::Languages=none
    -o Acquire::Retries=2)
if ! cmp -s "$cache/sources.new" "$cache/sources.list" || [ -z "$(find "$cache/stamp" -mmin -1440 2>/dev/null)" ]; then
    mv "$cache/sources.new" "$cache/sources.list"
    # One index that is out of step must not hide the others; what is missing shows below.
    apt-get "${options[@]}" update >"$cache/update.log" 2>&1 || true
    touch "$cache/stamp"
fi

mkdir -p "$cache/resolved"

# Newest copy in the cache of a package, whatever its version.
cached() { find "$cache" -maxdepth 1 -type d -name "$1_*" | sort -V | tail -n 1; }

fetch() {
    local package=$1 version folder work
    # Asking apt takes seconds: once for each refresh of the lists.
    if [ "$cache/resolved/$1" -nt "$cache/stamp" ] && [ -d "$(cat "$cache/resolved/$1")" ]; then
        cat "$cache/resolved/$1"
        return
    fi
    case $package in
    linux-image-[0-9]*) ;;
    linux-image-*)
        package=$(apt-cache "${options[@]}" depends "$package" 2>/dev/null |
            sed -n 's/ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1 || true)
        [ -n "$package" ] || package="linux-image-[0-9]*-${1#linux-image-}"
        ;;
    esac
    version=$(apt-cache "${options[@]}" show --no-all-versions "$package" 2>/dev/null | sed -n 's/^Version: //p' | head -n 1 || true)
    if [ -n "$version" ]; then
        folder=$cache/${package}_${version//[:~\/]/-}
    else
        folder=$(cached "$package")
        if [ -z "$folder" ]; then
            echo "debian.sh: Debian has no $1 for $architecture, or its mirror does not answer:" >&2
            grep -E '^[EW]:' "$cache/update.log" >&2 || true
            rm -f "$cache/stamp"
            return 1
        fi
    fi
    if [ ! -d "$folder" ]; then
        work=$(mktemp -d "$cache/work.XXXXXX")
        (cd "$work" && apt-get "${options[@]}" download "$package" >&2 && dpkg -x ./*.deb "$work/tree")
        mv "$work/tree" "$folder"
        rm -r "$work"
        # Modules are found through this index.
        if compgen -G "$folder/lib/modules/*" >/dev/null; then
            PATH=$PATH:/sbin:/usr/sbin depmod -b "$folder" "$(basename "$folder"/lib/modules/*)"
        fi
    fi
    echo "$folder" | tee "$cache/resolved/$1"
}

for package in "$@"; do fetch "$package"; done
