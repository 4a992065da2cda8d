#!/usr/bin/env bash
# Builds the wheel and installs it alone, without extras: the client and every stub import, and `luthier serve` says what
# to install.
#
#     tools/check_wheel.sh PYTHON     (one with the package `build`)
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
"$1" -m build --wheel --outdir "$work" . >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
"$1" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt "$work"/luthier-*.whl

# -I: neither the current folder nor PYTHONPATH may help.
"$work/venv/bin/python" -I - <<'PYTHON'
import importlib
import pkgutil

import luthier.tasks
import luthier.v1
import luthier_client

count = 0
for package in (luthier.v1, luthier.tasks, luthier_client):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
        count += 1
print(f"the wheel alone imports {count} modules of the client and the stubs")
PYTHON

status=0
said=$("$work/venv/bin/luthier" serve 2>&1) || status=$?
if [ "$status" != 2 ] || [[ "$said" != *"luthier[serve]"* ]]; then
    echo "\`luthier serve\` without the extra ended with $status, not 2 and the extra's name: $said" >&2
    exit 1
fi
