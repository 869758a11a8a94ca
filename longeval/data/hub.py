"""Streams text documents from the Hugging Face hub, from plain data files. Loading scripts are never run.

A source's revision is settled before the first document is read, so that its origin says exactly what was read, and an
unreachable hub is noticed at once. Then the hub's local cache serves, if it has the data set. Splits are read by
`datasets` (streaming), single JSON-lines files by our reader.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from longeval.data.corpora import HubDataset
from longeval.data.documents import Growth, Text, TextField, some_with_text
from longeval.data.readers import json_line_texts
from longeval.errors import LongEvalError, check_word, reason

PREFIX = "hub:"
"""What a data set of the hub is named with: `hub:OWNER/NAME@REVISION:CONFIG:SPLIT`, all but the id optional."""

_NAME = re.compile(r"hub:(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^:]+))?(?:(?::(?P<config>[^:]+))?:(?P<split>[^:]+))?")
_PART = re.compile(r"(?P<before>.*)-(?P<number>\d{5,})-of-(?P<count>\d{5,})(?P<after>(?:\.\w+)*)")
"""The path of one of the files that a split was stored in."""

_TIMEOUT_S = 10.0
_CLIENTS = {"aiohttp", "datasets", "fsspec", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3"}
_PLAIN = ("arrow", "csv", "json", "parquet", "text")
"""Modules of `datasets` that read text from plain data files. Others unpack archives or decode what is no text."""


class HubUnavailableError(Exception):
    """The hub can't provide a data set. `str()` gives the reason, and `remedy` a remedy."""

    def __init__(self, reason: str, remedy: str, *, reached: bool = True) -> None:
        self.remedy = remedy
        self.reached = reached
        """Whether the hub itself said so."""
        super().__init__(reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class PinnedDataset:
    """One commit of a data set."""

    commit: str
    folder: str | None = None
    """Its files in the hub's local cache; None: they are read from the hub."""
    why: str | None = None
    """Why they are read from the cache."""


def parse_hub_name(name: str, text_field: str | None) -> HubDataset:
    """The data set that `hub:OWNER/NAME`, `hub:OWNER/NAME:SPLIT` or `hub:OWNER/NAME@REVISION:CONFIG:SPLIT` names."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise LongEvalError(
            f"--data {name}: not of the form hub:OWNER/NAME",
            "Write hub:OWNER/NAME, hub:OWNER/NAME:SPLIT or hub:OWNER/NAME:CONFIG:SPLIT; @REVISION may follow the name.",
        )
    return HubDataset(field=text_field, **found.groupdict())


def resolve_revision(hub: HubDataset) -> str:
    """Asks the hub for the commit of `hub.revision` (default: main).

    Raises:
        HubUnavailableError: The hub can't be reached, or doesn't provide this data set to this user.
    """
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(hub.id, revision=hub.revision, timeout=_TIMEOUT_S).sha
    except Exception as error:
        raise _explain(hub, error) from error
    assert commit is not None
    return str(commit)


def pin(hub: HubDataset) -> PinnedDataset:
    """Settles the commit as `resolve_revision` does; where the hub can't be reached, by what its local cache holds."""
    try:
        return PinnedDataset(commit=resolve_revision(hub))
    except HubUnavailableError as error:
        folder = None if error.reached else _cached(hub)
        if folder is None:
            raise
        return PinnedDataset(commit=os.path.basename(folder), folder=folder, why=str(error))


def _cached(hub: HubDataset) -> str | None:
    """The folder of a data set's files in the hub's local cache, called after their commit."""
    from huggingface_hub import errors, snapshot_download

    try:
        folder = snapshot_download(hub.id, repo_type="dataset", revision=hub.revision, local_files_only=True)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    return str(folder)


def read_hub_documents(hub: HubDataset, pinned: PinnedDataset) -> Iterator[Text]:
    """Yields a data set's documents in its order, at one commit (see `pin`).

    Raises:
        LongEvalError: While iterating, if there is no such configuration or split, the connection breaks, or a record
            has something else than text in the field; at the end if none has text.
    """
    try:
        read = _read_split if hub.file is None else _read_file
        yield from some_with_text(read(hub, pinned), f"hub data set {hub.id}")
    except LongEvalError:
        raise
    except Exception as error:
        unavailable = _explain(hub, error)
        raise LongEvalError(f"hub data set {hub.id}: {unavailable}", f"Run it again. {unavailable.remedy}") from error


def _read_split(hub: HubDataset, pinned: PinnedDataset) -> Iterator[Text]:
    split, rows = _split(hub, pinned)
    field = TextField(f"hub data set {hub.id}", hub.field)
    for number, row in enumerate(rows, start=1):
        where = f"row {number}"
        yield Text.of_record(f"{split}#{number}", field.checked(row[field.choose(list(row), where)], where))


def _split(hub: HubDataset, pinned: PinnedDataset) -> tuple[str, Any]:
    """The name and the rows of the split that is asked for; nothing is read yet."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    datasets.disable_progress_bars()
    hub_logging.set_verbosity(logging.ERROR)
    at: dict[str, Any] = {"path": pinned.folder or hub.id}
    if pinned.folder is None:
        at["revision"] = pinned.commit
    try:
        builder = datasets.load_dataset_builder(name=hub.config, **at)
    except (datasets.exceptions.DataFilesNotFoundError, datasets.data_files.EmptyDatasetError) as error:
        where = "there" if pinned.folder is None else f"in the hub's local cache ({pinned.folder}); {pinned.why}"
        remedy = f"With access to the hub, hf download --repo-type dataset {hub.id} fills the cache."
        raise LongEvalError(f"hub data set {hub.id}: no data files {where}", remedy) from error
    except ValueError as error:  # no such configuration, or none named where there are several
        problem = " ".join(str(error).split()).partition(" Example of")[0]
        raise LongEvalError(
            f"hub data set {hub.id}: {problem}", f"Name one with its split: --data {PREFIX}{hub.id}:CONFIG:SPLIT."
        ) from error
    if builder.name not in _PLAIN:
        raise LongEvalError(
            f"hub data set {hub.id}: is made of {builder.name} files, not of text",
            f"Data files of {', '.join(_PLAIN)} are read.",
        )
    _check_inside(hub, pinned, builder.config.data_files or {})
    if builder.name == "text":
        builder.config.sample_by = "document"  # a file is a document, not its lines
    splits = builder.as_streaming_dataset()
    if hub.split is None and len(splits) > 1:
        raise LongEvalError(
            f"hub data set {hub.id}: has the splits {', '.join(splits)}",
            f"Name one: --data {PREFIX}{hub.id}:{f'{hub.config}:' if hub.config else ''}{list(splits)[-1]}.",
        )
    split = next(iter(splits)) if hub.split is None else hub.split
    check_word(f"hub data set {hub.id}, split", split, splits)
    if pinned.folder is not None:
        _check_complete(hub, pinned, (builder.config.data_files or {}).get(split, ()))
    return split, splits[split]


def _check_complete(hub: HubDataset, pinned: PinnedDataset, files: Iterable[str]) -> None:
    """Raises LongEvalError where the cache holds only some parts of a split, as after a download that was broken off.

    Nothing but the names tells: `train-00001-of-00003.parquet` is one of three.
    """
    parts: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if found := _PART.fullmatch(file):
            whole = f"{found['before']}-*-of-{found['count']}{found['after']}"
            parts.setdefault((whole, int(found["count"])), set()).add(int(found["number"]))
    for (whole, count), there in parts.items():
        if len(there) < count:
            raise LongEvalError(
                f"hub data set {hub.id}: the hub's local cache holds {len(there)} of {count} parts of "
                f"{os.path.basename(whole)}; {pinned.why}",
                f"With access to the hub, hf download --repo-type dataset {hub.id} --revision {pinned.commit} "
                "gets the others.",
            )


def _check_inside(hub: HubDataset, pinned: PinnedDataset, files: Mapping[Any, Iterable[str]]) -> None:
    """Raises LongEvalError where a data set's card leads to files of this machine that aren't the data set's."""
    if pinned.folder is None:
        return
    folder = os.path.join(os.path.realpath(pinned.folder), "")
    for file in (file for split in files.values() for file in split):
        if not os.path.normpath(file).startswith(folder):
            raise LongEvalError(f"hub data set {hub.id}: its card names {file}, outside of it", "Don't use it.")


def _read_file(hub: HubDataset, pinned: PinnedDataset) -> Iterator[Text]:
    assert hub.file is not None
    with _open_file(hub, pinned) as lines:
        path, name = f"hub data set {hub.id}, {hub.file}", hub.file.rsplit("/", 1)[-1]
        for number, text in json_line_texts(lines, path, TextField(path, hub.field), Growth(path, None)):
            yield Text.of_record(f"{name}#{number}", text)


def _open_file(hub: HubDataset, pinned: PinnedDataset) -> Any:
    """A single file of a data set, opened for reading bytes."""
    if pinned.folder is not None:
        return open(os.path.join(pinned.folder, str(hub.file)), "rb")
    from huggingface_hub import HfFileSystem

    return HfFileSystem().open(f"datasets/{hub.id}/{hub.file}", "rb", revision=pinned.commit)


def _explain(hub: HubDataset, error: Exception) -> HubUnavailableError:
    """Explains an error of the hub's clients; any other error is a bug and is raised again."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/datasets/{hub.id}"
    if isinstance(error, errors.GatedRepoError):
        return HubUnavailableError("it is gated", f"Accept its licence at {page}, then run hf auth login.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubUnavailableError("the hub is switched off", f"Unset HF_HUB_OFFLINE. {_fill(hub)}", reached=False)
    if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError)):
        return HubUnavailableError("the hub doesn't have it (any more), or not for you", f"Look at {page}.")
    from_client = any(base.__module__.partition(".")[0] in _CLIENTS for base in type(error).__mro__)
    if not (from_client or isinstance(error, OSError)):
        raise error
    why = f"the hub can't be reached ({reason(error)})"
    return HubUnavailableError(why, f"Check the network. {_fill(hub)}", reached=False)


def _fill(hub: HubDataset) -> str:
    """How the cache gets a data set."""
    return f"Where there is access, hf download --repo-type dataset {hub.id} fills the hub's local cache (HF_HOME)."
