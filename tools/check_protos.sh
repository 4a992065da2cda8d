#!/usr/bin/env bash
# Lints the protos, and checks that the committed stubs are the ones that they generate.
#
#     tools/check_protos.sh ENVIRONMENT BUF     (ENVIRONMENT as for tools/protos.sh)
set -euo pipefail
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -r "$fresh"' EXIT
tools/protos.sh "$1" "$fresh"
"$2" lint "$fresh/build/protos.binpb" --config buf.yaml

hashes() { # ROOT: the stubs below it, one a line
    (cd "$1" && find server tests/plugins benchmarks \( -name '*_pb2*.py' -o -name '*_pb2*.pyi' \) -exec sha256sum {} + | sort -k 2)
}
if ! diff <(hashes .) <(hashes "$fresh"); then
    echo "The stubs above are not those of the protos: run \`make protos\` and commit what it writes." >&2
    exit 1
fi
