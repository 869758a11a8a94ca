"""Chooses the documents among the files of a `--data` path by their names: records, plain text, or other files.

A folder is often the clone of a data set, with a card, a licence and pictures beside its data. The Hugging Face hub's
libraries also choose files by name (https://huggingface.co/docs/hub/datasets-data-files-configuration). Case doesn't
matter, and compression suffixes are removed: `x.JSONL.gz` holds JSON lines.
"""

from __future__ import annotations

import bz2
import collections
import glob
import gzip
import io
import lzma
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple, cast

from longeval.errors import LongEvalError, reason

FORMATS_REMEDY = (
    "Give UTF-8 text, .jsonl (.ndjson), .json, .csv, .tsv (each also .gz, .bz2, .xz, .zst), .parquet, .arrow, or a "
    "folder of these."
)

JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
TABLES = {".csv": (",", ";", "\t", "|"), ".tsv": ("\t", ",", ";", "|")}
"""Tables as text, with their delimiters in the order in which they are tried."""
ARROW = (".arrow", ".feather")
COLUMNS = (".parquet", *ARROW)
"""Column formats, which are compressed inside; a compression around them is not supported."""
_RECORDS = (*JSON_LINES, ".json", *TABLES, *COLUMNS)
_TEXT = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".py")
"""Suffixes of plain text. Files with unknown suffixes are read as text too, with a note."""
_CODE = (".py",)
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib")
_ARCHIVES = (
    ".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".7z", ".rar", ".lz4", ".lzma", ".br", ".z", ".whl", ".jar"
)  # fmt: skip
_OTHERS = (
    "pdf doc docx odt rtf epub mobi djvu ps ppt pptx xls xlsx ods ipynb npy npz h5 hdf5 mat avro orc tfrecord msgpack "
    "bin db sqlite sqlite3 safetensors gguf onnx model so dll exe o pyc png jpg jpeg gif webp bmp tif tiff svg ico mp3 "
    "wav flac ogg m4a mp4 avi mkv mov webm"
)
_NOT_TEXT = frozenset((*_PICKLED, *_ARCHIVES, *(f".{suffix}" for suffix in _OTHERS.split())))
_BEGINNINGS = {
    b"\x1f\x8b": "gzip's: add .gz to its name",
    b"BZh": "bzip2's: add .bz2 to its name",
    b"\xfd7zXZ\x00": "xz's: add .xz to its name",
    b"\x28\xb5\x2f\xfd": "zstd's: add .zst to its name",
    b"PAR1": "parquet's: name it .parquet",
    b"ARROW1": "Arrow's: name it .arrow",
    b"PK\x03\x04": "a zip archive's: unpack it",
    b"%PDF-": "PDF's: extract its text",
    b"{\\rtf": "RTF's: extract its text",
    b"\xff\xfe": "UTF-16's: convert it, iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16's: convert it, iconv -f UTF-16 -t UTF-8",
}
"""First bytes of files that aren't UTF-8 text, with the format's name and a remedy."""


class Format(NamedTuple):
    """The format of a file according to its name."""

    suffix: str
    """Suffix without compression, lower case: `.jsonl` for `X.JSONL.gz`; empty without a suffix."""
    compression: str
    """Suffix of the compression, such as `.gz`; empty without compression."""
    kind: Literal["records", "text", "other"]
    """Records have fields; `other` is never read."""

    @property
    def is_pickle(self) -> bool:
        """Whether it is a pickle, which could run code when it is read."""
        return self.suffix in _PICKLED

    @property
    def is_archive(self) -> bool:
        """Whether users must unpack it first."""
        return self.suffix in _ARCHIVES or (self.kind == "other" and bool(self.compression))

    @property
    def is_prose(self) -> bool:
        """Whether it is probably prose, rather than code or an unknown format."""
        return self.kind == "text" and self.suffix in ("", *_TEXT) and self.suffix not in _CODE

    @property
    def is_known(self) -> bool:
        """Whether the suffix is known."""
        return self.kind != "text" or self.suffix in _TEXT


def format_of(path: str) -> Format:
    """The format of a file according to its name."""
    stem, suffix = os.path.splitext(os.path.basename(path).lower())
    compression = suffix if suffix in _COMPRESSIONS else ""
    if compression:
        suffix = os.path.splitext(stem)[1]
    if suffix in _NOT_TEXT or (compression and suffix in COLUMNS):
        return Format(suffix, compression, "other")
    return Format(suffix, compression, "records" if suffix in _RECORDS else "text")


def open_bytes(path: str, compression: str) -> BinaryIO:
    """Opens a file for reading, with decompression while it is read."""
    if compression == ".zst":
        import pyarrow

        stream = pyarrow.CompressedInputStream(pyarrow.OSFile(path), "zstd")
        return io.BufferedReader(cast("io.RawIOBase", stream))
    if compression == ".gz":
        return cast("BinaryIO", gzip.open(path, "rb"))
    if compression == ".bz2":
        return cast("BinaryIO", bz2.open(path, "rb"))
    if compression == ".xz":
        return cast("BinaryIO", lzma.open(path, "rb"))
    return open(path, "rb")


def foreign_beginning(content: bytes | bytearray) -> str | None:
    """Recognises a format other than UTF-8 text by the first bytes; returns its name with a remedy, or None."""
    return next((whose for beginning, whose in _BEGINNINGS.items() if content.startswith(beginning)), None)


_ABOUT_TEXT = re.compile(
    r"(readme|licen[cs]e)([._-].*)?|(copying|notice|citation|authors|contributing|changelog)(\.\w+)?|requirements.*\.txt",
    re.IGNORECASE,
)
"""Names of texts that describe a data set but don't belong to it."""
_ABOUT = re.compile(
    r"(dataset_infos?|dataset_dict|state|croissant)\.json|metadata\.(csv|tsv|jsonl?|parquet)", re.IGNORECASE
)
"""Names of other files that describe a data set."""
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in file names that indicate a split, as on the hub."""
_MOST_NAMED = 5
"""Most files that a note names; further ones are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """The files of a `--data` path that are documents."""

    files: tuple[str, ...]
    """In the order they are read."""
    folder: str | None
    """The folder that names of documents are relative to; None for a single file."""
    note: str | None
    """A note about which files are read and which aren't, if users may not expect it."""


def check_path(path: str) -> Chosen:
    """The file at `path`, or those below a folder or of a pattern that are documents, sorted by relative path.

    A path that exists is no pattern. In patterns, `*` stands for anything within a name, `?` for one character, `[ab]`
    for one of several, and `**` for folders, however deep.

    In a folder these are left out: hidden files and folders, files that only describe a data set (README, licence) if
    there are others, files of unsupported formats, and either text or data files, whichever are smaller. Links are
    followed if they stay in the folder or lead into the hub's cache.

    Raises:
        LongEvalError: It can't be a source: it is missing, unreadable, empty, or of a kind that is never read; no file
            matches the pattern.
    """
    try:
        if os.path.isdir(path):
            chosen = _in_folder(path, path, _walk(path))
        elif is_pattern(path):
            chosen = _in_folder(path, _fixed_folder(path), _matching(path))
        else:
            chosen = _one_file(path)
        if not any(os.path.getsize(file) for file in chosen.files):
            raise LongEvalError(f"--data {path}: empty", "There is nothing to score in it.")
    except OSError as error:
        raise unreadable(path, error) from error
    return chosen


def is_pattern(path: str) -> bool:
    """Whether a path stands for all files that match it."""
    return glob.has_magic(path) and not os.path.lexists(path)


def unreadable(path: str, error: BaseException) -> LongEvalError:
    """The error for a file that the system or a decompressor can't read."""
    return LongEvalError(
        f"--data {path}: can't be read ({reason(error)})", "Check that it is whole and that you may read it."
    )


def _one_file(path: str) -> Chosen:
    if not os.path.lexists(path):
        raise LongEvalError(
            f"--data {path}: no such file or folder", "Check the path; it is relative to where you are."
        )
    if not os.path.isfile(path):
        raise LongEvalError(f"--data {path}: neither a file nor a folder", FORMATS_REMEDY)
    kind = format_of(path)
    if kind.kind == "other":
        raise _not_read(path, kind)
    note = None if kind.is_known else f"--data {path}: read as plain text, as it stands"
    return Chosen(files=(path,), folder=None, note=note)


def _in_folder(path: str, folder: str, entries: Iterable[str]) -> Chosen:
    """The documents among what was found in a folder; `path` is what messages call it."""
    found, left_out = _plain_files(folder, entries)
    readable = [file for file in found if format_of(file).kind != "other"]
    if not readable:
        if any(format_of(file).is_pickle for file in found):
            raise _not_read(found[0], format_of(found[0]))
        others = _named([*_relative(found, folder), *left_out]) or "it is empty"
        raise LongEvalError(f"--data {path}: holds no files that are read ({others})", FORMATS_REMEDY)
    files = _one_kind([file for file in readable if not _is_about(file)] or readable)
    kept = set(files)
    left_out += _relative((file for file in found if file not in kept), folder)
    return Chosen(files=tuple(files), folder=folder, note=_note(path, folder, files, sorted(left_out)))


def _walk(folder: str) -> Iterator[str]:
    """Everything below a folder, hidden folders themselves, but nothing in them."""

    def fail(error: OSError) -> None:
        raise error

    for parent, subfolders, names in os.walk(folder, onerror=fail):
        yield from (os.path.join(parent, name) for name in (*subfolders, *names))
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]


def _matching(pattern: str) -> list[str]:
    """What matches a pattern; LongEvalError where no file does."""
    found = [file for file in glob.glob(pattern, recursive=True) if not os.path.isdir(file)]
    if not found:
        raise LongEvalError(
            f"--data {pattern}: no file matches",
            "Check the pattern, and that it stands in quotes; * matches within a folder, and **/* below it.",
        )
    return found


def _fixed_folder(pattern: str) -> str:
    """The folder in front of the first part of a pattern that isn't fixed."""
    while glob.has_magic(pattern):
        pattern = os.path.dirname(pattern)
    return pattern or "."


def _plain_files(folder: str, entries: Iterable[str]) -> tuple[list[str], list[str]]:
    """The plain files of a folder that may be opened, sorted, and what else is among its entries, with reasons."""

    def shown(file: str) -> str:
        return os.path.relpath(file, folder)

    roots = _roots(folder)
    files: list[str] = []
    left_out: list[str] = []
    for file in entries:
        if os.path.basename(file).startswith("."):
            left_out.append(shown(file))
        elif not _is_in(file, roots):
            left_out.append(f"{shown(file)} (leads out of the folder)")
        elif os.path.isfile(file):
            files.append(file)
        elif not os.path.isdir(file):  # folders, and links to them, are walked through anyway
            left_out.append(f"{shown(file)} (no plain file)")
    once: dict[str, str] = {}
    for file in sorted(files, key=lambda file: (os.path.islink(file), shown(file))):
        first = once.setdefault(os.path.realpath(file), file)
        if first != file:
            left_out.append(f"{shown(file)} (the same file as {shown(first)})")
    return sorted(once.values(), key=shown), left_out


def _is_in(file: str, roots: Sequence[str]) -> bool:
    real = os.path.realpath(file)
    return any(os.path.commonpath([real, root]) == root for root in roots)


def _roots(folder: str) -> tuple[str, ...]:
    """Where links in a folder may lead: into the folder, and from a snapshot in the hub's cache to its blobs."""
    real = os.path.realpath(folder)
    snapshot = re.fullmatch(r"(.+)/snapshots/[^/]+(/.*)?", real)
    blobs = os.path.join(snapshot[1], "blobs") if snapshot else None
    return (real, blobs) if blobs is not None and os.path.isdir(blobs) else (real,)


def _is_about(file: str) -> bool:
    """Whether a file only describes a data set (card, licence)."""
    name = os.path.basename(file)
    return bool(_ABOUT.fullmatch(name) or (format_of(file).kind == "text" and _ABOUT_TEXT.fullmatch(name)))


def _one_kind(files: Sequence[str]) -> list[str]:
    """Keeps either data files or texts: data sets come with scripts, and folders of books with tables of contents."""
    records = [file for file in files if format_of(file).kind == "records"]
    texts = [file for file in files if format_of(file).kind == "text"]
    prose = sum(os.path.getsize(file) for file in texts if format_of(file).is_prose)
    return texts if not records or prose > sum(map(os.path.getsize, records)) else records


def _note(path: str, folder: str, files: Sequence[str], left_out: Sequence[str]) -> str | None:
    """A note about which files are read; None if all files are read and have the same format."""
    counts = collections.Counter(format_of(file).suffix for file in files)
    records = format_of(files[0]).kind == "records"
    unknown = sorted({format_of(file).suffix for file in files if not format_of(file).is_known})
    splits = [split for split, words in _SPLITS.items() if any(_is_of(file, folder, words) for file in files)]
    together = records and len(splits) > 1
    if not (left_out or unknown or together or (records and len(counts) > 1)):
        return None
    said = ", ".join(
        f"{number} {suffix or 'without a suffix'}{' (as plain text)' if suffix in unknown else ''}"
        for suffix, number in sorted(counts.items())
    )
    told = f", of the splits {', '.join(splits)} together (name a file for one)" if together else ""
    others = f"; not read: {_named(left_out)}" if left_out else ""
    return f"--data {path}: {len(files)} {'file is' if len(files) == 1 else 'files are'} read ({said}){told}{others}"


def _is_of(file: str, folder: str, words: Sequence[str]) -> bool:
    parts = re.split(r"[^a-z]+", os.path.relpath(file, folder).lower())
    return any(word in parts for word in words)


def _relative(files: Iterable[str], folder: str) -> list[str]:
    return [os.path.relpath(file, folder) for file in files]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _not_read(path: str, kind: Format) -> LongEvalError:
    """The error for a file of an unsupported format."""
    if kind.is_pickle:
        return LongEvalError(
            f"--data {path}: a pickle can run code when it is read, so it never is",
            f"Export its texts as .jsonl. {FORMATS_REMEDY}",
        )
    if kind.is_archive:
        return LongEvalError(f"--data {path}: compressed", f"Unpack it first. {FORMATS_REMEDY}")
    return LongEvalError(f"--data {path}: {kind.suffix} isn't read", f"Convert it to text. {FORMATS_REMEDY}")
