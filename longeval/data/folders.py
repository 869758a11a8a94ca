"""Which files of a `--data` path are documents: one line says what is read and what is not.

A folder is often the clone of a data set: beside its data lie a card, a licence, pictures. The Hugging Face hub's
libraries go by names too (https://huggingface.co/docs/hub/datasets-data-files-configuration).
"""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from longeval.data.formats import FORMATS_REMEDY, Format, format_of
from longeval.errors import LongEvalError

_ABOUT_TEXT = re.compile(
    r"(readme|licen[cs]e)([._-].*)?|(copying|notice|citation|authors|contributing|changelog)(\.\w+)?|requirements.*\.txt",
    re.IGNORECASE,
)
"""Names of texts that tell of a data set and aren't of it."""
_ABOUT = re.compile(
    r"(dataset_infos?|dataset_dict|state|croissant)\.json|metadata\.(csv|tsv|jsonl?|parquet)", re.IGNORECASE
)
"""Names of other files that do."""
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in names that say which split a file belongs to, as the hub reads them."""
_MOST_NAMED = 5
"""Files that a note names; others are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """The files of a `--data` path that are documents."""

    files: tuple[str, ...]
    """In the order they are read."""
    note: str | None
    """What is read and what isn't, where that may surprise."""


def choose_files(path: str) -> Chosen:
    """The file at `path`, or those below a folder that are documents, sorted by relative path.

    Hidden files and folders are left out; so is what only tells of a data set (README, licence) where there is more,
    what is of no format that is read, and text beside data files, or data files beside more text. A link is followed
    where it stays in the folder, or in the store of the hub's cache.

    Raises:
        OSError: If a folder can't be listed.
        LongEvalError: If nothing there is read.
    """
    if not os.path.lexists(path):
        raise LongEvalError(
            f"--data {path}: no such file or folder", "Check the path; it is relative to where you are."
        )
    if os.path.isfile(path):
        kind = format_of(path)
        if kind.kind == "other":
            raise _not_read(path, kind)
        return Chosen(files=(path,), note=None if kind.is_known else f"--data {path}: read as plain text, as it stands")
    if not os.path.isdir(path):
        raise LongEvalError(f"--data {path}: neither a file nor a folder", FORMATS_REMEDY)
    found, left_out = _walk(path)
    if not found:
        others = f" but {_named(left_out)}" if left_out else ""
        raise LongEvalError(f"--data {path}: the folder holds no files{others}", FORMATS_REMEDY)
    files = [file for file in found if format_of(file).kind != "other"]
    if not files:
        if any(format_of(file).is_pickle for file in found):
            raise _not_read(found[0], format_of(found[0]))
        raise LongEvalError(f"--data {path}: nothing in it is read ({_named(_relative(found, path))})", FORMATS_REMEDY)
    files = [file for file in files if not _is_about(file)] or files
    files = _one_kind(files)
    kept = set(files)
    left_out += _relative((file for file in found if file not in kept), path)
    return Chosen(files=tuple(files), note=_note(path, files, sorted(left_out)))


def _walk(folder: str) -> tuple[list[str], list[str]]:
    """All plain files below a folder that may be opened, sorted, and what else is there, with reasons."""

    def fail(error: OSError) -> None:
        raise error

    roots = _roots(folder)
    files: list[str] = []
    left_out: list[str] = []
    for parent, subfolders, names in os.walk(folder, onerror=fail):
        hidden = (name for name in (*subfolders, *names) if name.startswith("."))
        left_out.extend(os.path.relpath(os.path.join(parent, name), folder) for name in hidden)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for file in (os.path.join(parent, name) for name in (*subfolders, *names) if not name.startswith(".")):
            if os.path.islink(file) and not _is_in(file, roots):
                left_out.append(f"{os.path.relpath(file, folder)} (leads out of the folder)")
            elif os.path.isfile(file):
                files.append(file)
            elif not os.path.isdir(file):  # folders, and links to them, are walked through anyway
                left_out.append(f"{os.path.relpath(file, folder)} (no plain file)")
    files.sort(key=lambda file: (os.path.islink(file), os.path.relpath(file, folder)))
    once: dict[str, str] = {}
    for file in files:
        first = once.setdefault(os.path.realpath(file), file)
        if first != file:
            left_out.append(f"{os.path.relpath(file, folder)} (the same file as {os.path.relpath(first, folder)})")
    return sorted(once.values(), key=lambda file: os.path.relpath(file, folder)), left_out


def _is_in(file: str, roots: Sequence[str]) -> bool:
    real = os.path.realpath(file)
    return any(os.path.commonpath([real, root]) == root for root in roots)


def _roots(folder: str) -> tuple[str, ...]:
    """Where links of a folder may lead: into itself; from a snapshot in the hub's cache, to the blobs beside it."""
    real = os.path.realpath(folder)
    snapshot = re.fullmatch(r"(.+)/snapshots/[^/]+(/.*)?", real)
    blobs = os.path.join(snapshot[1], "blobs") if snapshot else None
    return (real, blobs) if blobs is not None and os.path.isdir(blobs) else (real,)


def _is_about(file: str) -> bool:
    """Whether a file tells of a data set and is no part of it."""
    name = os.path.basename(file)
    return bool(_ABOUT.fullmatch(name) or (format_of(file).kind == "text" and _ABOUT_TEXT.fullmatch(name)))


def _one_kind(files: Sequence[str]) -> list[str]:
    """Data files alone, or text alone: a data set has scripts beside it, a folder of books a table of them."""
    records = [file for file in files if format_of(file).kind == "records"]
    texts = [file for file in files if format_of(file).kind == "text"]
    prose = sum(os.path.getsize(file) for file in texts if format_of(file).is_prose)
    return texts if not records or prose > sum(map(os.path.getsize, records)) else records


def _note(path: str, files: Sequence[str], left_out: Sequence[str]) -> str | None:
    """What is read of a folder, and what isn't; None where all of it is, and of one kind."""
    counts = collections.Counter(format_of(file).suffix for file in files)
    records = format_of(files[0]).kind == "records"
    unknown = sorted({format_of(file).suffix for file in files if not format_of(file).is_known})
    splits = [split for split, words in _SPLITS.items() if any(_is_of(file, path, words) for file in files)]
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
    """A file of a kind that is never opened, whatever is in it."""
    if kind.is_pickle:
        return LongEvalError(
            f"--data {path}: a pickle can run code when it is read, so it never is",
            f"Export its texts as .jsonl. {FORMATS_REMEDY}",
        )
    if kind.is_archive:
        return LongEvalError(f"--data {path}: compressed", f"Unpack it first. {FORMATS_REMEDY}")
    return LongEvalError(f"--data {path}: {kind.suffix} isn't read", f"Convert it to text. {FORMATS_REMEDY}")
