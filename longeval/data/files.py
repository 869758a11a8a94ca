"""Documents from local files: plain text, and records in JSON, tables and columns; a file or a folder.

Everything is read lazily and in a fixed order. Nothing is ever unpickled. What can't be read as it stands raises
LongEvalError with file, line and remedy; no document is left out on the way, an empty one inside a collection included.
"""

from __future__ import annotations

import json
import lzma
import os
import zlib
from collections.abc import Iterator

from longeval.data import bounds
from longeval.data.bounds import Growth
from longeval.data.documents import Document
from longeval.data.folders import Chosen, choose_files
from longeval.data.formats import FORMATS_REMEDY, Format, foreign_beginning, format_of, open_bytes
from longeval.data.readers import read_records
from longeval.errors import LongEvalError

_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)


def check_path(path: str) -> Chosen:
    """The files of a `--data` path.

    Raises:
        LongEvalError: If it can't be a source: it is missing, unreadable, empty, or of a kind never read.
    """
    try:
        chosen = choose_files(path)
        if sum(os.path.getsize(file) for file in chosen.files) == 0:
            raise LongEvalError(f"--data {path}: empty", "There is nothing to score in it.")
    except OSError as error:
        raise _unreadable(path, error) from error
    return chosen


def has_fields(chosen: Chosen) -> bool:
    """Whether any file has fields to choose from, so that `--text-field` means something."""
    return any(format_of(file).kind == "records" for file in chosen.files)


def read_documents(path: str, *, text_field: str | None = None) -> Iterator[Document]:
    """Yields the documents of a file or folder.

    Args:
        path: A file or folder that passed `check_path`.
        text_field: The field that holds the text in records; default: the first of DEFAULT_FIELDS they have.

    Raises:
        LongEvalError: While iterating, at the first thing that can't be read: binary or non-UTF-8 content, malformed
            JSON, a missing field or one that is no string, a file that vanished.
    """
    is_folder = os.path.isdir(path)
    for file in check_path(path).files:
        name = os.path.relpath(file, path) if is_folder else os.path.basename(path)
        kind = format_of(file)
        try:
            if kind.kind == "text":
                yield Document(name=name, text=_read_text(file, kind, may_be_empty=is_folder))
                continue
            documents = read_records(file, name, text_field, kind)
            first = next(documents, None)
            if first is None:
                raise LongEvalError(f"{file}: no records in it", "There is nothing to score in it.")
            yield first
            yield from documents
        except _UNREADABLE as error:
            raise _unreadable(file, error) from error


def _read_text(path: str, kind: Format, *, may_be_empty: bool) -> str:
    size = os.path.getsize(path)
    growth = Growth(path, size)
    if not kind.compression:
        growth.check(size, "", bounds.MOST_TEXT)
    content = bytearray()
    with open_bytes(path, kind.compression) as file:
        while piece := file.read(2**24):
            content += piece
            growth.check(len(content), "", bounds.MOST_TEXT)
    whose = foreign_beginning(content)
    if whose is not None:
        raise LongEvalError(f"{path}: no text; it begins as {whose}", FORMATS_REMEDY)
    if b"\0" in content:
        raise LongEvalError(f"{path}: binary (a NUL byte at {content.index(0)})", FORMATS_REMEDY)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LongEvalError(
            f"{path}: not UTF-8 text (byte {error.start})",
            f"Convert it, if it is text: iconv -t UTF-8. {FORMATS_REMEDY}",
        ) from error
    if not may_be_empty and not text.strip():
        raise LongEvalError(f"{path}: empty", "There is nothing to score in it.")
    if _looks_like_records(text):
        raise LongEvalError(
            f"{path}: looks like JSON with one record a line, and isn't named so",
            "Rename it to .jsonl (or .json, if it is one array), so that its texts are read.",
        )
    return text


def _looks_like_records(text: str) -> bool:
    """Whether the first two lines that aren't blank, or the only one, are each a JSON object, or an array of such."""
    end, found = 0, 0
    while found < 2 and end < len(text):
        start, end = end, (text.find("\n", end) + 1) or len(text)
        line = text[start:end].strip()
        if not line:
            continue
        if line[0] not in "{[":
            return False
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return False
        if isinstance(value, list) and value:
            value = value[0]
        if not (isinstance(value, dict) and value):
            return False
        found += 1
    return found > 0


def _unreadable(path: str, error: Exception) -> LongEvalError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return LongEvalError(f"--data {path}: can't be read ({reason})", "Check that it is whole and that you may read it.")
