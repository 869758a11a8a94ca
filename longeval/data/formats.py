"""What a file is by its suffix: records that hold documents, plain text, or nothing that is read.

Case doesn't matter. A compression is looked through: `x.JSONL.gz` holds JSON lines.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from typing import BinaryIO, Literal, NamedTuple, cast

FORMATS_REMEDY = (
    "Give UTF-8 text, .jsonl (.ndjson), .json, .csv, .tsv (each also .gz, .bz2, .xz, .zst), .parquet, .arrow, or a "
    "folder of these."
)

JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
TABLES = {".csv": (",", ";", "\t", "|"), ".tsv": ("\t", ",", ";", "|")}
"""Tables as text, with the delimiters that are tried in this order."""
ARROW = (".arrow", ".feather")
COLUMNS = (".parquet", *ARROW)
"""Compressed inside; never unpacked around."""
_RECORDS = (*JSON_LINES, ".json", *TABLES, *COLUMNS)
_TEXT = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".py")
"""Suffixes of plain text; any other suffix is taken for text too, and said."""
_CODE = (".py",)
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib")
_ARCHIVES = (
    ".zip",
    ".tar",
    ".tgz",
    ".tbz",
    ".tbz2",
    ".txz",
    ".7z",
    ".rar",
    ".lz4",
    ".lzma",
    ".br",
    ".z",
    ".whl",
    ".jar",
)
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
"""How files begin that aren't UTF-8 text, and what helps."""


class Format(NamedTuple):
    """What a file is by its name."""

    suffix: str
    """Of what is in it, lower case: `.jsonl` of `X.JSONL.gz`; empty where there is none."""
    compression: str
    """`.gz`, or another; empty where there is none."""
    kind: Literal["records", "text", "other"]
    """Records have fields; `other` is never read."""

    @property
    def is_pickle(self) -> bool:
        """Whether reading it could run code."""
        return self.suffix in _PICKLED

    @property
    def is_archive(self) -> bool:
        """Whether it has to be unpacked first."""
        return self.suffix in _ARCHIVES or (self.kind == "other" and bool(self.compression))

    @property
    def is_prose(self) -> bool:
        """Whether it is text that somebody may have written to be read, rather than code or something unknown."""
        return self.kind == "text" and self.suffix in ("", *_TEXT) and self.suffix not in _CODE

    @property
    def is_known(self) -> bool:
        """Whether the suffix says what it is."""
        return self.kind != "text" or self.suffix in _TEXT


def format_of(path: str) -> Format:
    """What a file is by its name."""
    stem, suffix = os.path.splitext(os.path.basename(path).lower())
    compression = suffix if suffix in _COMPRESSIONS else ""
    if compression:
        suffix = os.path.splitext(stem)[1]
    if suffix in _NOT_TEXT or (compression and suffix in COLUMNS):
        return Format(suffix, compression, "other")
    return Format(suffix, compression, "records" if suffix in _RECORDS else "text")


def open_bytes(path: str, compression: str) -> BinaryIO:
    """Opens a file; what is read from it is unpacked piece by piece."""
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
    """Whose beginning a file has that isn't UTF-8 text, and what helps; None where it may be text."""
    return next((whose for beginning, whose in _BEGINNINGS.items() if content.startswith(beginning)), None)
