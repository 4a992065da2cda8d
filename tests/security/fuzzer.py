"""A client that sends mutated requests to every method of a server, in a process of its own, and counts the answers.

    python fuzzer.py ADDRESS SEED SECONDS A_SECOND WORDS METHODS

WORDS is JSON: good values by the names of fields. METHODS is what the names of methods have to match. Prints JSON: what
was sent, what of it can be parsed, what of it a handler answered, and each answer that nothing explains, with the bytes
that it was given for.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message
from PIL import Image

from luthier.oip.v2 import open_inference_pb2 as oip
from luthier.oip.v2 import open_inference_pb2_grpc as oip_grpc
from wire import Builder, Method, methods_of, mutate

SEEDS = 40
"""Messages of each method that are mutated."""
IN_FLIGHT = 12
STREAMS = 6
LEAST_A_SECOND = 50_000 / 60
CALL_S = 10.0
STREAM_S = 0.4
"""Streams that say nothing more are ended after so long, and calls that wait for something."""
LONG = ("WaitOperation", "WatchOperation", "Watch")
SHARE_OF_STREAMS = 0.06
MALFORMED = "the bytes are no message of this method"
"""What a server says of bytes that it cannot parse."""


class Counts:
    """What came back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sent = self.parsed = self.handled = 0
        self.seconds = 0.0
        self.codes: Counter[str] = Counter()
        self.methods: dict[str, Counter[str]] = {}
        self.unexplained: list[dict[str, str]] = []

    def add(self, method: Method, messages: list[bytes], code: grpc.StatusCode, details: str) -> None:
        parsed = sum(_is_parsed(method, data) for data in messages)
        with self.lock:
            self.sent += len(messages)
            self.parsed += parsed
            # Of a stream those before the one that ended it were answered, and what comes behind it nobody sees.
            self.handled += parsed if MALFORMED not in details else 0
            self.codes[code.name] += 1
            self.methods.setdefault(method.path, Counter())[code.name] += 1
            if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
                shown = {"method": method.path, "code": code.name, "details": details[:300]}
                self.unexplained.append({**shown, "request": messages[-1][:400].hex()})


def main(address: str, seed: int, seconds: float, a_second: float, words: dict[str, list[str]], pattern: str) -> Counts:
    """Sends until the time is over and all answers are there."""
    random = Random(seed)
    channels = [grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(4)]
    methods = [method for method in methods_of(channels[0]) if re.search(pattern, method.path)]
    corpus = _corpus(random, channels[0], methods, words)
    everything = [data for seeds in corpus.values() for data in seeds if data]
    plain = [m for m in methods if not _is_long(m)]
    streams = [m for m in methods if _is_long(m)]
    counts = Counts()
    room = {False: threading.Semaphore(IN_FLIGHT), True: threading.Semaphore(STREAMS)}
    started = time.perf_counter()
    number = 0
    # A machine that does other things too gets the time that it needs.
    while (elapsed := time.perf_counter() - started) < seconds or number < seconds * LEAST_A_SECOND:
        if number > max(elapsed, 1) * a_second:
            time.sleep(0.002)
            continue
        is_stream = streams and random.random() < SHARE_OF_STREAMS and room[True].acquire(blocking=False)
        if not is_stream:
            room[False].acquire()
        method = random.choice(streams if is_stream else plain)
        messages = [
            mutate(random, random.choice(corpus[method.path]), everything)
            for _ in range(random.choice((1, 2, 3)) if method.streams_in else 1)
        ]
        if method.path.endswith("/UploadFiles") and random.random() < 0.5:
            messages = [mutate(random, one, everything) if random.random() < 0.5 else one for one in _upload(method)]
        number += len(messages)
        channel = channels[number % len(channels)]
        send = _stream if is_stream else _send
        send(channel, method, messages, counts, room[bool(is_stream)])
    for _ in range(IN_FLIGHT):
        room[False].acquire()
    for _ in range(STREAMS):
        room[True].acquire()
    counts.seconds = time.perf_counter() - started
    for channel in channels:
        channel.close()
    return counts


def _is_long(method: Method) -> bool:
    return method.streams_in or method.streams_out or method.path.endswith(LONG)


def _is_parsed(method: Method, data: bytes) -> bool:
    try:
        method.request.FromString(data)
    except DecodeError:
        return False
    return True


def _send(
    channel: grpc.Channel, method: Method, messages: list[bytes], counts: Counts, room: threading.Semaphore
) -> None:
    call = channel.unary_unary(method.path).future(messages[0], timeout=CALL_S)

    def done(ended: Any) -> None:
        counts.add(method, messages, ended.code(), ended.details() or "")
        room.release()

    call.add_done_callback(done)


def _stream(
    channel: grpc.Channel, method: Method, messages: list[bytes], counts: Counts, room: threading.Semaphore
) -> None:
    timeout = STREAM_S

    def run() -> None:
        code, details = grpc.StatusCode.OK, ""
        try:
            if method.streams_in and method.streams_out:
                for _ in channel.stream_stream(method.path)(iter(messages), timeout=timeout):
                    pass
            elif method.streams_in:
                channel.stream_unary(method.path)(iter(messages), timeout=timeout)
            elif method.streams_out:
                for _ in channel.unary_stream(method.path)(messages[0], timeout=timeout):
                    pass
            else:
                channel.unary_unary(method.path)(messages[0], timeout=timeout)
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
        counts.add(method, messages, code, details)
        room.release()

    threading.Thread(target=run, daemon=True).start()


def _corpus(
    random: Random, channel: grpc.Channel, methods: list[Method], words: dict[str, list[str]]
) -> dict[str, list[bytes]]:
    """Good and half-good requests of every method."""
    blobs = [*_pictures(), b"", random.randbytes(50), b"0123456789" * 30]
    packed = _packed(methods)
    builder = Builder(random, words, blobs, packed, good=0.85)
    corpus = {m.path: [builder.build(m.request).SerializeToString() for _ in range(SEEDS)] for m in methods}
    inferences = _inferences(channel, random, words["model"])
    for kind in packed:
        if kind.DESCRIPTOR.name == "Instance":
            of = {"model": words.get(f"{kind.DESCRIPTOR.file.package}.model", words["model"])}
            requests = Builder(random, words | of, blobs, [kind], good=1)
            for method in methods:
                if method.request.DESCRIPTOR.name in ("PredictRequest", "RenderRequest"):
                    corpus[method.path] += [requests.build(method.request).SerializeToString() for _ in range(SEEDS)]
    for method in methods:
        if method.request.DESCRIPTOR.full_name == "inference.ModelInferRequest":
            corpus[method.path] += inferences * 4
    return corpus


def _upload(method: Method) -> list[bytes]:
    """A whole file."""
    content = b"user,item\nu1,i1\n" * 9
    header, chunk = method.request(), method.request(chunk=content)
    header.header.filename, header.header.size_bytes = "a.csv", len(content)  # type: ignore[attr-defined]
    header.header.sha256 = hashlib.sha256(content).hexdigest()  # type: ignore[attr-defined]
    return [header.SerializeToString(), chunk.SerializeToString()]


def _packed(methods: list[Method]) -> list[type[Message]]:
    """What an Any may hold: the instances and configs of the tasks."""
    from google.protobuf.message_factory import GetMessageClass

    found: dict[str, type[Message]] = {}
    for method in methods:
        if method.path.startswith(("/luthier.tasks.", "/acme")):
            for name in ("Instance", "Config"):
                kind = method.request.DESCRIPTOR.file.message_types_by_name.get(name)
                if kind is not None:
                    found[kind.full_name] = GetMessageClass(kind)
    return list(found.values())


def _pictures() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    found = []
    for format in ("PNG", "JPEG", "WEBP", "BMP"):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format)
        found.append(stream.getvalue())
    return found


def _inferences(channel: grpc.Channel, random: Random, models: list[str]) -> list[bytes]:
    """Requests with the tensors that models take, of their graphs and of their tasks' messages."""
    stub = oip_grpc.GRPCInferenceServiceStub(channel)
    found = []
    for model in models:
        for name in (model, f"{model}.instances"):
            try:
                metadata = stub.ModelMetadata(oip.ModelMetadataRequest(name=name))
            except grpc.RpcError:
                continue
            request = oip.ModelInferRequest(model_name=name)
            for tensor in metadata.inputs:
                shape = [1 if n < 0 else n for n in tensor.shape]
                request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
                request.raw_input_contents.append(_raw(random, tensor.datatype, int(np.prod(shape))))
            found.append(request.SerializeToString())
    return found


_SIZES = {"BOOL": 1, "UINT8": 1, "INT8": 1, "FP16": 2, "INT16": 2, "UINT16": 2, "FP64": 8, "INT64": 8, "UINT64": 8}


def _raw(random: Random, datatype: str, count: int) -> bytes:
    if datatype == "BYTES":
        return b"\x02\0\0\0u1" * count
    # Ones and zeros, which are places in every table.
    size = _SIZES.get(datatype, 4)
    return b"".join(random.choice((0, 1)).to_bytes(size, "little") for _ in range(count))


if __name__ == "__main__":
    counted = main(
        sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]), json.loads(sys.argv[5]), sys.argv[6]
    )
    json.dump({name: value for name, value in vars(counted).items() if name != "lock"}, sys.stdout)
