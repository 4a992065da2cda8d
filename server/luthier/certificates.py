"""The certificate that a server shows: read, proved before it is shown, and looked at again while the server runs.

Files are replaced under a running server by tools that know nothing of it. What they write is taken up within two
seconds, for connections that are made from then on; what cannot be used leaves the last good certificate in place.
"""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import structlog

from luthier.errors import FailedPrecondition

if TYPE_CHECKING:
    from cryptography import x509

log = structlog.get_logger()

EVERY_S = 1.0
"""Seconds between two looks at the files."""

TAKEN, REFUSED = "taken", "refused"


class BadCertificate(FailedPrecondition):
    """Files that no server can show; the message names the file and what is wrong with it, and nothing in it."""


@dataclass(frozen=True)
class Files:
    """Where a certificate is, with those of the authorities behind it, its key, and those who may sign for clients."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def read(self) -> tuple[bytes, bytes, bytes]:
        """What they hold, now; raises BadCertificate where one cannot be read."""
        return _read(self.certificate), _read(self.key), _read(self.client_ca) if self.client_ca else b""


@dataclass(frozen=True)
class Shown:
    """A certificate that was proved: it can be read, the key is its own, and it has not expired. All of it is PEM."""

    certificate: bytes
    key: bytes
    client_ca: bytes
    serial: int
    expires: float
    """Seconds since 1970."""

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The same for gRPC."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.client_ca or None)

    def to_json(self) -> str:
        """All of it, the key too, for a process that takes part in serving."""
        return json.dumps({k: v.decode("latin-1") if isinstance(v, bytes) else v for k, v in vars(self).items()})

    @classmethod
    def from_json(cls, text: str) -> Shown:
        """The same again."""
        texts = json.loads(text)
        numbers = {name: texts.pop(name) for name in ("serial", "expires")}
        return cls(**{name: value.encode("latin-1") for name, value in texts.items()}, **numbers)


class Certificates:
    """The certificate of a server process, kept up with its files by a thread of its own.

    With a client CA every connection has to bring a certificate that one of its authorities has signed.
    """

    def __init__(self, files: Files, last_good: Shown | None = None) -> None:
        """Raises BadCertificate where the files cannot be used: a server does not start with what it cannot show.

        Unless it has `last_good`, what other processes of its port show.
        """
        self._files = files
        try:
            self._content = files.read()
            self._shown = proved(files, self._content)
        except BadCertificate:
            if last_good is None:
                raise
            self._content = last_good.certificate, last_good.key, last_good.client_ca
            self._shown = last_good
        self._given: Shown | None = None
        self._context = _context_of(self._shown)
        self._odd: object = None
        self._refused: object = None
        self._changes = Counter[str]({TAKEN: 0, REFUSED: 0})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="certificates", daemon=True)

    @property
    def shown(self) -> Shown:
        """What new connections are shown."""
        return self._shown

    @property
    def expires(self) -> float:
        """When that does, in seconds since 1970."""
        return self._shown.expires

    @property
    def changes(self) -> dict[str, int]:
        """How often other files were found since the start, by what came of them: `taken` or `refused`."""
        return dict(self._changes)

    def start(self) -> None:
        """Begins to look at the files."""
        self._thread.start()

    def stop(self) -> None:
        """Ends that."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def credentials(self) -> grpc.ServerCredentials:
        """For the one gRPC port of this process. Connections that are there keep what they were shown."""
        self._given = self._shown
        return grpc.dynamic_ssl_server_credentials(
            self._shown.configuration(), self._fetch, require_client_authentication=bool(self._files.client_ca)
        )

    def context(self) -> ssl.SSLContext:
        """For a server of Python's own; its connections are shown what is newest as well."""
        context = _context_of(self._shown)
        # A context forgets no authority that it was told of, so each certificate has a context of its own.
        context.sni_callback = self._switch
        return context

    def look(self) -> None:
        """Looks at the files once, and takes up what they hold where it is something else and can be used."""
        try:
            content = self._files.read()
        except BadCertificate as error:
            self._refuse(error.message, error)
            return
        if content != self._content:
            try:
                shown = proved(self._files, content)
            except BadCertificate as error:
                self._refuse(content, error)
                return
            self._content, self._shown, self._context = content, shown, _context_of(shown)
            self._changes[TAKEN] += 1
            log.info("certificate taken up", serial=f"{shown.serial:x}", expires=_moment(shown.expires))
        self._odd = self._refused = None

    def _refuse(self, content: object, error: BadCertificate) -> None:
        """Says so once for each change, at the second look that finds it: two files cannot be replaced at once."""
        if content != self._odd:
            self._odd = content
        elif content != self._refused:
            self._refused = content
            self._changes[REFUSED] += 1
            log.error("certificate refused", why=error.message, shown=f"{self._shown.serial:x}")

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What gRPC asks at each new connection: another certificate, or None where it has the newest."""
        shown = self._shown
        if shown is self._given:
            return None
        self._given = shown
        return shown.configuration()

    def _switch(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._context

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            self.look()


def proved(files: Files, content: tuple[bytes, bytes, bytes]) -> Shown:
    """What the files hold, once it is known that a server can show it; raises BadCertificate."""
    # Those who listen on loopback do not wait for it.
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    certificate, key, client_ca = content
    own = _parsed(files.certificate, certificate)
    try:
        private = load_pem_private_key(key, None)
    except TypeError:
        raise BadCertificate(f"{files.key} is encrypted; write the key without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadCertificate(f"{files.key} holds no private key in PEM that can be read") from None
    is_usual = isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in ("secp256r1", "secp384r1")
    if not is_usual and not isinstance(private, rsa.RSAPrivateKey):
        raise BadCertificate(f"{files.key} is of a kind that gRPC does not serve; RSA, P-256 and P-384 are")
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*form) != own.public_key().public_bytes(*form):
        raise BadCertificate(f"{files.key} is not the key of {files.certificate}")
    begins, expires = own.not_valid_before_utc.timestamp(), own.not_valid_after_utc.timestamp()
    if expires <= time.time():
        raise BadCertificate(f"{files.certificate} expired at {_moment(expires)}")
    if begins > time.time():
        raise BadCertificate(f"{files.certificate} is not valid before {_moment(begins)}")
    if files.client_ca:
        _parsed(files.client_ca, client_ca)
    shown = Shown(certificate, key, client_ca, own.serial_number, expires)
    try:
        _context_of(shown)
    except ssl.SSLError as error:
        raise BadCertificate(f"{files.certificate} cannot be used: {error.reason or 'it is not for TLS'}") from None
    return shown


def _parsed(path: Path, content: bytes) -> x509.Certificate:
    """The first certificate of a file."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        certificates = x509.load_pem_x509_certificates(content)
        for certificate in certificates:
            certificate.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise BadCertificate(f"{path} holds no certificate in PEM that can be read") from None
    return certificates[0]


def _context_of(shown: Shown) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # It takes paths alone, and the files may hold something else by now.
    with _in_memory(shown.certificate) as certificate, _in_memory(shown.key) as key:
        context.load_cert_chain(certificate, key)
    if shown.client_ca:
        context.load_verify_locations(cadata=shown.client_ca.decode("ascii", "replace"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """The path of a file that is on no disk."""
    descriptor = os.memfd_create("luthier")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadCertificate(f"{path} cannot be read: {error.strerror}") from error


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
