"""Certificates of a private authority, for tests: made in milliseconds, for loopback."""

from __future__ import annotations

import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)
HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM."""

    certificate: bytes
    key: bytes
    serial: int

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Writes NAME.pem and NAME.key, each moved into its place whole; returns their paths."""
        return put(folder / f"{name}.pem", self.certificate), put(folder / f"{name}.key", self.key)


class Authority:
    """A certificate authority of its own."""

    def __init__(self, name: str = "Luthier tests") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        builder = _builder(self._name, self._name, self._key.public_key(), days=30)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())
        self.certificate = _pem(self._certificate)
        """Its own certificate, which others trust, as PEM."""

    def server(self, *hosts: str, days: float = 7) -> Pair:
        """A pair for a server of these host names and addresses, by default loopback's; it expires in `days`."""
        names = [_host(host) for host in hosts or HOSTS]
        return self._issue("luthier", ExtendedKeyUsageOID.SERVER_AUTH, days, x509.SubjectAlternativeName(names))

    def client(self, name: str = "caller", days: float = 7) -> Pair:
        """A pair for a client of mutual TLS."""
        return self._issue(name, ExtendedKeyUsageOID.CLIENT_AUTH, days)

    def write(self, path: Path) -> Path:
        """Writes the authority's certificate; returns the path."""
        return put(path, self.certificate)

    def _issue(
        self, name: str, usage: x509.ObjectIdentifier, days: float, *extensions: x509.SubjectAlternativeName
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_named(name), self._name, key.public_key(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Pair(_pem(certificate), secret, certificate.serial_number)


def put(path: Path, content: bytes) -> Path:
    """Replaces a file by another, whole, as a good tool of rotation does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.fresh")
    fresh.write_bytes(content)
    os.replace(fresh, path)
    return path


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + min(-DAY, (days - 1) * DAY))
        .not_valid_after(now + days * DAY)
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
