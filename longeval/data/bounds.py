"""Bounds on what a data file may grow to while it is read: a few bytes can unpack to all memory there is.

They refuse no corpus: the longest of books has 10 MB, and text packs 3 to 20 times smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from longeval.errors import LongEvalError

MOST_TEXT = 2**28
"""Bytes of one document of plain text."""
MOST_RECORD = 2**26
"""Bytes of one record: a line of JSON, a row of a table. Parsed, it can take twenty times as much."""
MOST_GROWTH = 200
"""How many times larger than on disk the content of a file may be, and each record of it."""
FREE_TEXT = 2**28
FREE_RECORD = 2**23
"""Bytes that content and a record may have however small the file is."""
_PIECE = 2**20


class Readable(Protocol):
    """What is read here of a binary stream."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


class Growth:
    """Watches how much comes out of a file.

    Args:
        path: What messages call it.
        size: Its bytes on disk; null: not known, and anything may come out.
    """

    def __init__(self, path: str, size: int | None) -> None:
        self._path = path
        self._size = size
        self._grown = 0

    def add(self, size: int) -> None:
        """Counts bytes that came out, or are about to; LongEvalError where it is more than any text unpacks to."""
        self._grown += size
        if self._size is not None and self._grown > max(FREE_TEXT, MOST_GROWTH * self._size):
            raise LongEvalError(
                f"{self._path}: unpacks to more than {MOST_GROWTH} times its size",
                "No text does: the file is damaged or made to fill the memory.",
            )

    def check(self, size: int, where: str, most: int | None = None) -> None:
        """LongEvalError where a record is longer than `most` (null: MOST_RECORD), or than such a file can hold."""
        most = MOST_RECORD if most is None else most
        if self._size is not None:
            most = min(most, max(FREE_RECORD, MOST_GROWTH * self._size))
        if size > most:
            shown = f"{self._path}{where and ', '}{where}"
            raise LongEvalError(f"{shown}: longer than {most // 2**20} MiB", "Split it into several documents.")


def read_lines(stream: Readable, growth: Growth) -> Iterator[bytes]:
    """Yields lines with their line end, piece by piece; only a newline ends one."""
    pieces: list[bytes] = []
    pending = number = 0
    while piece := stream.read(_PIECE):
        *whole, rest = piece.split(b"\n")
        growth.add(len(piece) + 32 * len(whole))  # so that blank lines count, which take time too
        for line in whole:
            number += 1
            growth.check(pending + len(line), f"line {number}")
            yield b"".join((*pieces, line, b"\n"))
            pieces, pending = [], 0
        if rest:
            pieces.append(rest)
            pending += len(rest)
        growth.check(pending, f"line {number + 1}")
    if pieces:
        yield b"".join(pieces)
