"""The parts of benchmarks/serving that measure nothing: what a record says, and how tensors are written and read."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from luthier.oip.v2 import open_inference_pb2 as oip
from support import ROOT

FOLDER = ROOT / "benchmarks" / "serving"


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """Its modules, which find one another by the folder that they are run from."""
    names = ("report", "cases", "environments", "publishing", "sampling", "servers")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield {name: importlib.import_module(name) for name in names}
    for name in names:
        del sys.modules[name]


def turns(per_s: list[float], p99_ms: float) -> list[dict[str, float]]:
    others = {"p50_ms": 1.0, "server_cpu_ms": 0.5, "client_cpu_ms": 0.25}
    return [{"per_s": value, "p99_ms": p99_ms} | others for value in per_s]


def recorded(**contenders: list[dict[str, float]]) -> dict[str, Any]:
    return {
        "command": "python benchmarks/serving --quick",
        "machine": "a machine",
        "load": 0.0,
        "packages": {"Luthier": {"onnxruntime": "1.32.0"}},
        "options": {"inter_op_num_threads": "1"},
        "threads": {"mlp": 1},
        "connections": 8,
        "processes": 2,
        "instances": 2,
        "mlserver_workers": 2,
        "together": {"mlp": 32},
        "turns": 3,
        "seconds": 1.0,
        "warm_up": 0.5,
        "idle": 0.012,
        "counts": ["8"],
        "ceiling": {"mlp": {"8": 12345.6}} if "triton" in contenders else {},
        "profile": {"mlp": {"gRPC": 0.75, "codec": 0.25}},
        "looks": 400,
        "cases": [{"id": "mlp", "title": "numbers", "over_triton": 1.2, "in_flight": {"8": contenders}}],
    }


def test_medians_are_compared_not_the_best_turns(modules: dict[str, ModuleType]) -> None:
    record = recorded(
        luthier=turns([100.0, 120.0, 900.0], p99_ms=3.0),
        triton=turns([10.0, 100.0, 100.0], p99_ms=2.0),
        mlserver=turns([30.0, 30.0, 29.0], p99_ms=9.0),
    )
    found = {one.what: (one.reached, one.is_met) for one in modules["report"].verdicts(record)}
    assert found == {
        "throughput in Triton's": (1.2, True),
        "throughput in MLServer's": (4.0, True),
        "p99 in Triton's": (1.5, False),
    }


def test_just_below_a_limit_is_missed(modules: dict[str, ModuleType]) -> None:
    record = recorded(luthier=turns([119.99], p99_ms=2.0), triton=turns([100.0], p99_ms=2.0))
    [throughput, p99] = modules["report"].verdicts(record)
    assert (throughput.is_met, p99.is_met) == (False, True)


def test_the_page_shows_what_was_recorded(modules: dict[str, ModuleType]) -> None:
    limit = turns([41210.0], p99_ms=0.02)
    page = modules["report"].page(
        recorded(limit=limit, luthier=turns([110.0, 119.0], p99_ms=2.5), triton=turns([100.0], p99_ms=2.0))
    )
    assert "| mlp | throughput in Triton's | 1.145 | at least 1.2 | **missed** |" in page
    assert "| mlp: numbers | 41,210 (41,210 to 41,210) | 114 (110 to 119) | 100 (100 to 100) |  | 1.15 |  |" in page
    assert "| mlp | 1.00, 0.02 | 1.00, 2.50 | 1.00, 2.00 |  | 1.25 |" in page
    assert "| mlp | 0.50 | 0.50 | 0.50 |  | 0.25 | 12,346 |" in page
    assert "| case | gRPC | codec | \n|---|---|---|\n| mlp | 75 % | 25 % | \n" in page
    assert "3 turns are too few" in page


def test_a_page_of_luthier_alone_has_no_limits(modules: dict[str, ModuleType]) -> None:
    page = modules["report"].page(recorded(luthier=turns([110.0], p99_ms=2.5)))
    assert "missed" not in page
    assert "| mlp: numbers |  | 110 (110 to 110) |  |  |  |  |" in page


def test_tensors_are_written_as_the_protocol_says(modules: dict[str, ModuleType]) -> None:
    arrays = {"raw": np.array([b"abc", b""], object), "x": np.array([[1.5]], np.float32)}
    request = oip.ModelInferRequest.FromString(modules["cases"].tensor_request("m", arrays))
    assert [(i.name, i.datatype, list(i.shape)) for i in request.inputs] == [
        ("raw", "BYTES", [2]),
        ("x", "FP32", [1, 1]),
    ]
    assert [*request.raw_input_contents] == [b"\3\0\0\0abc\0\0\0\0", np.float32(1.5).tobytes()]


def test_answers_are_the_same_raw_and_typed(modules: dict[str, ModuleType]) -> None:
    cases = modules["cases"]
    typed, raw = oip.ModelInferResponse(), oip.ModelInferResponse()
    for response in (typed, raw):
        response.outputs.add(name="label", datatype="BYTES", shape=[1])
        response.outputs.add(name="score", datatype="FP32", shape=[1])
    typed.outputs[0].contents.bytes_contents.append(b"card")
    typed.outputs[1].contents.fp32_contents.append(0.5)
    raw.raw_output_contents.extend([b"\4\0\0\0card", np.float32(0.5).tobytes()])
    one, other = (cases.read_tensors(response.SerializeToString()) for response in (typed, raw))
    assert one["label"] == ["card"]
    assert not cases.differs(one, other)
    assert cases.differs(one, other | {"label": ["cash"]})
    assert cases.differs(one, other | {"score": np.array([0.51])})
    assert cases.differs(one, {"label": ["card"]})


def test_triton_is_told_of_strings_by_its_own_name(modules: dict[str, ModuleType]) -> None:
    deployment = modules["servers"].Deployment("texts-text", "text", FOLDER, {"label": "BYTES", "score": "FP32"})
    config = modules["servers"].triton_config(deployment)
    assert 'input [{name: "raw" data_type: TYPE_STRING dims: [-1]}]' in config
    assert '{name: "score" data_type: TYPE_FP32 dims: [-1]}]' in config
    assert "instance_group [{count: 2 kind: KIND_CPU}]" in config


def test_code_is_the_innermost_that_is_known(modules: dict[str, ModuleType]) -> None:
    found = modules["sampling"].counted(
        [
            "_work (luthier/inference/threads.py:99);call (grpc/_server.py:7);exit (contextlib.py:1) 3",
            "call (grpc/_server.py:7);run (luthier/services/prediction.py:1);add (luthier/telemetry/meters.py:5) 2",
            "run (luthier/inference/served.py:1);encode (acme_photos/codec.py:1);open (PIL/Image.py:9) 4",
            "run (threading.py:982) 1",
        ]
    )
    assert found == {"gRPC": 4, "counting": 2, "codec": 4}
