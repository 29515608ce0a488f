#!/bin/sh
# The frame path without inference, beside OpenCV: same core, same run. Prints JSON lines and the ratio.
#   benches/frame_path.sh [core]
# Needs python3 with venv. The bench is built in the dev profile, this package as in a release: that takes seconds.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
core=${1:-0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy opencv-python-headless
cd "$here/.."
own=profile.dev.package.ocelli
bench="cargo bench --profile dev --config $own.opt-level=3 --config $own.debug-assertions=false \
    --config $own.overflow-checks=false --bench frame_path"
$bench --no-run
# Before and after: a busy machine shows as a difference between the two.
for round in 1 2; do
    taskset -c "$core" "$work/venv/bin/python" "$here/frame_path_cv2.py"
    taskset -c "$core" $bench --quiet
done | tee "$work/lines"
"$work/venv/bin/python" - "$work/lines" <<'PY'
import json, sys
best = {}
for line in open(sys.argv[1]):
    if line.startswith("{"):
        row = json.loads(line)
        best[row["case"]] = min(best.get(row["case"], 1e9), row["median_us"])
for name in ("yuyv", "nv12", "mjpeg"):
    print(f"{name}: ocelli {best['ocelli-' + name]} us, OpenCV {best['cv2-' + name]} us, "
          f"ratio {best['ocelli-' + name] / best['cv2-' + name]:.2f}")
PY
