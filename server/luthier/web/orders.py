"""What the server tells the process of its HTTP front."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

PEER = "luthier-front-peer"
CERTIFICATE = "luthier-front-certificate-bin"
"""Keys of the metadata in which the front says whom it speaks for: the address, and the certificate that was proved, if
any, in DER. The server believes what comes through the socket that only the front can open."""


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What to listen on and whom to ask. Nothing of it is secret: it is a word of the command line."""

    socket: int
    """Descriptor of the socket that listens, which is inherited."""
    directory: str
    """A folder that nobody else may look into."""
    max_request_bytes: int
    drain_s: float
    origins: tuple[str, ...] = ()
    certificate: str = ""
    key: str = ""
    client_ca: str = ""

    @property
    def upstream(self) -> str:
        """Path of the Unix socket that the gRPC server listens on."""
        return f"{self.directory}/grpc"

    @property
    def descriptors(self) -> str:
        """Path of the FileDescriptorSet of the server's services."""
        return f"{self.directory}/services.binpb"

    def written(self) -> str:
        """As one word."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Orders:
        """What `written` gave."""
        given = json.loads(text)
        return cls(**given | {"origins": tuple(given["origins"])})
