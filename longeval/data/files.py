"""Documents from local files: text, JSON lines (also gzipped), JSON arrays, parquet, and folders of these.

Everything is read lazily and in a fixed order. Nothing is ever unpickled. What can't be read as it stands raises
LongEvalError with file, line and remedy; no document is left out on the way, an empty one inside a collection included.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from longeval.data.documents import Document
from longeval.data.fields import FORMATS_REMEDY, TextField, json_kind, parse_json
from longeval.errors import LongEvalError

_PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib")
_STRUCTURED = (".jsonl", ".jsonl.gz", ".json", ".parquet")


def check_path(path: str) -> None:
    """Raises LongEvalError if `path` can't be a source: it is missing, unreadable, empty, or of a kind never read.

    Of its content only the first document is read.
    """
    if not os.path.exists(path):
        raise LongEvalError(
            f"--data {path}: no such file or folder", "Check the path; it is relative to where you are."
        )
    try:
        files = list_files(path)
        if not files:
            raise LongEvalError(f"--data {path}: the folder holds no files", FORMATS_REMEDY)
        for file in files:
            _refuse_by_name(file)
        if sum(os.path.getsize(file) for file in files) == 0:
            raise LongEvalError(f"--data {path}: empty", "There is nothing to score in it.")
    except OSError as error:
        raise _unreadable(path, error) from error


def list_files(path: str) -> list[str]:
    """The files of a source in the order they are read: `path` itself, or all files below a folder.

    Hidden files and folders are skipped, links to folders not followed; sorted by relative path.

    Raises:
        OSError: If a folder can't be listed.
        LongEvalError: If `path` is neither a file nor a folder.
    """
    if os.path.isfile(path):
        return [path]
    if not os.path.isdir(path):
        raise LongEvalError(f"--data {path}: neither a file nor a folder", FORMATS_REMEDY)

    def fail(error: OSError) -> None:
        raise error

    files: list[str] = []
    for folder, subfolders, names in os.walk(path, onerror=fail):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files.extend(os.path.join(folder, name) for name in names if not name.startswith("."))
    return sorted(files, key=lambda file: os.path.relpath(file, path))


def has_fields(path: str) -> bool:
    """Whether any file of the source has fields to choose from, so that `--text-field` means something."""
    return any(file.lower().endswith(_STRUCTURED) for file in list_files(path))


def read_documents(path: str, *, text_field: str | None = None) -> Iterator[Document]:
    """Yields the documents of a file or folder.

    Args:
        path: A file or folder that passed `check_path`.
        text_field: The field that holds the text in JSON and parquet; default: the first of DEFAULT_FIELDS it has.

    Raises:
        LongEvalError: While iterating, at the first thing that can't be read: binary or non-UTF-8 content, malformed
            JSON, a missing field or one that is no string, a file that vanished.
    """
    is_folder = os.path.isdir(path)
    for file in list_files(path):
        name = os.path.relpath(file, path) if is_folder else os.path.basename(path)
        try:
            yield from _read_file(file, name, text_field, may_be_empty=is_folder)
        except (OSError, EOFError, zlib.error) as error:
            raise _unreadable(file, error) from error


def read_json_lines(lines: BinaryIO, *, path: str, name: str, text_field: str | None) -> Iterator[Document]:
    """Yields a document for each line of JSON; blank lines are skipped.

    Args:
        lines: The open file, binary: only a newline ends a line, not the other separators of Unicode.
        path: What messages call the file.
        name: What documents are called after; `#` and the line number follow.
        text_field: See `read_documents`.
    """
    field = TextField(path, text_field)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            record = parse_json(line.strip(), path, first_line=number)
            yield Document(name=f"{name}#{number}", text=field.text_of(record, f"line {number}"))


def _read_file(path: str, name: str, text_field: str | None, *, may_be_empty: bool) -> Iterator[Document]:
    """Reads one file by its suffix; a structured file without records is an error, in a folder too."""
    lower = path.lower()
    if not lower.endswith(_STRUCTURED):
        yield Document(name=name, text=_read_text(path, may_be_empty=may_be_empty))
        return
    if lower.endswith(".parquet"):
        documents = _read_parquet(path, name, text_field)
    elif lower.endswith(".json"):
        documents = _read_json_array(path, name, text_field)
    else:
        documents = _read_jsonl_file(path, name, text_field, gzipped=lower.endswith(".gz"))
    first = next(documents, None)
    if first is None:
        raise LongEvalError(f"{path}: no records in it", "There is nothing to score in it.")
    yield first
    yield from documents


def _read_text(path: str, *, may_be_empty: bool) -> str:
    with open(path, "rb") as file:
        content = file.read()
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
    return text


def _read_jsonl_file(path: str, name: str, text_field: str | None, *, gzipped: bool) -> Iterator[Document]:
    with gzip.open(path, "rb") if gzipped else open(path, "rb") as file:
        # a GzipFile is no BinaryIO, but has all of it that is called here
        yield from read_json_lines(file, path=path, name=name, text_field=text_field)  # type: ignore[arg-type]  # see above


def _read_json_array(path: str, name: str, text_field: str | None) -> Iterator[Document]:
    with open(path, "rb") as file:
        records = parse_json(file.read(), path, first_line=1)
    if not isinstance(records, list):
        raise LongEvalError(
            f"{path}: {json_kind(records)}, not an array",
            "A .json file must be one array of objects; .jsonl has one a line.",
        )
    field = TextField(path, text_field)
    for number, record in enumerate(records, start=1):
        yield Document(name=f"{name}#{number}", text=field.text_of(record, f"item {number}"))


def _read_parquet(path: str, name: str, text_field: str | None) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    field = TextField(path, text_field)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            column = field.choose(file.schema_arrow.names, "its schema")
            number = 0
            # Small batches: a batch of whole books is big enough.
            for batch in file.iter_batches(batch_size=16, columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield Document(name=f"{name}#{number}", text=field.checked(value, f"row {number}"))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise LongEvalError(f"{path}: not a readable parquet file ({error})", "Write or download it again.") from error


def _refuse_by_name(path: str) -> None:
    """Files that are never opened, whatever is in them."""
    lower = path.lower()
    if lower.endswith(_PICKLED):
        raise LongEvalError(
            f"--data {path}: a pickle can run code when it is read, so it never is",
            f"Export its texts as .jsonl. {FORMATS_REMEDY}",
        )
    if lower.endswith((".gz", ".zst", ".bz2", ".xz", ".zip", ".tar", ".tgz", ".7z")) and not lower.endswith(
        ".jsonl.gz"
    ):
        raise LongEvalError(f"--data {path}: compressed", f"Unpack it first. {FORMATS_REMEDY}")


def _unreadable(path: str, error: Exception) -> LongEvalError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return LongEvalError(f"--data {path}: can't be read ({reason})", "Check that it is whole and that you may read it.")
