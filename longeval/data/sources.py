"""From what the user typed after `--data` to documents: a corpus by name, `stdlib`, or a path.

A named corpus is read from its local copy under $LONGEVAL_DATA if there is one, and from the hub otherwise. A name wins
over a file of the same name in the current folder; `./name` is that file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from longeval.data.corpora import Catalogue, Corpus, load_catalogue
from longeval.data.documents import Document as Document
from longeval.data.files import check_path, has_fields, read_documents
from longeval.data.folders import Chosen
from longeval.data.hub import HubUnavailableError, read_hub_documents, resolve_revision
from longeval.data.stdlib import list_modules, read_stdlib, stdlib_origin
from longeval.errors import LongEvalError, did_you_mean

STDLIB = "stdlib"
_STDLIB_DOCS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Documents that are there to be read, checked as far as that goes without reading them all."""

    name: str
    """As the user named it, aliases resolved: `leval:tpo` for `leval:toefl`."""
    origin: str
    """Where it is really read from: `local leval/tpo.jsonl` (under $LONGEVAL_DATA), `hub ID@COMMIT`, `path P`, …"""
    default_docs: int | None
    """Documents to take where the user doesn't say; null: all."""
    note: str | None = None
    """What is read of a folder and what isn't, where that may surprise."""
    read: Callable[[], Iterator[Document]]
    """Starts reading from the first document."""

    def documents(self) -> Iterator[Document]:
        """Yields the documents, lazily, in an order that is always the same.

        Raises:
            LongEvalError: While iterating, at a document that can't be read (see `files`, `hub`).
        """
        return self.read()


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceInfo:
    """A source that has a name, for listings; nothing was opened and no network used."""

    name: str
    """What the user types."""
    description: str
    """One line."""
    source: str
    """Who made it."""
    license: str
    """Licence of the texts."""
    local: str | None
    """Path of the copy that would be read; null if there is none."""
    hub_id: str | None
    """Data set on the hub that would be read otherwise."""


def open_source(name: str, *, text_field: str | None = None) -> Source:
    """Finds a source and checks that it can be read, its first document included (on the hub: that the hub has it).

    Args:
        name: A corpus (`gov_report`, `leval:sci_fi`), `stdlib`, or the path of a file or folder.
        text_field: Field that holds the text, for files of records (JSON, tables, parquet, Arrow) given by path.

    Raises:
        LongEvalError: If the name is unknown, no copy is to be had, the file can't be read, or `text_field` would be
            ignored.
    """
    catalogue = load_catalogue()
    canonical = catalogue.aliases.get(name, name)
    if canonical == STDLIB or canonical in catalogue.corpora:
        if text_field is not None:
            raise LongEvalError(
                f"--text-field {text_field}: {name} has no field to choose",
                "It is for JSON, tables and parquet files given by their path; leave it out.",
            )
        if canonical == STDLIB:
            list_modules()
            return Source(name=STDLIB, origin=stdlib_origin(), default_docs=_STDLIB_DOCS, read=read_stdlib)
        return _open_corpus(catalogue.corpora[canonical])
    if _looks_like_path(name):
        return _open_path(name, text_field)
    raise LongEvalError(f"--data {name}: unknown", f"{did_you_mean(name, _names(catalogue))} Or give a file or folder.")


def list_sources() -> tuple[SourceInfo, ...]:
    """All sources that have a name, and whether a local copy is there.

    Raises:
        LongEvalError: If LONGEVAL_DATA is set but is no folder, or a corpus file is broken.
    """
    infos = [
        SourceInfo(
            name=STDLIB,
            description="The longest modules of Python's standard library",
            source=stdlib_origin(),
            license="PSF-2.0",
            local="part of Python",
            hub_id=None,
        )
    ]
    for corpus in load_catalogue().corpora.values():
        copy = _local_copy(corpus)
        infos.append(
            SourceInfo(
                name=corpus.name,
                description=corpus.description,
                source=corpus.source,
                license=corpus.license,
                local=None if copy is None else copy.path,
                hub_id=None if corpus.hub is None else corpus.hub.id,
            )
        )
    return tuple(infos)


@dataclass(frozen=True, kw_only=True, slots=True)
class _LocalCopy:
    """A corpus's copy on this machine."""

    path: str
    """Where it lies."""
    below: str
    """The same, relative to $LONGEVAL_DATA."""
    field: str | None
    """Field that holds the text."""


def _open_corpus(corpus: Corpus) -> Source:
    copy = _local_copy(corpus)
    if copy is not None:
        chosen, read = _checked_reader(copy.path, copy.field)
        return Source(
            name=corpus.name,
            origin=f"local {copy.below}",
            default_docs=corpus.docs,
            note=chosen.note,
            read=read,
        )
    hub = corpus.hub
    if hub is None:
        raise LongEvalError(f"--data {corpus.name}: {_no_copy(corpus)}", _other_ways(corpus))
    try:
        commit = resolve_revision(hub)
    except HubUnavailableError as error:
        raise LongEvalError(
            f"--data {corpus.name}: {_no_copy(corpus)}, and hub data set {hub.id}: {error}",
            f"{error.remedy} {_other_ways(corpus)}",
        ) from error
    return Source(
        name=corpus.name,
        origin=f"hub {hub.id}@{commit}",
        default_docs=corpus.docs,
        read=lambda: read_hub_documents(hub, commit),
    )


def _open_path(path: str, text_field: str | None) -> Source:
    expanded = os.path.expanduser(path)
    if text_field is not None and not has_fields(check_path(expanded)):
        raise LongEvalError(
            f"--text-field {text_field}: {path} is plain text and has no fields",
            "It is for JSON, .csv, .tsv, .parquet and .arrow; leave it out.",
        )
    chosen, read = _checked_reader(expanded, text_field)
    return Source(name=path, origin=f"path {path}", default_docs=None, note=chosen.note, read=read)


def _checked_reader(path: str, text_field: str | None) -> tuple[Chosen, Callable[[], Iterator[Document]]]:
    """Reads the first document, so that what is wrong from the start is said before anything is computed."""
    chosen = check_path(path)
    next(read_documents(path, text_field=text_field), None)
    return chosen, lambda: read_documents(path, text_field=text_field)


def _local_copy(corpus: Corpus) -> _LocalCopy | None:
    root = _data_root()
    if root is not None:
        for candidate in corpus.local:
            path = os.path.join(root, candidate.path)
            if os.path.exists(path):
                return _LocalCopy(path=path, below=candidate.path, field=candidate.field)
    return None


def _data_root() -> str | None:
    """$LONGEVAL_DATA; set to something that is no folder, it would be ignored, which is an error."""
    root = os.environ.get("LONGEVAL_DATA")
    if not root:
        return None
    root = os.path.expanduser(root)
    if not os.path.isdir(root):
        raise LongEvalError(f"LONGEVAL_DATA={root}: not a folder", "Set it to a folder with local copies, or unset it.")
    return root


def _no_copy(corpus: Corpus) -> str:
    root = _data_root()
    if root is None:
        return "no local copy (LONGEVAL_DATA is not set)"
    return f"no local copy in LONGEVAL_DATA={root} (looked for {_places(corpus)})"


def _places(corpus: Corpus) -> str:
    return " or ".join(candidate.path for candidate in corpus.local) or "none: it has no place there"


def _other_ways(corpus: Corpus) -> str:
    """How to get the same text, or another, without the hub."""
    ways = "Give a file or folder with --data PATH, or use --data stdlib, which every machine has."
    if not corpus.local:
        return ways
    if _data_root() is not None:
        return f"Or put a copy there. {ways}"
    return f"Or put a copy into a folder as {_places(corpus)} and set LONGEVAL_DATA to that folder. {ways}"


def _names(catalogue: Catalogue) -> list[str]:
    return [STDLIB, *catalogue.corpora, *catalogue.aliases]


def _looks_like_path(name: str) -> bool:
    return os.path.exists(os.path.expanduser(name)) or os.sep in name or name.startswith("~") or "." in name
