#!/bin/sh
# Installs the image for training: the wheel of this repository with its libraries, torch among them.
#
#     deploy/train.sh PREFIX cuda|cpu [INDEX]     INDEX: where torch's builds for the CPU are; for cpu only
set -eu
cd "$(dirname "$0")/.."
prefix=$1 device=$2 index=${3:-}
case $device:$index in
    cuda: | cpu:?*) ;;
    cpu:) echo "DEVICE=cpu needs TORCH_INDEX, the index of torch's builds for the CPU" >&2; exit 2 ;;
    *) echo "DEVICE is cuda, without TORCH_INDEX, or cpu" >&2; exit 2 ;;
esac

work=$(mktemp -d)
python3 -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --constraint constraints.txt build
"$work/tools/bin/python" -m build --wheel --outdir "$work" .
# With pip: it downloads the bases that are in packages.
python3 -m venv "$prefix"
into() { "$prefix/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --constraint constraints.txt "$@"; }
if [ "$device" = cpu ]; then
    # First, and from there alone: another index would offer the build with CUDA.
    into --index-url "$index" torch torchvision
fi
into --only-binary :all: "luthier[serve,train,postgres,s3,otel,ann] @ file://$(ls "$work"/luthier-*.whl)"
rm -r "$work"
