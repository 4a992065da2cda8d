"""Where a call comes from, and the certificate that its caller proved to have: over gRPC, or over HTTP."""

from __future__ import annotations

import functools
import ssl
from typing import Any

import grpc

from luthier.web.orders import CERTIFICATE, PEER


def origin(context: grpc.ServicerContext, wants_certificate: bool = True) -> tuple[str, dict[str, Any]]:
    """The address as gRPC writes it, and what gRPC says of the certificate; of the HTTP front its own caller's.

    Without `wants_certificate` nothing is said of that, which takes time to find out.
    """
    peer: str = context.peer()
    if not peer.startswith("unix:"):
        return peer, dict(context.auth_context() or {}) if wants_certificate else {}
    # Nobody but the front can open that socket; what others write into the same metadata is not read.
    said = dict(context.invocation_metadata())
    certificate = said.get(CERTIFICATE) if wants_certificate else None
    return str(said.get(PEER, peer)), dict(_described(certificate)) if isinstance(certificate, bytes) else {}


@functools.lru_cache(maxsize=1024)
def _described(certificate: bytes) -> dict[str, tuple[bytes, ...]]:
    """A certificate in DER, by the names that gRPC has for what is in it."""
    # Only those who ask callers for certificates wait for it.
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    found = x509.load_der_x509_certificate(certificate)
    names = [str(name.value).encode() for name in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    try:
        others = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        others = x509.SubjectAlternativeName([])
    return {
        "transport_security_type": (b"ssl",),
        "x509_common_name": tuple(names),
        "x509_subject_alternative_name": tuple(str(other.value).encode() for other in others),
        "x509_pem_cert": (ssl.DER_cert_to_PEM_cert(certificate).encode(),),
    }
