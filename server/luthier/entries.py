"""What is known of a base: an entry of a catalogue file, or the record of an import."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, dataclass, fields
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any

from luthier import sources
from luthier.redaction import redact
from luthier.v1 import base_pb2

LIBRARIES = ("timm", "torchvision", "transformers")
BASE_FILE = "base.json"
"""In the folder of each base: what a training has to know of it, without the catalogue."""

_ID = re.compile("[a-z0-9][a-z0-9._-]{0,62}")
_SHA256 = re.compile("[0-9a-f]{64}")
_SHA256_PREFIX = re.compile("[0-9a-f]{8,64}")
_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class File:
    """A file of a base."""

    path: str
    """Path within the base, with `/`."""
    sha256: tuple[str, ...] = ()
    """The hashes accepted; none: the one that the first pull records."""
    size_bytes: int = 0
    """0 where it is not known."""
    sha256_prefix: str = ""
    """What the hash begins with, where no more of it was published: torchvision's file names carry eight digits."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a vision model wants its images."""

    input_size: tuple[int, int]
    """(height, width) in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of each channel, of values between 0 and 1."""
    num_classes: int
    """Of its classifier; 0: it comes without one."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a base reached where it was trained."""

    metric: str
    value: float
    """Between 0 and 1."""
    source: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A base of the catalogue, or an imported one."""

    id: str
    title: str
    tasks: tuple[str, ...]
    library: str
    architecture: str
    num_parameters: int
    input: str
    license: str
    files: tuple[File, ...]
    sources: tuple[str, ...]
    """Where to fetch it from, in the order tried; none of an imported one."""
    preprocessing: Preprocessing | None = None
    """Of vision only."""
    published: Published | None = None
    gmacs: float = 0.0
    """Billions of multiply-accumulates for one image of the input's size, or for 128 tokens; 0: not known."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes of the texts that it was trained on; `*`: about a hundred."""
    digest: str = ""
    """Of an imported one: the SHA-256 of its list of files."""
    report: base_pb2.ImportReport | None = None

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError("an id is made of small letters, digits, `.`, `-` and `_`, at most 63")
        if self.library not in LIBRARIES:
            raise ValueError(f"library: {self.library!r} is none of {', '.join(LIBRARIES)}")
        if not self.files or not (self.sources or self.imported):
            raise ValueError("a base needs files and sources")
        for file in self.files:
            if PurePosixPath(file.path).is_absolute() or ".." in PurePosixPath(file.path).parts:
                raise ValueError(f"{file.path!r} leads out of the base")
            if not all(_SHA256.fullmatch(sha256) for sha256 in file.sha256):
                raise ValueError(f"{file.path}: a SHA-256 has 64 small hexadecimal digits")
            if file.sha256_prefix and not _SHA256_PREFIX.fullmatch(file.sha256_prefix):
                raise ValueError(f"{file.path}: the beginning of a SHA-256 has 8 to 64 small hexadecimal digits")
        if len([file for file in self.files if file.path.endswith(_WEIGHTS)]) != 1:
            raise ValueError(f"one of the files must be its weights, which end in {', '.join(_WEIGHTS)}")
        if (self.preprocessing is None) != (self.library == "transformers"):
            raise ValueError("a base for images has a table `preprocessing`, one for text has none")

    @property
    def imported(self) -> bool:
        """Whether it is a team's own checkpoint."""
        return bool(self.digest)

    @property
    def folder(self) -> str:
        """The name of its folder. That of an import goes by its content, and so never changes."""
        return f"{self.id}@{self.digest[:16]}" if self.imported else self.id

    @property
    def weights(self) -> str:
        """The path of its weights."""
        return next(file.path for file in self.files if file.path.endswith(_WEIGHTS))

    @property
    def weights_bytes(self) -> int:
        """Bytes of its weights in 32 bits."""
        return 4 * self.num_parameters

    def description(self) -> dict[str, Any]:
        """The content of its BASE_FILE."""
        content: dict[str, Any] = {"id": self.id, "library": self.library, "architecture": self.architecture}
        content["weights"] = self.weights
        if self.preprocessing:
            content |= {key: getattr(self.preprocessing, key) for key in ("input_size", "mean", "std", "num_classes")}
        # Through JSON, so that it compares equal with what is read from there.
        described: dict[str, Any] = json.loads(json.dumps(content))
        return described


def parse(id: str, table: dict[str, Any], *, own: bool) -> Entry:
    """An entry of a catalogue file; raises ValueError or TypeError where it is none."""
    known = {field.name: field for field in fields(Entry) if field.name not in ("id", "digest", "report")}
    missing = [name for name, field in known.items() if field.default is MISSING and name not in table]
    unknown = [name for name in table if name not in known]
    if missing or unknown:
        faults = [f"lacks {', '.join(missing)}"] if missing else []
        faults += [f"has no use for {', '.join(unknown)}"] if unknown else []
        raise ValueError(f"it {' and '.join(faults)}; a base has the keys {', '.join(sorted(known))}")
    for source in table["sources"]:
        sources.check(source, own=own)
    values = _with_tuples(table)
    values["files"] = tuple(
        File(path, **{**facts, "sha256": tuple(facts.get("sha256", ()))}) for path, facts in table["files"].items()
    )
    if preprocessing := table.get("preprocessing"):
        values["preprocessing"] = Preprocessing(**_with_tuples(preprocessing))
    if published := table.get("published"):
        values["published"] = Published(**published)
    return Entry(id=id, **values)


def _with_tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in table.items()}


def digest_of(files: tuple[File, ...]) -> str:
    """SHA-256 of a list of files and their hashes."""
    listing = json.dumps(sorted((file.path, *file.sha256) for file in files))
    return sha256(listing.encode()).hexdigest()


def from_proto(record: base_pb2.Base, digest: str) -> Entry:
    """The entry of an import, from its record."""
    wanted = record.preprocessing
    return Entry(
        id=record.name.partition("/")[2],
        title=record.title,
        tasks=tuple(record.tasks),
        library=record.library,
        architecture=record.architecture,
        num_parameters=record.num_parameters,
        input=record.input,
        license=record.license,
        files=tuple(File(file.path, (file.sha256,), file.size_bytes) for file in record.files),
        sources=(),
        preprocessing=Preprocessing(
            input_size=(wanted.height, wanted.width),
            mean=tuple(wanted.mean),
            std=tuple(wanted.std),
            num_classes=wanted.num_classes,
        )
        if record.HasField("preprocessing")
        else None,
        gmacs=record.gmacs,
        languages=tuple(record.languages),
        digest=digest,
        report=record.import_report,
    )


def to_proto(entry: Entry) -> base_pb2.Base:
    """An entry as the API shows it, but for what only the folder of bases knows."""
    base = base_pb2.Base(
        name=f"bases/{entry.id}",
        title=entry.title,
        tasks=entry.tasks,
        library=entry.library,
        architecture=entry.architecture,
        num_parameters=entry.num_parameters,
        weights_bytes=entry.weights_bytes,
        gmacs=entry.gmacs,
        input=entry.input,
        languages=entry.languages,
        license=entry.license,
        sources=map(redact, entry.sources),
        imported=entry.imported,
        import_report=entry.report,
    )
    if wanted := entry.preprocessing:
        height, width = wanted.input_size
        base.preprocessing.MergeFrom(
            base_pb2.Preprocessing(
                height=height, width=width, mean=wanted.mean, std=wanted.std, num_classes=wanted.num_classes
            )
        )
    if published := entry.published:
        base.published.MergeFrom(
            base_pb2.PublishedMetric(metric=published.metric, value=published.value, source=published.source)
        )
    for file in entry.files:
        base.files.add(path=file.path, sha256=file.sha256[0] if file.sha256 else "", size_bytes=file.size_bytes)
    return base
