"""Documents from local files: plain text, and records in JSON, tables and columns; a file, a folder, or a pattern.

Everything is read lazily and in a fixed order: one record after the other, never a whole file of them at once. Nothing
is ever unpickled. What can't be read as it stands raises LongEvalError with file, line and remedy; no document is left
out on the way. A record without text, whose field is null or not there, is one too, so that it can be counted.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from longeval.data.documents import (
    Growth,
    Text,
    TextField,
    json_kind,
    parse_json,
    read_lines,
    some_with_text,
    wrong_json,
)
from longeval.data.files import (
    COLUMNS,
    FORMATS_REMEDY,
    JSON_LINES,
    TABLES,
    Format,
    check_path,
    foreign_beginning,
    format_of,
    open_bytes,
    unreadable,
)
from longeval.errors import LongEvalError

_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)
_PIECE = 2**16
_BLANKS = re.compile(r"[ \t\n\r]*")
_ROWS = 16
"""Number of values of a column that are converted to Python strings together."""

Texts = Iterator[tuple[int, str | None]]
"""Texts of a file's records, each with the number of its line or row; None where a record has no text."""


def read_documents(path: str, *, text_field: str | None = None) -> Iterator[Text]:
    """Yields the documents of a file, of a folder, or of the files that match a pattern.

    Args:
        path: What passed `check_path`.
        text_field: The field that holds the text in records; default: the first of DEFAULT_FIELDS they have.

    Raises:
        LongEvalError: While iterating, at the first thing that can't be read: binary or non-UTF-8 content, malformed
            JSON, a field that is no string or that no record has, a file that vanished; at the end if all are records
            without text.
    """
    yield from some_with_text(_all_documents(path, text_field), f"--data {path}")


def _all_documents(path: str, text_field: str | None) -> Iterator[Text]:
    """See `read_documents`."""
    chosen = check_path(path)
    for file in chosen.files:
        name = os.path.basename(path) if chosen.folder is None else os.path.relpath(file, chosen.folder)
        kind = format_of(file)
        try:
            if kind.kind == "text":
                yield Text(name=name, text=_read_text(file, kind, may_be_empty=chosen.folder is not None))
                continue
            number = None
            for number, text in _record_texts(file, text_field, kind):
                yield Text.of_record(f"{name}#{number}", text)
            if number is None:
                raise LongEvalError(f"{file}: no records in it", "There is nothing to score in it.")
        except _UNREADABLE as error:
            raise unreadable(file, error) from error


def _read_text(path: str, kind: Format, *, may_be_empty: bool) -> str:
    """Reads a text file; raises LongEvalError if its content isn't plain text."""
    size = os.path.getsize(path)
    growth = Growth(path, size)
    if not kind.compression:
        growth.check(size, "", whole=True)
    content = bytearray()
    with open_bytes(path, kind.compression) as file:
        while piece := file.read(2**24):
            content += piece
            growth.check(len(content), "", whole=True)
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
    """Whether the first two lines that aren't blank, or the only one, are JSON objects or arrays of objects."""
    filled = (line for line in io.StringIO(text) if line.strip())
    lines = list(itertools.islice(filled, 2))
    return bool(lines) and all(_is_record(line.strip()) for line in lines)


def _is_record(line: str) -> bool:
    """Whether a line is a non-empty JSON object, or an array that begins with one."""
    if line[0] not in "{[":
        return False
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, dict) and bool(value)


def _record_texts(path: str, text_field: str | None, kind: Format) -> Texts:
    """Yields the texts of a file whose kind is `records`."""
    field, growth = TextField(path, text_field), Growth(path, os.path.getsize(path))
    if kind.suffix in COLUMNS:
        yield from _column_texts(path, kind, field, growth)
        return
    with open_bytes(path, kind.compression) as stream:
        if kind.suffix in JSON_LINES:
            yield from json_line_texts(stream, path, field, growth)
            return
        if kind.suffix in TABLES:
            yield from _table_texts(stream, path, field, TABLES[kind.suffix], growth)
            return
        for number, record in enumerate(_array_items(stream, path, growth), start=1):
            yield number, field.text_of(record, f"item {number}")
    field.end()


def json_line_texts(stream: BinaryIO, path: str, field: TextField, growth: Growth) -> Texts:
    """Yields the text of each line of JSON, without blank lines.

    Only a newline ends a line, not the other line separators of Unicode.
    """
    for number, line in enumerate(read_lines(stream, growth), start=1):
        if line.strip():
            yield number, field.text_of(parse_json(line.strip(), path, first_line=number), f"line {number}")
    field.end()


def _array_items(stream: BinaryIO, path: str, growth: Growth) -> Iterator[Any]:
    """Yields the items of a JSON array while it is read."""
    buffer = _JsonBuffer(stream, path, growth)
    if not buffer.take("["):
        kind = json_kind(buffer.value())
        remedy = "A .json file must be one array of objects; .jsonl has one a line."
        if buffer.peek():
            remedy = "It looks like one object a line: rename it to .jsonl."
        raise LongEvalError(f"{path}: {kind}, not an array", remedy)
    if buffer.take("]"):
        return
    yield buffer.value()
    while buffer.take(","):
        yield buffer.value()
    if not buffer.take("]"):
        raise buffer.wrong("Expecting ',' delimiter")
    if buffer.peek():
        raise buffer.wrong("Extra data")


class _JsonBuffer:
    """The part of a JSON text that has been read but not yet parsed."""

    def __init__(self, stream: BinaryIO, path: str, growth: Growth) -> None:
        self._stream, self._path, self._growth = stream, path, growth
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._line = 1
        self._is_read = False

    def peek(self) -> str:
        """The next character that isn't white space; empty at the end."""
        while True:
            blanks = _BLANKS.match(self._text, self._at)
            assert blanks is not None
            self._at = blanks.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_PIECE):
                return ""

    def take(self, character: str) -> bool:
        """Whether the next character that isn't white space is this one; if so, moves past it."""
        found = self.peek() == character
        self._at += found
        return found

    def value(self) -> Any:
        """Parses a value and moves past it."""
        self.peek()
        size = _PIECE
        while True:
            first_line, record_line = self._line, self._line + self._text.count("\n", 0, self._at)
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if not self._is_cut(error) or not self._more(size):
                    raise wrong_json(error, self._path, first_line, record_line=record_line) from error
                size *= 2  # tries again from the start of the value with more text
            else:
                if end == len(self._text) and self._more(size):
                    continue  # the next piece may continue a number
                self._at = end
                return value

    def _is_cut(self, error: Exception) -> bool:
        """Whether the parser may have failed because the text that has been read ends too early."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos + 16 > len(self._text)

    def wrong(self, what: str) -> LongEvalError:
        """The error for a problem at the current position."""
        error = json.JSONDecodeError(what, self._text, self._at)
        return wrong_json(error, self._path, self._line, record_line=self._line)

    def _more(self, size: int) -> bool:
        """Reads more text and drops the parsed part; returns False at the end."""
        if self._is_read:
            return False
        self._line += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :], 0
        self._growth.check(len(self._text), f"the record in line {self._line}")
        piece = self._stream.read(size)
        self._growth.add(len(piece))
        self._is_read = not piece
        try:
            self._text += self._utf8.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            line = self._line + self._text.count("\n")
            raise LongEvalError(f"{self._path}, line {line} or later: not UTF-8", FORMATS_REMEDY) from error
        return not self._is_read


def _table_texts(stream: BinaryIO, path: str, field: TextField, delimiters: Sequence[str], growth: Growth) -> Texts:
    """Yields the texts of a table in the form of RFC 4180, whose first row has the names of the columns."""
    decoded = _decoded(read_lines(stream, growth), path)
    first = next((line for line in decoded if line.strip()), None)
    if first is None:
        return
    csv.field_size_limit(growth.MOST_RECORD)
    delimiter = next((each for each in delimiters if field.is_in(_cells(first, each))), delimiters[0])
    rows = csv.reader(itertools.chain([first], decoded), delimiter=delimiter, strict=True)
    try:
        names = next(rows)
        column = names.index(field.choose(names, "its first row"))
        if names.count(names[column]) > 1:
            raise LongEvalError(f"{path}: has several columns {names[column]!r}", "Name its columns differently.")
        for number, row in enumerate(filter(None, rows), start=1):
            if len(row) != len(names):
                raise LongEvalError(
                    f"{path}, line {rows.line_num}: {len(row)} cells where the first row names {len(names)} columns",
                    "Put cells that hold the delimiter or a line break in quotes.",
                )
            yield number, field.checked(row[column] or None, f"row {number}")  # a table has no other null
    except csv.Error as error:
        if "field limit" in str(error):
            growth.check(growth.MOST_RECORD + 1, f"line {rows.line_num}")
        raise LongEvalError(
            f"{path}, line {rows.line_num}: not a readable table ({error})",
            "Put cells that hold quotes, the delimiter or a line break in quotes, and double the quotes in them.",
        ) from error


def _cells(line: str, delimiter: str) -> list[str]:
    """The cells of one line; none if it isn't a row."""
    try:
        return next(csv.reader([line], delimiter=delimiter))
    except csv.Error:
        return []


def _decoded(lines: Iterator[bytes], path: str) -> Iterator[str]:
    """Yields the lines as text, without a byte order mark."""
    for number, line in enumerate(lines, start=1):
        if b"\0" in line:
            raise LongEvalError(f"{path}, line {number}: binary (a NUL byte)", FORMATS_REMEDY)
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise LongEvalError(f"{path}, line {number}: not UTF-8 (byte {error.start})", FORMATS_REMEDY) from error


def _column_texts(path: str, kind: Format, field: TextField, growth: Growth) -> Texts:
    """Yields the texts of a parquet or Arrow file."""
    import pyarrow

    is_parquet = kind.suffix == ".parquet"
    pieces = _parquet_columns(path, field) if is_parquet else _arrow_columns(path, field)
    rows = itertools.count(1)
    try:
        for values in pieces:
            for start in range(0, len(values), _ROWS):
                few = values.slice(start, _ROWS)
                growth.check(few.nbytes // _ROWS, "a row")
                for value in few.to_pylist():
                    number = next(rows)
                    text = field.checked(value, f"row {number}")
                    length = len(text or "")
                    growth.check(length, f"row {number}")
                    growth.add(length + 32)  # empty ones have no end either
                    yield number, text
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        what = "parquet" if is_parquet else "Arrow"
        raise LongEvalError(f"{path}: not a readable {what} file ({error})", "Write or download it again.") from error


def _parquet_columns(path: str, field: TextField) -> Iterator[Any]:
    """Yields the column with the texts in batches."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        column = _checked_column(field, file.schema_arrow)
        for group in range(file.num_row_groups):
            part = file.metadata.row_group(group)
            columns = (part.column(index) for index in range(part.num_columns))
            size = sum(each.total_uncompressed_size for each in columns if each.path_in_schema == column)
            Growth(path, os.path.getsize(path)).add(size)
            # A value that is stored once may be repeated in each row, so batches are limited to what fits into memory.
            most = max(1, min(256, Growth.MOST_RECORD // max(size, 1)))
            for batch in file.iter_batches(batch_size=most, row_groups=[group], columns=[column]):
                yield batch.column(0)


def _arrow_columns(path: str, field: TextField) -> Iterator[Any]:
    """Yields the column with the texts in batches, from Arrow's file format or its stream format (of `datasets`)."""
    import pyarrow.ipc

    with pyarrow.memory_map(path) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        with pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source) as reader:
            column = _checked_column(field, reader.schema)
            batches = (reader.get_batch(n) for n in range(reader.num_record_batches)) if is_file else reader
            for batch in batches:
                yield batch.column(column)


def _checked_column(field: TextField, schema: Any) -> str:
    """The name of the column with the texts; raises LongEvalError if it doesn't hold strings."""
    import pyarrow.types as types

    column = field.choose(schema.names, "its schema")
    kind = schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind)):
        raise field.no_string("its schema", str(kind))
    return column
