"""Who may connect, and certificates that are replaced while they are in use."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from certificates import Authority, Pair, put
from luthier.certificates import Certificates, Files
from luthier.v1 import task_pb2, task_pb2_grpc
from scrapes import lines, parsed, text_at, value, wait_for_lines
from support import ROOT, Server, children, serving

SERVED_S = 10.0
"""Seconds in which a certificate that was replaced has to be shown."""
RATE = 20
CHANGES = "luthier_certificate_changes_total"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def stranger() -> Authority:
    return Authority("Strangers")


@pytest.fixture(scope="module")
def closed(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of mutual TLS, all of whose ports any machine can reach."""
    folder = tmp_path_factory.mktemp("closed")
    authority.write(folder / "ca.pem")
    authority.client().write(folder, "client")
    authority.server().write(folder, "server")
    flags = (*flags_of(folder), "--tls-client-ca", str(folder / "ca.pem"), "--tokens")
    open_to_all = ("--metrics-listen", "0.0.0.0:0", "--health-listen", "127.0.0.1:0")
    with serving(folder, *flags, *open_to_all, credentials=credentials(authority, authority.client())) as running:
        yield running


def flags_of(folder: Path) -> tuple[str, ...]:
    return ("--tls-certificate", str(folder / "server.pem"), "--tls-key", str(folder / "server.key"))


def credentials(authority: Authority, pair: Pair | None = None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(authority.certificate, pair and pair.key, pair and pair.certificate)


@contextmanager
def connected(address: str, by: grpc.ChannelCredentials | None) -> Iterator[grpc.Channel]:
    """A channel with a connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    with grpc.secure_channel(address, by, options) if by else grpc.insecure_channel(address, options) as channel:
        yield channel


def check(channel: grpc.Channel) -> None:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def refusal(address: str, by: grpc.ChannelCredentials | None) -> str:
    """Why a connection does not come about."""
    with connected(address, by) as channel, pytest.raises(grpc.RpcError) as caught:
        check(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    said: str = caught.value.details()
    return said


def serial_at(address: str) -> int:
    """The serial number of the certificate that a new connection is shown."""
    host, _, port = address.rpartition(":")
    shown = ssl.get_server_certificate((host, int(port)), timeout=10)
    return x509.load_pem_x509_certificate(shown.encode()).serial_number


def until_shown(address: str, pair: Pair) -> None:
    """Returns once every new connection is shown a certificate, whichever process it is given to."""
    deadline, seen = time.monotonic() + SERVED_S, 0
    while seen < 12:
        seen = seen + 1 if serial_at(address) == pair.serial else 0
        assert time.monotonic() < deadline, "the new certificate is not shown"


class Callers:
    """Calls at a fixed rate: over a connection that stays, and over a new one for each."""

    def __init__(self, address: str, authority: Authority) -> None:
        self._address, self._by = address, credentials(authority)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.calls = 0
        self.failed: list[str] = []

    def __enter__(self) -> Callers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with connected(self._address, self._by) as lasting:
            while not self._stop.wait(1 / RATE):
                try:
                    check(lasting)
                    with connected(self._address, self._by) as fresh:
                        check(fresh)
                except grpc.RpcError as error:
                    self.failed.append(f"{error.code()}: {error.details()}")
                self.calls += 1


@pytest.mark.parametrize("processes", [1, 2])
def test_certificates_are_rotated_under_calls(processes: int, authority: Authority, tmp_path: Path) -> None:
    pair = authority.server()
    pair.write(tmp_path, "server")
    flags = (*flags_of(tmp_path), "--processes", str(processes), "--metrics-listen", "127.0.0.1:0")
    with (
        serving(tmp_path, *flags, credentials=credentials(authority)) as server,
        Callers(server.address, authority) as callers,
    ):
        assert serial_at(server.address) == pair.serial
        for turn in range(1, 3):
            pair = authority.server(days=turn)
            pair.write(tmp_path, "server")
            until_shown(server.address, pair)
        # A key that does not fit, a half of one, nothing, no file, a certificate that has expired.
        for count, spoil in enumerate(spoilers(tmp_path, authority, pair), 1):
            spoil()
            wait_for_lines(server, "certificate refused", count * processes, shown=f"{pair.serial:x}")
            assert serial_at(server.address) == pair.serial
        last = authority.server(days=3)
        last.write(tmp_path, "server")
        until_shown(server.address, last)
        scrapes = [parsed(text_at(line["address"])) for line in wait_for_lines(server, "metrics", processes)]
    assert callers.calls >= RATE
    assert callers.failed == []
    for found in scrapes:
        assert (value(found, CHANGES, verdict="taken"), value(found, CHANGES, verdict="refused")) == (3, 5)
        assert value(found, "luthier_certificate_expiry_seconds") == pytest.approx(time.time() + 3 * 86400, abs=120)
    reasons = [line["why"] for line in lines(server, "certificate refused")]
    assert len(reasons) == 5 * processes
    for said in ("is not the key of", "no private key", "cannot be read", "expired at"):
        assert any(said in why for why in reasons), said
    assert not any("BEGIN" in line or secret_of(pair) in line for line in server.log)


def spoilers(folder: Path, authority: Authority, pair: Pair) -> list[Callable[[], object]]:
    """What a tool of rotation may do wrong."""
    key, expired = folder / "server.key", authority.server(days=-1)
    return [
        lambda: put(key, authority.server().key),
        lambda: put(key, pair.key[:100]),
        lambda: put(key, b""),
        key.unlink,
        lambda: expired.write(folder, "server"),
    ]


def secret_of(pair: Pair) -> str:
    """A line of a key."""
    return pair.key.decode().splitlines()[1]


def test_files_that_are_replaced_one_after_the_other_are_no_error(tmp_path: Path, authority: Authority) -> None:
    certificates = Certificates(written(authority.server(), tmp_path))
    pair = authority.server()
    put(tmp_path / "server.pem", pair.certificate)
    certificates.look()
    put(tmp_path / "server.key", pair.key)
    certificates.look()
    assert certificates.shown.serial == pair.serial
    assert certificates.changes == {"taken": 1, "refused": 0}


def test_a_certificate_that_begins_later_is_taken_up_then(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates(written(authority.server(), tmp_path))
    pair = authority.server(days=9)
    now = time.time()
    pair.write(tmp_path, "server")
    monkeypatch.setattr(time, "time", lambda: now - 2 * 86400)
    for _ in range(3):
        certificates.look()
    assert certificates.changes == {"taken": 0, "refused": 1}
    monkeypatch.undo()
    certificates.look()
    assert certificates.shown.serial == pair.serial


def written(pair: Pair, folder: Path, client_ca: Path | None = None) -> Files:
    return Files(*pair.write(folder, "server"), client_ca)


def test_a_replica_is_given_the_last_good_certificate(tmp_path: Path, authority: Authority) -> None:
    """One that died is replaced while nothing can be read from the files."""
    pair = authority.server()
    pair.write(tmp_path, "server")
    flags = (*flags_of(tmp_path), "--processes", "2")
    with serving(tmp_path, *flags, credentials=credentials(authority)) as server:
        put(tmp_path / "server.key", b"")
        [replica] = [pid for pid in children(server.process.pid) if "luthier.replica" in command_of(pid)]
        os.kill(replica, signal.SIGKILL)
        wait_for_lines(server, "certificate refused", 2, shown=f"{pair.serial:x}")
        assert {serial_at(server.address) for _ in range(12)} == {pair.serial}
    assert len(lines(server, "server process ended")) == 1


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")


@pytest.mark.parametrize("spoiled", ["server.pem", "server.key", "ca.pem"])
def test_a_server_does_not_start_with_what_it_cannot_show(spoiled: str, authority: Authority, tmp_path: Path) -> None:
    authority.server().write(tmp_path, "server")
    authority.write(tmp_path / "ca.pem")
    put(tmp_path / spoiled, (tmp_path / spoiled).read_bytes()[:60])
    ended = started(tmp_path, *flags_of(tmp_path), "--tls-client-ca", str(tmp_path / "ca.pem"))
    assert ended.returncode == 1
    what = "private key" if spoiled.endswith(".key") else "certificate"
    assert ended.stderr == f"luthier serve: {tmp_path / spoiled} holds no {what} in PEM that can be read\n"
    assert not (tmp_path / "luthier.db").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--listen", "0.0.0.0:50051"),
            "encrypts nothing (--tls-certificate, --tls-key) and asks nobody who they are (--tokens)",
        ),
        (
            ("--listen", "[::]:50051", "--tokens"),
            "this server encrypts nothing (--tls-certificate, --tls-key). Go on with",
        ),
        (
            ("--listen", ":50051"),
            "luthier serve --listen :50051 --tls-certificate server.pem --tls-key server.key --tokens",
        ),
        (
            ("--listen", "192.168.0.1:50051", *flags_of(Path("/x"))),
            "this server asks nobody who they are (--tokens). Go on with",
        ),
        (("--metrics-listen", "0.0.0.0:9464", *flags_of(Path("/x")), "--tokens"), "Go on with --tls-client-ca"),
        (("--tls-key", "server.key"), "go together"),
        (("--tls-client-ca", "ca.pem"), "which takes --tls-certificate and --tls-key"),
    ],
)
def test_what_others_can_reach_is_refused_unless_it_is_safe(flags: tuple[str, ...], said: str, tmp_path: Path) -> None:
    ended = started(tmp_path, *flags)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Value error" not in ended.stderr


def started(home: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "luthier", "--home", str(home), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_caller_needs_a_certificate(closed: Server, authority: Authority, stranger: Authority) -> None:
    with connected(closed.address, credentials(authority, authority.client())) as channel:
        check(channel)
    assert "connect" in refusal(closed.address, credentials(authority))
    assert "connect" in refusal(closed.address, credentials(authority, stranger.client()))
    assert "connect" in refusal(closed.address, credentials(authority, authority.client(days=-1)))
    assert "connect" in refusal(closed.address, None)
    # And the server has to be of the caller's authority.
    assert "CERTIFICATE_VERIFY_FAILED" in refusal(closed.address, credentials(stranger, authority.client()))


def test_metrics_that_others_can_reach_need_one_too(closed: Server, authority: Authority, tmp_path: Path) -> None:
    [line] = wait_for_lines(closed, "metrics", 1)
    url = f"https://127.0.0.1:{line['address'].rpartition(':')[2]}/metrics"
    context = ssl.create_default_context(cadata=authority.certificate.decode())
    with pytest.raises(OSError, match=r"certificate required|reset|EOF|closed"):
        fetched(url, context)
    context.load_cert_chain(*authority.client().write(tmp_path, "scraper"))
    assert "luthier_certificate_expiry_seconds" in fetched(url, context)
    with pytest.raises(OSError, match=r"reset|closed|Remote end"):
        fetched(url.replace("https", "http"), None)
    # Nobody who only connects holds up the others.
    with socket.create_connection(("127.0.0.1", int(line["address"].rpartition(":")[2]))):
        assert fetched(url, context)


def fetched(url: str, context: ssl.SSLContext | None) -> str:
    with urllib.request.urlopen(url, timeout=10, context=context) as answer:
        content: bytes = answer.read()
        return content.decode()


def test_an_authority_that_is_replaced_signs_for_nobody_any_more(
    authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    authority.write(tmp_path / "ca.pem")
    files = written(authority.server(), tmp_path, tmp_path / "ca.pem")
    certificates = Certificates(files)
    context = certificates.context()
    first, second = authority.client(), stranger.client()
    assert [shaken(context, authority, pair, tmp_path) for pair in (first, second)] == [True, False]
    stranger.write(tmp_path / "ca.pem")
    certificates.look()
    assert [shaken(context, authority, pair, tmp_path) for pair in (first, second)] == [False, True]


def shaken(context: ssl.SSLContext, authority: Authority, pair: Pair, folder: Path) -> bool:
    """Whether a client with a certificate comes to terms with a server's context, in memory."""
    mine = ssl.create_default_context(cadata=authority.certificate.decode())
    mine.load_cert_chain(*pair.write(folder, "client"))
    return agreed(mine, context)


def agreed(mine: ssl.SSLContext, context: ssl.SSLContext) -> bool:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = mine.wrap_bio(to_client, to_server, server_hostname="localhost")
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return False
    return True


def test_health_is_told_without_a_certificate_on_a_port_of_its_own(closed: Server) -> None:
    [line] = wait_for_lines(closed, "health", 1)
    with connected(line["address"], None) as channel:
        check(channel)
        with pytest.raises(grpc.RpcError) as caught:
            task_pb2_grpc.TaskServiceStub(channel).ListTasks(task_pb2.ListTasksRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=10)
        with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
            next(watch)


def test_failed_handshakes_leave_the_log_readable(closed: Server, stranger: Authority) -> None:
    for _ in range(3):
        refusal(closed.address, credentials(stranger))
    assert [line for line in closed.log if not line.startswith("{")] == []


def test_the_commands_of_the_documents_make_certificates_that_do(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is needed")
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    [commands] = re.findall(r"^```sh\n(openssl .*?)^```$", text, re.MULTILINE | re.DOTALL)
    subprocess.run(["sh", "-e", "-c", commands], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    ca = tmp_path / "ca.pem"
    certificates = Certificates(Files(tmp_path / "server.pem", tmp_path / "server.key", ca))
    mine = ssl.create_default_context(cafile=str(ca))
    mine.load_cert_chain(tmp_path / "shop.pem", tmp_path / "shop.key")
    assert agreed(mine, certificates.context())
