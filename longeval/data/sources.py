"""From what the user typed after `--data` to documents: a corpus, `stdlib`, a data set of the hub, a path or pattern.

A named corpus is read from its local copy under $LONGEVAL_DATA if there is one, otherwise from the hub. A name takes
precedence over a file of the same name in the current folder; write `./name` for the file.

`stdlib` consists of the longest modules of Python's standard library, long text that every machine has. It depends on
the Python version, which the source's origin states; results of two versions can't be compared.
"""

from __future__ import annotations

import os
import platform
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from longeval.data.corpora import Corpus, HubDataset, LocalCandidate, load_catalogue
from longeval.data.documents import Text
from longeval.data.files import check_path, format_of, is_pattern
from longeval.data.hub import PREFIX, HubUnavailableError, parse_hub_name, pin, read_hub_documents
from longeval.data.readers import read_documents
from longeval.errors import LongEvalError, did_you_mean

STDLIB = "stdlib"
_STDLIB_DOCS = 4
_HUB_DOCS = 50
"""Documents taken of a data set of the hub by default: some never end."""

NUM_MODULES = 64
"""Number of modules of the standard library that are documents."""
_TABLES = {"html/entities.py"}
"""Generated modules, in addition to the folders pydoc_data and encodings."""
_NOT_READ = (
    "site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data",
    "encodings"
)  # fmt: skip
"""Folders in the library that hold tests, installed packages, or generated modules."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A source of documents, checked as far as possible without reading all of them."""

    name: str
    """The name that the user gave, with aliases resolved: `leval:tpo` for `leval:toefl`."""
    origin: str
    """Where it is read from: `local leval/tpo.jsonl` (under $LONGEVAL_DATA), `hub ID@COMMIT`, `path P`, …"""
    default_docs: int | None
    """Number of documents if the user gives none; None: all."""
    note: str | None = None
    """A note about which files of a folder are read, if users may not expect it."""
    documents: Callable[[], Iterator[Text]]
    """Yields the documents lazily, always in the same order. Raises LongEvalError at a document that can't be read (see
    `readers`, `hub`)."""

    @property
    def is_local(self) -> bool:
        """Whether it is read from this machine: a path, a local copy of a corpus, the standard library."""
        return not self.origin.startswith("hub ")


def open_source(name: str, *, text_field: str | None = None) -> Source:
    """Finds a source and checks that it can be read, including its first document (on the hub: that it exists).

    Args:
        name: A corpus (`gov_report`, `leval:sci_fi`), `stdlib`, a data set of the hub (`hub:OWNER/NAME:SPLIT`), the
            path of a file or folder, or a pattern of paths.
        text_field: Field that holds the text, for files of records (JSON, tables, parquet, Arrow) given by path, and
            for data sets of the hub.

    Raises:
        LongEvalError: The name is unknown, there is no copy, the file can't be read, or `text_field` would be ignored.
    """
    catalogue = load_catalogue()
    canonical = catalogue.aliases.get(name, name)
    if canonical == STDLIB or canonical in catalogue.corpora:
        if text_field is not None:
            raise LongEvalError(
                f"--text-field {text_field}: {name} has no field to choose",
                "It is for hub:… and for JSON, tables and parquet files given by their path; leave it out.",
            )
        if canonical == STDLIB:
            list_modules()
            origin = f"Python {platform.python_version()} standard library"
            return Source(name=STDLIB, origin=origin, default_docs=_STDLIB_DOCS, documents=read_stdlib)
        return _open_corpus(catalogue.corpora[canonical])
    if name.startswith(PREFIX):
        hub = parse_hub_name(name, text_field)
        ways = "Or give a copy of its files with --data PATH --text-field FIELD."
        return _open_hub(hub, name=name, default_docs=_HUB_DOCS, missing="", ways=ways)
    if _looks_like_path(name):
        return _open_path(name, text_field)
    known = [STDLIB, *catalogue.corpora, *catalogue.aliases]
    raise LongEvalError(f"--data {name}: unknown", f"{did_you_mean(name, known)} Or give a file, folder or pattern.")


def local_sources() -> list[str]:
    """Names of the sources on this machine. No document is opened, and no network is used.

    Raises:
        LongEvalError: LONGEVAL_DATA is not a folder, or a corpus file is wrong.
    """
    return [STDLIB, *(corpus.name for corpus in load_catalogue().corpora.values() if _local_copy(corpus) is not None)]


def _open_corpus(corpus: Corpus) -> Source:
    """The source of a named corpus: its local copy if there is one, else the hub."""
    copy = _local_copy(corpus)
    if copy is not None:
        path = os.path.join(str(_data_root()), copy.path)
        return _files(path, copy.field, name=corpus.name, origin=f"local {copy.path}", default_docs=corpus.docs)
    hub = corpus.hub
    if hub is None:
        raise LongEvalError(f"--data {corpus.name}: {_no_copy(corpus)}", _other_ways(corpus))
    missing = f"{_no_copy(corpus)}, and "
    return _open_hub(hub, name=corpus.name, default_docs=corpus.docs, missing=missing, ways=_other_ways(corpus))


def _open_hub(hub: HubDataset, *, name: str, default_docs: int | None, missing: str, ways: str) -> Source:
    """A data set of the hub.

    Args:
        hub: The data set.
        name: As the user named it.
        default_docs: Documents to take where the user doesn't say.
        missing: What messages say of places that were looked at before.
        ways: How else to get the text.
    """
    try:
        pinned = pin(hub)
    except HubUnavailableError as error:
        raise LongEvalError(
            f"--data {name}: {missing}hub data set {hub.id}: {error}", f"{error.remedy} {ways}"
        ) from error
    told = (
        f"--data {name}: read is what the hub's local cache holds of commit {pinned.commit[:12]}, which may not be all "
        f"of it; {pinned.why}"
    )
    return Source(
        name=name,
        origin=f"hub {hub.id}@{pinned.commit}",
        default_docs=default_docs,
        note=told if pinned.folder is not None else None,
        documents=partial(read_hub_documents, hub, pinned),
    )


def _open_path(path: str, text_field: str | None) -> Source:
    """Files of the user's."""
    expanded = os.path.expanduser(path)
    if text_field is not None and not any(format_of(file).kind == "records" for file in check_path(expanded).files):
        raise LongEvalError(
            f"--text-field {text_field}: {path} is plain text and has no fields",
            "It is for JSON, .csv, .tsv, .parquet and .arrow; leave it out.",
        )
    return _files(expanded, text_field, name=path, origin=f"path {path}", default_docs=None)


def _files(path: str, text_field: str | None, *, name: str, origin: str, default_docs: int | None) -> Source:
    """The source of local files. The first document is read now, so that errors are found early."""
    note = check_path(path).note
    read = partial(read_documents, path, text_field=text_field)
    next((document for document in read() if not document.missing), None)
    return Source(name=name, origin=origin, default_docs=default_docs, note=note, documents=read)


def _local_copy(corpus: Corpus) -> LocalCandidate | None:
    """The first existing copy of the corpus under $LONGEVAL_DATA, or None."""
    root = _data_root()
    places = corpus.local if root is not None else ()
    return next((place for place in places if os.path.exists(os.path.join(str(root), place.path))), None)


def _data_root() -> str | None:
    """The folder $LONGEVAL_DATA, or None if it is not set; raises LongEvalError if it is not a folder."""
    root = os.environ.get("LONGEVAL_DATA")
    if not root:
        return None
    root = os.path.expanduser(root)
    if not os.path.isdir(root):
        raise LongEvalError(f"LONGEVAL_DATA={root}: not a folder", "Set it to a folder with local copies, or unset it.")
    return root


def _no_copy(corpus: Corpus) -> str:
    """A clause that there is no local copy, with the places that were searched."""
    root = _data_root()
    if root is None:
        return "no local copy (LONGEVAL_DATA is not set)"
    return f"no local copy in LONGEVAL_DATA={root} (looked for {_places(corpus)})"


def _places(corpus: Corpus) -> str:
    return " or ".join(candidate.path for candidate in corpus.local) or "none: it has no place there"


def _other_ways(corpus: Corpus) -> str:
    """A remedy: ways to get the same or another text without the hub."""
    ways = "Give a file or folder with --data PATH, or use --data stdlib, which every machine has."
    if not corpus.local:
        return ways
    if _data_root() is not None:
        return f"Or put a copy there. {ways}"
    return f"Or put a copy into a folder as {_places(corpus)} and set LONGEVAL_DATA to that folder. {ways}"


def _looks_like_path(name: str) -> bool:
    expanded = os.path.expanduser(name)
    return os.path.exists(expanded) or is_pattern(expanded) or os.sep in name or name.startswith("~") or "." in name


def list_modules(folder: str | None = None) -> list[str]:
    """Relative paths of the NUM_MODULES longest modules of the standard library, longest (in bytes) first.

    Ties are sorted by name. Tests, installed packages and generated modules are left out.

    Raises:
        LongEvalError: This Python has only compiled or zipped modules.
    """
    folder = folder or sysconfig.get_path("stdlib")
    found: list[tuple[int, str]] = []
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if _is_library(name)]
        for name in names:
            path = os.path.join(parent, name)
            module = os.path.relpath(path, folder).replace(os.sep, "/")
            if name.endswith(".py") and not name.startswith("_sysconfigdata") and module not in _TABLES:
                found.append((-os.path.getsize(path), module))
    if not found:
        raise LongEvalError(
            f"--data stdlib: no sources in {folder}",
            "This Python ships none: give a text file or folder with --data PATH.",
        )
    return [name for _, name in sorted(found)[:NUM_MODULES]]


def read_stdlib(folder: str | None = None) -> Iterator[Text]:
    """Yields the modules of `list_modules` in the same order."""
    folder = folder or sysconfig.get_path("stdlib")
    for name in list_modules(folder):
        with open(os.path.join(folder, name), encoding="utf-8", newline="") as file:
            yield Text(name=name, text=file.read())


def _is_library(folder: str) -> bool:
    """Whether a folder holds modules that belong to the library."""
    return (
        folder not in _NOT_READ
        and not folder.startswith((".", "config-"))
        and not folder.endswith(("_test", "-packages"))
    )
