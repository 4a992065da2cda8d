#!/usr/bin/env bash
# Generates the stubs of every .proto under protos/ into server/, and those of the third parties' plugins that the tests
# and a benchmark use. The generator is the oldest supported, so that its stubs load on every protobuf runtime from 6.33
# on; it lives in an environment of its own.
#
#     tools/protos.sh ENVIRONMENT [ROOT]
#
# ROOT is where to write, as if it were the root of the repository, which is the default. ROOT/build/protos.binpb gets the
# descriptors of protos/, with comments and imports, for the linter.
set -euo pipefail
cd "$(dirname "$0")/.."
env=${1:?the environment to keep the generator in}
root=${2:-.}
strangers=(tests/plugins/acme_regression benchmarks/serving/float_images)
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

compile() { # FROM OPTION…: every .proto below FROM
    mapfile -t files < <(cd "$1" && find . -name '*.proto' | sed 's|^\./||' | sort)
    python -m grpc_tools.protoc -I "$1" -I protos -I "$include" -I "$googleapis" "${@:2}" "${files[@]}"
}
stubs() { # FROM INTO: their stubs, in the same folders below INTO
    mkdir -p "$2"
    compile "$1" --python_out="$2" --grpc_python_out="$2" --mypy_out=quiet:"$2" --mypy_grpc_out=quiet:"$2"
}
stubs protos "$root/server"
for plugin in "${strangers[@]}"; do
    stubs "$plugin" "$root/$plugin"
    find "$root/$plugin" -type d -name v1 -exec touch {}/__init__.py \;
done
mkdir -p "$root/build"
compile protos --include_imports --include_source_info --descriptor_set_out="$root/build/protos.binpb"
# The folders of stubs are ordinary packages with nothing in them.
find "$root/server/luthier/v1" "$root/server/luthier/tasks" "$root/server/luthier/oip" \
    -type d ! -name __pycache__ -exec touch {}/__init__.py \;
