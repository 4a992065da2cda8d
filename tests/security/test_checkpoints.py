"""Checkpoints and graphs that would run code or read other files: refused, whatever their hashes say."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from acme_regression.v1 import regression_pb2 as pb
from acme_regression.v1 import regression_pb2_grpc as pb_grpc
from google.rpc import code_pb2
from onnx import TensorProto, helper, numpy_helper

import published
from luthier.database import Database
from luthier.errors import DataLoss
from luthier.inference import graphs
from luthier.store import Store
from luthier_client import Client
from luthier_client.errors import InvalidArgument, OperationFailed
from support import Server, serving, status_of


class Canary:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def of_torch(canary: Path, **options: Any) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save({"conv.weight": torch.ones(1), "extra": Canary(canary)}, stream, **options)
    return stream.getvalue()


def plain_pickle(canary: Path) -> bytes:
    return pickle.dumps({"conv.weight": Canary(canary)})


def old_pickle(canary: Path) -> bytes:
    return pickle.dumps(Canary(canary), protocol=0)


def lookalike(canary: Path) -> bytes:
    """What begins like safetensors, and goes on as a pickle."""
    header = json.dumps({"conv.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + pickle.dumps(Canary(canary))


def strange_header(canary: Path) -> bytes:
    header = json.dumps({"conv.weight": {"dtype": "PICKLE", "shape": [2**62], "data_offsets": [0, 2**62]}}).encode()
    return struct.pack("<Q", len(header)) + header + pickle.dumps(Canary(canary))


def endless_header(canary: Path) -> bytes:
    return struct.pack("<Q", 2**63) + b"{" + pickle.dumps(Canary(canary))


def zip_with_pickle(canary: Path) -> bytes:
    """A zip as torch.save writes it, with a path that leads out of it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"conv.weight": Canary(canary)}))
        archive.writestr("archive/version", "3")
        archive.writestr("../../../tmp/slipped", b"x")
    return stream.getvalue()


CHECKPOINTS: dict[str, Callable[[Path], bytes]] = {
    "zip": of_torch,
    "legacy": lambda canary: of_torch(canary, _use_new_zipfile_serialization=False),
    "pickle": plain_pickle,
    "old-pickle": old_pickle,
    "lookalike": lookalike,
    "strange-header": strange_header,
    "endless-header": endless_header,
    "zip-slip": zip_with_pickle,
    "text": lambda canary: b"user,item,weight\nu1,i1,1\n",
    "nothing": lambda canary: b"",
}


@pytest.fixture(scope="module")
def importing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("torch")
    with serving(tmp_path_factory.mktemp("home"), "--jobs", "2") as server:
        yield server


def test_checkpoints_with_code(importing: Server, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with Client(importing.address) as client:
        begun = {}
        for name, make in CHECKPOINTS.items():
            path = tmp_path / f"{name}.{'safetensors' if 'header' in name or name == 'lookalike' else 'pt'}"
            path.write_bytes(make(canary))
            begun[name] = client.import_base(name, architecture="test_efficientnet", weights=path)
        for name, operation in begun.items():
            with pytest.raises(OperationFailed) as failed:
                operation.result(timeout=120)
            assert isinstance(failed.value.__cause__, InvalidArgument), name
            assert "weights" in failed.value.violations, name
            assert str(importing.home) not in failed.value.message
        assert not [base for base in client.list_bases() if base.imported]
    assert not canary.exists()
    assert not (Path("/tmp") / "slipped").exists()


@pytest.mark.parametrize("make", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_reading_runs_nothing(tmp_path: Path, make: Callable[[Path], bytes]) -> None:
    pytest.importorskip("torch")
    from luthier.toolkit.backbones import read_state

    canary, path = tmp_path / "canary", tmp_path / "weights"
    path.write_bytes(make(canary))
    with pytest.raises(ValueError, match=r"^(is|holds)"):
        read_state(path)
    assert not canary.exists()


def test_the_canary_sings(tmp_path: Path) -> None:
    """Where its code is run, it is seen: without it, its absence would say nothing."""
    for make in (plain_pickle, old_pickle):
        canary = tmp_path / make.__name__
        made = pickle.loads(make(canary))
        (made if hasattr(made, "close") else made["conv.weight"]).close()
        assert canary.exists()


def test_architectures_that_would_be_fetched(importing: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"x")
    with Client(importing.address) as client:
        for name in ("hf-hub:evil/repo", "local-dir:/etc", "../etc", "resnet18.hf-hub:x", "timm/resnet18", "a" * 500):
            with pytest.raises(InvalidArgument) as refused:
                client.import_base("fetched", architecture=name, weights=tmp_path / "w.pt")
            assert set(refused.value.violations) == {"architecture"}
        with pytest.raises(OperationFailed) as failed:
            client.import_base("tag", architecture="resnet18.no_such_tag", weights=tmp_path / "w.pt").result(120)
        assert isinstance(failed.value.__cause__, InvalidArgument)


# Graphs.


def model(*nodes: onnx.NodeProto, opsets: tuple[str, ...] = ("",), **parts: Any) -> onnx.ModelProto:
    """A graph that a codec of the tests' regression could ask, with these nodes in front of its answer."""
    graph = helper.make_graph(
        [*nodes, helper.make_node("ReduceSum", ["features", "axis"], ["value"], keepdims=0)],
        "graph",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["batch"])],
        [numpy_helper.from_array(np.array([1]), "axis")],
    )
    ids = [helper.make_opsetid(domain, 18 if not domain else 1) for domain in opsets]
    return helper.make_model(graph, opset_imports=ids, ir_version=10, **parts)


def external() -> onnx.ModelProto:
    made = model(helper.make_node("Add", ["features", "far"], ["near"]))
    tensor = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "../../../../../../etc/passwd"), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    made.graph.initializer.append(tensor)
    return made


def external_in_an_attribute() -> onnx.ModelProto:
    tensor = TensorProto(name="far", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="manifest.json")
    return model(helper.make_node("Constant", [], ["far"], value=tensor))


def custom() -> onnx.ModelProto:
    return model(helper.make_node("Run", ["features"], ["ran"], domain="acme.shell"), opsets=("", "acme.shell"))


def custom_opset() -> onnx.ModelProto:
    return model(opsets=("", "acme.shell"))


def context() -> onnx.ModelProto:
    node = helper.make_node("EPContext", ["features"], ["ran"], domain="com.microsoft", embed_mode=0)
    node.attribute.append(helper.make_attribute("ep_cache_context", "/etc/passwd"))
    return model(node, opsets=("", "com.microsoft"))


def within_a_branch() -> onnx.ModelProto:
    inner = helper.make_graph([helper.make_node("Run", [], ["x"], domain="acme.shell")], "inner", [], [])
    return model(helper.make_node("If", ["features"], ["ran"], then_branch=inner, else_branch=inner))


def within_a_function() -> onnx.ModelProto:
    node = helper.make_node("Run", ["a"], ["b"], domain="acme.shell")
    function = helper.make_function("", "Fn", ["a"], ["b"], [node], [helper.make_opsetid("", 18)])
    return model(helper.make_node("Fn", ["features"], ["ran"]), functions=[function])


GRAPHS = {
    "weights in other files": external,
    "weights in other files, which": external_in_an_attribute,
    "operators of 'acme.shell'": custom,
    "operators of 'acme.shell', which": custom_opset,
    "the operator EPContext": context,
    "operators of 'acme.shell', which is": within_a_branch,
    "operators of 'acme.shell', which is none": within_a_function,
}


@pytest.mark.parametrize(("said", "make"), GRAPHS.items(), ids=[make.__name__ for make in GRAPHS.values()])
def test_graphs_that_are_never_loaded(tmp_path: Path, said: str, make: Callable[[], onnx.ModelProto]) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(make().SerializeToString())
    with pytest.raises(DataLoss, match=said):
        graphs.check(path)


def test_graphs_that_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model(helper.make_node("Gelu", ["features"], ["ran"], domain="com.microsoft")).SerializeToString())
    graphs.check(path)
    published.save(tmp_path, 1.0, 1, 2)
    graphs.check(path)


def test_what_is_no_graph(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    whole = model().SerializeToString()
    for content in (b"", b"\x80", b"\x3a\xff\xff\xff\x7f", whole[: len(whole) // 2], b"\x0f", b"\xff" * 40):
        path.write_bytes(content)
        with pytest.raises(DataLoss):
            graphs.check(path)


def test_bundles_whose_hashes_fit(tmp_path: Path) -> None:
    """Put into place with a manifest and a record made for them: nothing of it is loaded, all else is served."""
    database = Database(f"sqlite:///{tmp_path / 'luthier.db'}")
    database.migrate()
    store = Store(tmp_path)
    published.publish(database, store, "good", 7.0)
    (tmp_path / "elsewhere").write_bytes(model().SerializeToString())
    for number, make in enumerate(GRAPHS.values()):

        def write(directory: Path, make: Callable[[], onnx.ModelProto] = make) -> None:
            (directory / "model.onnx").write_bytes(make().SerializeToString())

        published.publish(database, store, f"evil{number}", 0.0, change=write)

    def link(directory: Path) -> None:
        (directory / "model.onnx").unlink()
        (directory / "model.onnx").symlink_to(tmp_path / "elsewhere")

    published.publish(database, store, "linked", 0.0, change=link)
    published.publish(database, store, "outside", 0.0, files=[("../../elsewhere", tmp_path / "elsewhere")])
    database.close()
    with serving(tmp_path) as server:
        stub = server.stub(pb_grpc.RegressionServiceStub)
        for name in [*(f"evil{number}" for number in range(len(GRAPHS))), "linked", "outside"]:
            with pytest.raises(grpc.RpcError) as caught:
                stub.Estimate(pb.EstimateRequest(model=name, instances=[pb.Instance(features=[0])]))
            assert status_of(caught.value).code == code_pb2.DATA_LOSS, name
        answer = stub.Estimate(pb.EstimateRequest(model="good", instances=[pb.Instance(features=[0])]))
        assert answer.predictions[0].value == 7.0
    assert not [line for line in server.log if "Traceback" in line]


def test_a_graph_that_wants_more_memory_than_there_is(tmp_path: Path) -> None:
    """It is loaded, since nothing in it shows before it is run; its calls fail alone."""
    database = Database(f"sqlite:///{tmp_path / 'luthier.db'}")
    database.migrate()

    def write(directory: Path) -> None:
        made = model(
            helper.make_node("Shape", ["features"], ["shape"]),
            helper.make_node("Mul", ["shape", "factor"], ["large"]),
            helper.make_node("ConstantOfShape", ["large"], ["zeros"]),
            helper.make_node("ReduceMax", ["zeros"], ["most"], keepdims=0),
        )
        made.graph.initializer.append(numpy_helper.from_array(np.array([2**20, 2**20]), "factor"))
        made.graph.output.append(helper.make_tensor_value_info("most", TensorProto.FLOAT, []))
        (directory / "model.onnx").write_bytes(made.SerializeToString())

    published.publish(database, Store(tmp_path), "huge", 0.0, change=write)
    published.publish(database, Store(tmp_path), "good", 7.0)
    database.close()
    with serving(tmp_path) as server:
        stub = server.stub(pb_grpc.RegressionServiceStub)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Estimate(pb.EstimateRequest(model="huge", instances=[pb.Instance(features=[0])]))
        assert "/" not in status_of(caught.value).message
        answer = stub.Estimate(pb.EstimateRequest(model="good", instances=[pb.Instance(features=[0])]))
        assert answer.predictions[0].value == 7.0
