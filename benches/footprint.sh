#!/bin/sh
# Size of the device binary, and memory while it looks at the sample pictures with each model of the zoo.
#   benches/footprint.sh
# OCELLI names a binary to measure instead of building the release one.
set -eu
cd "$(dirname "$0")/.."
if [ -z "${OCELLI:-}" ]; then
    cargo build --locked --release -p ocelli --bin ocelli
    OCELLI=${CARGO_TARGET_DIR:-target}/release/ocelli
fi
seconds=${SECONDS_EACH:-8}
work=$(mktemp -d)
trap 'rm -rf "$work"; [ -z "${broker:-}" ] || kill "$broker"' EXIT
PATH=$PATH:/usr/sbin

# Runs the agent on the sample pictures with one model and prints its memory after a while.
run() {
    label=$1 folder=$2 mqtt=$3
    cat >"$work/agent.toml" <<TOML
[device]
id = "footprint"
[[stream]]
name = "pictures"
camera = "$PWD/models/pictures"
loop = true
fps = 30
[model]
path = "$PWD/$folder"
[store]
dir = "$work/store"
$mqtt
TOML
    "$OCELLI" run --config "$work/agent.toml" >"$work/lines" 2>"$work/log" &
    agent=$!
    # The model is loaded and its golden pictures are looked at before the threads of the pipeline start.
    until [ "$(ls "/proc/$agent/task" 2>/dev/null | wc -l)" -gt 2 ] || ! kill -0 "$agent" 2>/dev/null; do sleep 0.2; done
    sleep "$seconds"
    memory=$(awk '/^Vm(HWM|RSS):/ {printf "%s %.1f MiB, ", $1, $2 / 1024} /^Threads:/ {print $2, "threads"}' "/proc/$agent/status")
    kill -TERM "$agent"
    wait "$agent" || { cat "$work/log" >&2; exit 1; }
    echo "$label: $memory"
}

echo "binary: $(stat -c %s "$OCELLI") bytes, $(uname -m); machine load $(cut -d' ' -f1 /proc/loadavg)"
echo "links: $(ldd "$OCELLI" 2>&1 | awk '{print $1}' | tr '\n' ' ')"
for model in models/*/manifest.toml; do
    folder=$(dirname "$model")
    run "$(basename "$folder"), ocelli run, no broker" "$folder" ""
    "$OCELLI" bench "$folder/model.onnx" --runs 5 --warmup 1 --json |
        sed -E 's/.*"load_ms":([0-9.]+).*"peak_rss_mib":([0-9.]+).*/    ocelli bench: load \1 ms, peak RSS \2 MiB/'
done
if command -v mosquitto >/dev/null; then
    mosquitto -p 18839 >/dev/null 2>&1 &
    broker=$!
    sleep 1
    run "nanodet-g-coco, ocelli run, with a broker" models/nanodet-g-coco '[mqtt]
host = "127.0.0.1"
port = 18839'
fi
