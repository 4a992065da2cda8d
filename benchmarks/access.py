"""What it costs a prediction that its caller is asked who it is, beside what the whole call costs over gRPC.

    python benchmarks/access.py [--calls 100] [--turns 100]

Measured is processor time, in turns: of a call over gRPC, caller and server together, of a handler that does nothing
with what a server always has around it; of the same called directly; and of that with the access interceptor too, for
tokens of each kind. The least of many short turns is taken, which a neighbour's load disturbs least.
"""

from __future__ import annotations

import argparse
import contextvars
import functools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from luthier.access.audit import Audit
from luthier.access.gate import Gate
from luthier.access.jwt_tokens import JwtTokens, KeySet
from luthier.access.policy import Policy
from luthier.access.policy_file import PolicyFile
from luthier.access.principal import Role
from luthier.access.tokens import Tokens
from luthier.database import Database
from luthier.services.access import AccessInterceptor
from luthier.services.interceptor import CallInterceptor
from luthier.telemetry.meters import Meters
from luthier.v1 import prediction_pb2 as pb
from luthier.v1 import prediction_pb2_grpc

REQUEST = pb.PredictRequest(model="shop-1")
BOUNDS = """
[[principals]]
name = "bounded"
models = ["shop-*"]
quotas = { requests_per_minute = 1_000_000_000, bytes_per_day = 1_000_000_000_000 }
"""


class Nothing(prediction_pb2_grpc.PredictionServiceServicer):
    def Predict(self, request: pb.PredictRequest, context: grpc.ServicerContext) -> pb.PredictResponse:  # noqa: N802
        return pb.PredictResponse()


class Details(NamedTuple):
    """What grpc tells interceptors."""

    method: str
    invocation_metadata: tuple[tuple[str, str], ...]


class Context:
    """As much of a call's context as one that succeeds asks for."""

    def time_remaining(self) -> float:
        return 1.0

    def is_active(self) -> bool:
        return True

    def code(self) -> None:
        return None

    def peer(self) -> str:
        return "ipv4:127.0.0.1:50000"


def directly(token: str, *interceptors: grpc.ServerInterceptor) -> Callable[[], Any]:
    """A call of the handler as grpc makes it, in a context of its own, and no more of grpc."""
    details = Details("/luthier.v1.PredictionService/Predict", (("authorization", f"Bearer {token}"),))
    handler = grpc.unary_unary_rpc_method_handler(Nothing().Predict)

    def find(_: Any) -> grpc.RpcMethodHandler:
        return handler

    for interceptor in reversed(interceptors):
        find = functools.partial(interceptor.intercept_service, find)

    def call() -> Any:
        context = contextvars.Context()
        found = context.run(find, details)
        return context.run(found.unary_unary, REQUEST, Context())

    return call


@contextmanager
def serving(*interceptors: grpc.ServerInterceptor) -> Iterator[Callable[..., Any]]:
    """A server in this process, and a call of it."""
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads, interceptors=interceptors)
        prediction_pb2_grpc.add_PredictionServiceServicer_to_server(Nothing(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield prediction_pb2_grpc.PredictionServiceStub(channel).Predict
        server.stop(None).wait()


def cost(call: Callable[[], Any], calls: int) -> float:
    """Processor time of a call in microseconds."""
    began = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - began) / calls * 1e6


def signed(folder: Path) -> tuple[KeySet, str]:
    """Keys, and a token of a caller by one of them."""
    key = ec.generate_private_key(ec.SECP256R1())
    jwk = {**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "k"}
    (folder / "keys.json").write_text(json.dumps({"keys": [jwk]}))
    keys = KeySet(str(folder / "keys.json"))
    keys.load()
    claims = {"sub": "ann", "aud": "luthier", "exp": int(time.time()) + 3600, "luthier_role": "caller"}
    return keys, jwt.encode(claims, key, algorithm="ES256", headers={"kid": "k"})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--turns", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "policy.toml").write_text(BOUNDS)
        database = Database(f"sqlite:///{folder / 'luthier.db'}")
        database.migrate()
        tokens = Tokens(database)
        keys, by_jwt = signed(folder)
        _, static = tokens.create("anybody", Role.CALLER)
        _, bounded = tokens.create("bounded", Role.CALLER)
        gate = Gate(tokens, PolicyFile(folder / "policy.toml"), JwtTokens(keys, "luthier", ""))
        gate.start()
        access = AccessInterceptor(gate, Policy([], lambda principal, named: []), Audit(database))
        calls = CallInterceptor(Meters())
        with serving(calls) as over_grpc:
            ways = {
                "over gRPC": lambda: over_grpc(REQUEST),
                "directly": directly(static, calls),
                "directly, with a static token": directly(static, calls, access),
                "directly, with a JSON Web Token that was seen before": directly(by_jwt, calls, access),
                "directly, with a scope and quotas of both kinds": directly(bounded, calls, access),
            }
            turns = [[cost(call, arguments.calls) for call in ways.values()] for _ in range(arguments.turns)]
            least = dict(zip(ways, map(min, zip(*turns, strict=True)), strict=True))
        verifying = JwtTokens(keys, "luthier", "")
        began = time.process_time()
        for _ in range(200):
            verifying.verify(by_jwt)
        first = (time.process_time() - began) / 200 * 1e6
        gate.stop()
        database.close()
    for way, microseconds in least.items():
        print(f"{way}: {microseconds:.1f} us")
    print(f"a JSON Web Token's first call besides: {first:.1f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
