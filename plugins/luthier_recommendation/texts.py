"""Many strings in a few arrays, so that a million of them are mapped into memory and not made into Python objects."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar
from zlib import crc32

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Texts(Sequence[str]):
    """Strings by their index.

    text   uint8           their UTF-8, one after the other
    ends   int64 [count]   where each ends
    """

    parts: ClassVar[tuple[str, ...]] = ("text", "ends")
    """Names of the arrays."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        # Views of bytes and numbers are quicker to take one thing from than arrays are.
        self._text, self._ends = arrays["text"].data, arrays["ends"].data

    @staticmethod
    def arrays_of(texts: Iterable[str]) -> dict[str, Array]:
        """The arrays that hold these strings."""
        encoded = [text.encode() for text in texts]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return {"text": np.frombuffer(b"".join(encoded), np.uint8), "ends": np.cumsum(lengths)}

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        begin = self._ends[index - 1] if index else 0
        return str(self._text[begin : self._ends[index]], "utf-8")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


class Ids(Texts):
    """Distinct strings, found by binary search among their hashes.

    hashes   uint32 [count]   CRC-32 of each, ascending
    order    int32 [count]    whose they are
    """

    parts = (*Texts.parts, "hashes", "order")

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        super().__init__(arrays)
        self._hashes, self._order = arrays["hashes"].data, arrays["order"].data

    @staticmethod
    def arrays_of(texts: Iterable[str]) -> dict[str, Array]:
        """The arrays that hold these strings."""
        texts = list(texts)
        hashes = np.fromiter((crc32(text.encode()) for text in texts), np.uint32, len(texts))
        order = np.argsort(hashes, kind="stable").astype(np.int32)
        return {**Texts.arrays_of(texts), "hashes": hashes[order], "order": order}

    def find(self, id: str) -> int | None:
        """The index of an id."""
        hash = crc32(id.encode())
        place = bisect_left(self._hashes, hash)
        while place < len(self._hashes) and self._hashes[place] == hash:
            index: int = self._order[place]
            if self[index] == id:
                return index
            place += 1
        return None

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and self.find(id) is not None
