"""Documents, the field of a record that holds the text, and limits on sizes.

The limits guard against files that decompress to more than the memory. No real corpus exceeds them: the longest books
have 10 MB, and text compresses by a factor of 3 to 20.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from longeval.data.files import FORMATS_REMEDY
from longeval.errors import LongEvalError


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """One text, exactly as in its source."""

    name: str
    """The place of the text: a file's path in its folder, or `file.jsonl#12` for the twelfth line or row of a file."""
    text: str
    """The text; always encodable as UTF-8. Empty where the record has none."""
    missing: bool = False
    """Whether it is of a record without text: its field is null or not there."""

    @classmethod
    def of_record(cls, name: str, text: str | None) -> Text:
        """The text of a record, which may have none."""
        return cls(name=name, text=text or "", missing=text is None)


def some_with_text(documents: Iterable[Text], what: str) -> Iterator[Text]:
    """Yields the documents of `what`; LongEvalError at their end if all of them are records without text."""
    number = with_text = 0
    for document in documents:
        number += 1
        with_text += not document.missing
        yield document
    if number and not with_text:
        raise LongEvalError(
            f"{what}: the field with the text is null or missing in all {number:,} records",
            "Name the field that holds the text with --text-field NAME.",
        )


_PIECE = 2**20


class Growth:
    """Limits how much is read from a file.

    Args:
        path: The file's name in messages.
        size: Its bytes on disk; None: unknown, and the ratio is not limited.
    """

    MOST_TEXT = 2**28
    """Most bytes of one document of plain text."""
    MOST_RECORD = 2**26
    """Most bytes of one record (a line of JSON, a row of a table). Parsed, it can need twenty times as much."""
    MOST_TIMES = 200
    """Largest ratio of the size of a file's content, or of one record, to the file's size on disk."""
    FREE_TEXT = 2**28
    """Bytes of content that are always allowed, regardless of the ratio."""
    FREE_RECORD = 2**23
    """Bytes of a record that are always allowed, regardless of the ratio."""

    def __init__(self, path: str, size: int | None) -> None:
        self._path = path
        self._size = size
        self._grown = 0

    def add(self, size: int) -> None:
        """Adds to the bytes of content; raises LongEvalError if they are more than any text decompresses to."""
        self._grown += size
        if self._size is not None and self._grown > max(self.FREE_TEXT, self.MOST_TIMES * self._size):
            raise LongEvalError(
                f"{self._path}: unpacks to more than {self.MOST_TIMES} times its size",
                "No text does: the file is damaged or made to fill the memory.",
            )

    def check(self, size: int, where: str, *, whole: bool = False) -> None:
        """Raises LongEvalError if a record, or with `whole` a document of plain text, is too long."""
        most = self.MOST_TEXT if whole else self.MOST_RECORD
        if self._size is not None:
            most = min(most, max(self.FREE_RECORD, self.MOST_TIMES * self._size))
        if size > most:
            shown = f"{self._path}{where and ', '}{where}"
            raise LongEvalError(f"{shown}: longer than {most // 2**20} MiB", "Split it into several documents.")


def read_lines(stream: BinaryIO, growth: Growth) -> Iterator[bytes]:
    """Yields lines with their line end. Only a newline ends a line."""
    pieces: list[bytes] = []
    pending = number = 0
    while piece := stream.read(_PIECE):
        *whole, rest = piece.split(b"\n")
        growth.add(len(piece) + 32 * len(whole))  # counts blank lines too, which also take time
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


DEFAULT_FIELDS = ("text", "input", "content")
"""Fields tried when none is named; which one is used is decided by the first record that has any, for all of a file."""


class TextField:
    """Reads the text from the records of a file.

    Args:
        path: What messages call the file.
        text_field: Its name; null: the first of DEFAULT_FIELDS that a record has, from then on.
    """

    MOST_WITHOUT = 100
    """Records without the field, from the first on, that show that it is the wrong one."""

    def __init__(self, path: str, text_field: str | None) -> None:
        self._path = path
        self._name = text_field
        self._asked = "" if text_field is None else f"--text-field {text_field}: "
        self._seen = False
        self._without: list[LongEvalError] = []

    def is_in(self, names: Sequence[str]) -> bool:
        """Whether one of the fields that hold the text is among `names`."""
        return any(field in names for field in (DEFAULT_FIELDS if self._name is None else (self._name,)))

    def choose(self, names: Sequence[str], where: str) -> str:
        """Returns the field to read, which the first call decides; raises LongEvalError if `names` don't have it."""
        if self._name is None:
            self._name = next((field for field in DEFAULT_FIELDS if field in names), None)
        if self._name is None or self._name not in names:
            wanted = repr(self._name) if self._name is not None else " or ".join(map(repr, DEFAULT_FIELDS))
            fields = ", ".join(name if len(name) <= 40 else f"{name[:40]}…" for name in names[:20]) or "none"
            raise LongEvalError(
                f"{self._asked}{self._path}, {where}: no field {wanted}; its fields: {fields}",
                "Name the one that holds the text with --text-field NAME (a corpus has none: give its file by path).",
            )
        return self._name

    def text_of(self, record: object, where: str) -> str | None:
        """Returns the text of one record; None if its field is null or not there.

        LongEvalError names `where` if it is no object, or if something else than a string is in the field.
        """
        if not isinstance(record, dict):
            raise LongEvalError(
                f"{self._path}, {where}: {json_kind(record)}, not an object",
                'Every record must be an object with the text in a field: {"text": "…"}.',
            )
        if not self._seen:
            try:
                self.choose(list(record), where)
            except LongEvalError as error:
                self._without.append(error)
                if len(self._without) == self.MOST_WITHOUT:
                    self.end()
                return None
            self._seen = True
        assert self._name is not None
        return self.checked(record.get(self._name), where)

    def end(self) -> None:
        """To be called after the last record; LongEvalError if none of them has the field."""
        if self._without and not self._seen:
            raise self._without[0]

    def checked(self, value: object, where: str) -> str | None:
        """Returns `value`, a string or null; LongEvalError if it is neither, or can't be written as UTF-8."""
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.no_string(where, json_kind(value))
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise LongEvalError(
                f"{self._path}, {where}: field {self._name!r} has half a surrogate pair at character {error.start}",
                "It is no Unicode text there; repair or remove the record.",
            ) from error
        return value

    def no_string(self, where: str, kind: str) -> LongEvalError:
        """The error for a field that doesn't hold a string."""
        return LongEvalError(
            f"{self._path}, {where}: field {self._name!r} is {kind}, not a string",
            "Choose the field that holds the whole text with --text-field NAME.",
        )


def parse_json(content: bytes, path: str, *, first_line: int) -> Any:
    """Parses JSON that begins in line `first_line` of the file; raises LongEvalError with the line if it is invalid."""
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise LongEvalError(f"{path}, line {first_line}: not UTF-8 (byte {error.start})", FORMATS_REMEDY) from error
    except (ValueError, RecursionError) as error:
        raise wrong_json(error, path, first_line, record_line=first_line) from error


def wrong_json(error: Exception, path: str, first_line: int, *, record_line: int) -> LongEvalError:
    """The error for invalid JSON in a text that begins in `first_line`, for the record in `record_line`."""
    if isinstance(error, json.JSONDecodeError):
        line = first_line + error.lineno - 1
        problem = f"{path}, line {line}, column {error.colno}: malformed JSON ({error.msg})"
        return LongEvalError(problem, "Repair or remove the record.")
    if isinstance(error, RecursionError):
        return LongEvalError(f"{path}, line {record_line}: JSON nested too deeply", "Repair the record.")
    # Python refuses numbers with thousands of digits; its message goes on with a setting that allows them.
    reason = str(error).partition(";")[0]
    return LongEvalError(f"{path}, line {record_line}: JSON can't be read ({reason})", "Repair the record.")


def json_kind(value: object) -> str:
    """The JSON type of a value in words."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
