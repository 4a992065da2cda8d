"""Imports all that the image for serving needs, and prints what this read of LIBRARIES and of Python, a file a line.

    python deploy/imports.py LIBRARIES

A library that the image lacks ends it with an error, unless it is one of training.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import sysconfig

TRAINING = {"torch", "torchvision", "timm", "transformers", "implicit", "onnx", "onnxscript", "onnx_ir", "safetensors"}
PACKAGES = ("luthier", "luthier_client")
EXTRAS = (
    "psycopg",
    "s3fs",
    "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "opentelemetry.sdk.trace",
    "cryptography.hazmat.primitives.asymmetric.ec",
    "cryptography.hazmat.primitives.asymmetric.rsa",
    "jwt",
    "prometheus_client",
    "pycocotools.cocoeval",
    "sklearn.metrics",
    "sklearn.preprocessing",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "starlette.applications",
    "uvicorn",
)
"""What is imported only where it is used."""


def everything(package: str) -> None:
    """Imports a package and all below it that works without a library of training."""
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        # `__main__` would run; `testing` is for plugins' authors, who have pytest.
        if found.name.rpartition(".")[2] in ("__main__", "testing"):
            continue
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in TRAINING:
                raise


def main() -> None:
    """Imports and prints."""
    libraries = sys.argv[1]
    plugins = (found.name for found in pkgutil.iter_modules([libraries]) if found.name.startswith("luthier_"))
    for package in (*PACKAGES, *plugins):
        everything(package)
    for module in EXTRAS:
        importlib.import_module(module)
    if loaded := TRAINING & sys.modules.keys():
        sys.exit(f"libraries of training are in an image for serving: {', '.join(sorted(loaded))}")
    files = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    places = (f"{libraries}/", f"{sysconfig.get_path('stdlib')}/")
    print("\n".join(sorted(file for file in files if file.startswith(places) and file.endswith(".py"))))


if __name__ == "__main__":
    main()
