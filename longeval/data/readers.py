"""Documents from files of records: JSON lines, arrays, tables; one after the other, never a whole file at once."""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from longeval.data import bounds
from longeval.data.bounds import Growth, Readable, read_lines
from longeval.data.documents import Document
from longeval.data.fields import TextField, json_kind, parse_json, wrong_json
from longeval.data.formats import ARROW, FORMATS_REMEDY, JSON_LINES, TABLES, Format, open_bytes
from longeval.errors import LongEvalError

_ROWS = 16
"""Values of a column that are made Python's at once."""


def read_records(path: str, name: str, text_field: str | None, kind: Format) -> Iterator[Document]:
    """Yields a document for each record of a file.

    Args:
        path: The file.
        name: What documents are called after; `#` and the record's number follow.
        text_field: See `longeval.data.files.read_documents`.
        kind: What the file is; its kind is `records`.
    """
    growth = Growth(path, os.path.getsize(path))
    if kind.suffix == ".parquet":
        yield from _read_parquet(path, name, text_field, growth)
        return
    if kind.suffix in ARROW:
        yield from _read_arrow(path, name, text_field, growth)
        return
    with open_bytes(path, kind.compression) as stream:
        if kind.suffix in JSON_LINES:
            yield from read_json_lines(stream, path=path, name=name, text_field=text_field, growth=growth)
        elif kind.suffix in TABLES:
            yield from _read_table(stream, path, name, text_field, TABLES[kind.suffix], growth)
        else:
            field = TextField(path, text_field)
            for number, record in enumerate(_array_items(stream, path, growth), start=1):
                yield Document(name=f"{name}#{number}", text=field.text_of(record, f"item {number}"))


def read_json_lines(
    stream: Readable, *, path: str, name: str, text_field: str | None, growth: Growth | None = None
) -> Iterator[Document]:
    """Yields a document for each line of JSON; blank lines are skipped.

    Args:
        stream: The open file, binary: only a newline ends a line, not the other separators of Unicode.
        path: What messages call the file.
        name: What documents are called after; `#` and the line number follow.
        text_field: See `longeval.data.files.read_documents`.
        growth: Watches how much is read; null: nothing does.
    """
    field = TextField(path, text_field)
    for number, line in enumerate(read_lines(stream, growth or Growth(path, None)), start=1):
        if line.strip():
            record = parse_json(line.strip(), path, first_line=number)
            yield Document(name=f"{name}#{number}", text=field.text_of(record, f"line {number}"))


def _array_items(stream: Readable, path: str, growth: Growth) -> Iterator[Any]:
    """Yields the items of a JSON array as they are read."""
    buffer = _JsonBuffer(stream, path, growth)
    if buffer.peek() != "[":
        kind = json_kind(buffer.value())
        remedy = "A .json file must be one array of objects; .jsonl has one a line."
        if buffer.peek():
            remedy = "It looks like one object a line: rename it to .jsonl."
        raise LongEvalError(f"{path}: {kind}, not an array", remedy)
    buffer.skip()
    if buffer.peek() == "]":
        return
    while True:
        yield buffer.value()
        end = buffer.peek()
        if end == "]":
            buffer.skip()
            break
        if end != ",":
            raise buffer.wrong("Expecting ',' delimiter")
        buffer.skip()
    if buffer.peek():
        raise buffer.wrong("Extra data")


class _JsonBuffer:
    """The part of a JSON text that has been read and not yet parsed."""

    def __init__(self, stream: Readable, path: str, growth: Growth) -> None:
        self._stream, self._path, self._growth = stream, path, growth
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._line = 1
        self._is_read = False

    def peek(self) -> str:
        """The next character that is no blank; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\n\r":
                    return self._text[self._at]
                self._at += 1
            if not self._more(2**16):
                return ""

    def skip(self) -> None:
        """Goes past a character."""
        self._at += 1

    def value(self) -> Any:
        """Parses a value and goes past it."""
        self.peek()
        size = 2**16
        while True:
            first_line, record_line = self._line, self._line + self._text.count("\n", 0, self._at)
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if not self._is_cut(error) or not self._more(size):
                    raise wrong_json(error, self._path, first_line, record_line=record_line) from error
                size *= 2  # again from the start of the value, with twice as much
            else:
                if end == len(self._text) and self._more(size):
                    continue  # a number may go on
                self._at = end
                return value

    def _is_cut(self, error: Exception) -> bool:
        """Whether an error of the parser may come from the end of what has been read."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos + 16 > len(self._text)

    def wrong(self, what: str) -> LongEvalError:
        """What is wrong where it stands."""
        error = json.JSONDecodeError(what, self._text, self._at)
        return wrong_json(error, self._path, self._line, record_line=self._line)

    def _more(self, size: int) -> bool:
        """Reads on and drops what is parsed; False at the end."""
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


def _read_table(
    stream: Readable, path: str, name: str, text_field: str | None, delimiters: Sequence[str], growth: Growth
) -> Iterator[Document]:
    """Reads rows of text in the form of RFC 4180, the first with the columns' names."""
    field = TextField(path, text_field)
    decoded = _decoded(read_lines(stream, growth), path)
    first = next((line for line in decoded if line.strip()), None)
    if first is None:
        return
    csv.field_size_limit(bounds.MOST_RECORD)
    delimiter = next((each for each in delimiters if field.is_in(_cells([first], each))), delimiters[0])
    rows = csv.reader(itertools.chain([first], decoded), delimiter=delimiter, strict=True)
    try:
        names = next(rows)
        column = names.index(field.choose(names, "its first row"))
        if names.count(names[column]) > 1:
            raise LongEvalError(f"{path}: has several columns {names[column]!r}", "Name its columns differently.")
        number = 0
        for row in rows:
            if not row:
                continue
            number += 1
            if len(row) != len(names):
                raise LongEvalError(
                    f"{path}, line {rows.line_num}: {len(row)} cells where the first row names {len(names)} columns",
                    "Put cells that hold the delimiter or a line break in quotes.",
                )
            yield Document(name=f"{name}#{number}", text=field.checked(row[column], f"row {number}"))
    except csv.Error as error:
        if "field limit" in str(error):
            growth.check(bounds.MOST_RECORD + 1, f"line {rows.line_num}")
        raise LongEvalError(
            f"{path}, line {rows.line_num}: not a readable table ({error})",
            "Put cells that hold quotes, the delimiter or a line break in quotes, and double the quotes in them.",
        ) from error


def _cells(lines: Iterable[str], delimiter: str) -> list[str]:
    try:
        return next(csv.reader(lines, delimiter=delimiter))
    except csv.Error:
        return []


def _decoded(lines: Iterator[bytes], path: str) -> Iterator[str]:
    """Lines as text, without a byte order mark."""
    for number, line in enumerate(lines, start=1):
        if b"\0" in line:
            raise LongEvalError(f"{path}, line {number}: binary (a NUL byte)", FORMATS_REMEDY)
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise LongEvalError(f"{path}, line {number}: not UTF-8 (byte {error.start})", FORMATS_REMEDY) from error


def _read_parquet(path: str, name: str, text_field: str | None, growth: Growth) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    field = TextField(path, text_field)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            column = field.choose(file.schema_arrow.names, "its schema")
            _check_type(field, file.schema_arrow, column)
            rows = itertools.count(1)
            for group in range(file.num_row_groups):
                part = file.metadata.row_group(group)
                columns = (part.column(index) for index in range(part.num_columns))
                size = sum(each.total_uncompressed_size for each in columns if each.path_in_schema == column)
                Growth(path, os.path.getsize(path)).add(size)
                # A value that stands there once may be repeated by each row: as many rows as can't fill the memory.
                most = max(1, min(256, bounds.MOST_RECORD // max(size, 1)))
                for batch in file.iter_batches(batch_size=most, row_groups=[group], columns=[column]):
                    yield from _texts(batch.column(0), rows, path, name, field, growth)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise LongEvalError(f"{path}: not a readable parquet file ({error})", "Write or download it again.") from error


def _read_arrow(path: str, name: str, text_field: str | None, growth: Growth) -> Iterator[Document]:
    """Reads Arrow's file format, and its stream format, which the library `datasets` writes."""
    import pyarrow
    import pyarrow.ipc

    field = TextField(path, text_field)
    try:
        with pyarrow.memory_map(path) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            opened = pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)
            with opened as reader:
                column = field.choose(reader.schema.names, "its schema")
                _check_type(field, reader.schema, column)
                rows = itertools.count(1)
                batches = (reader.get_batch(n) for n in range(reader.num_record_batches)) if is_file else reader
                for batch in batches:
                    yield from _texts(batch.column(column), rows, path, name, field, growth)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise LongEvalError(f"{path}: not a readable Arrow file ({error})", "Write or download it again.") from error


def _check_type(field: TextField, schema: Any, column: str) -> None:
    """Refuses a column that holds no texts before any of it is read."""
    import pyarrow.types as types

    kind = schema.field(column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind)):
        raise field.no_string("its schema", str(kind))


def _texts(
    values: Any, rows: Iterator[int], path: str, name: str, field: TextField, growth: Growth
) -> Iterator[Document]:
    """Yields a document for each value of a column's piece."""
    for start in range(0, len(values), _ROWS):
        few = values.slice(start, _ROWS)
        growth.check(few.nbytes // _ROWS, "a row")
        for value in few.to_pylist():
            number = next(rows)
            text = field.checked(value, f"row {number}")
            growth.check(len(text), f"row {number}")
            growth.add(len(text) + 32)  # empty ones have no end either
            yield Document(name=f"{name}#{number}", text=text)
