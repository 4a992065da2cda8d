#!/usr/bin/env bash
# Generates the stubs of every .proto under protos/ into server/. The generator is the oldest supported, so that
# its stubs load on every protobuf runtime from 6.33 on; it lives in an environment of its own, $1.
set -euo pipefail
cd "$(dirname "$0")/.."
env=${1:?the environment to keep the generator in}
out=${2:-server}
if [ ! -x "$env/bin/protoc-gen-mypy" ]; then
    python3 -m venv "$env"
    "$env/bin/pip" install --quiet googleapis-common-protos==1.76.0 grpcio-tools==1.81.1 protobuf==6.33.5 mypy-protobuf==5.1.0 setuptools==80.10.2
fi
PATH="$env/bin:$PATH"
googleapis=$("$env/bin/python" -c 'import google, pathlib; print(pathlib.Path(list(google.__path__)[0]).parent)')
# googleapis-common-protos keeps this file under another name than the one its descriptor carries and others import.
include=$(mktemp -d)
trap 'rm -r "$include"' EXIT
mkdir -p "$include/google/longrunning"
cp "$googleapis/google/longrunning/operations_proto.proto" "$include/google/longrunning/operations.proto"
mapfile -t files < <(cd protos && find luthier -name '*.proto' | sort)
python -m grpc_tools.protoc -I protos -I "$include" -I "$googleapis" \
    --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" "${files[@]}"
# The folders of stubs are ordinary packages with nothing in them.
find "$out/luthier/v1" "$out/luthier/tasks" -type d ! -name __pycache__ -exec touch {}/__init__.py \;
