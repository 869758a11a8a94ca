"""Streams text documents from the Hugging Face hub, from plain data files. Loading scripts are never run.

A source's commit is resolved before the first document is read, so that its origin states exactly what was read, and an
unreachable hub is noticed immediately. `datasets` reads splits (streaming); our reader reads single JSON-lines files.
"""

from __future__ import annotations

from collections.abc import Iterator

from longeval.data.corpora import HubDataset
from longeval.data.documents import Growth, Text, TextField
from longeval.data.readers import json_line_texts
from longeval.errors import LongEvalError, reason

_TIMEOUT_S = 10.0
_CLIENTS = {"aiohttp", "datasets", "fsspec", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3"}


class HubUnavailableError(Exception):
    """The hub can't provide a data set. `str()` gives the reason, and `remedy` a remedy."""

    def __init__(self, reason: str, remedy: str) -> None:
        self.remedy = remedy
        super().__init__(reason)


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


def read_hub_documents(hub: HubDataset, commit: str) -> Iterator[Text]:
    """Yields a data set's documents in its order, at `commit` (see `resolve_revision`).

    Raises:
        LongEvalError: While iterating: the connection breaks, or a record has no text in `hub.field`.
    """
    try:
        yield from (_read_split(hub, commit) if hub.file is None else _read_file(hub, commit))
    except LongEvalError:
        raise
    except Exception as error:
        unavailable = _explain(hub, error)
        raise LongEvalError(f"hub data set {hub.id}: {unavailable}", f"Run it again. {unavailable.remedy}") from error


def _read_split(hub: HubDataset, commit: str) -> Iterator[Text]:
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.load_dataset(hub.id, name=hub.config, split=hub.split, revision=commit, streaming=True)
    field = TextField(f"hub data set {hub.id}", hub.field)
    for number, row in enumerate(rows, start=1):
        yield Text(name=f"{hub.split}#{number}", text=field.text_of(row, f"row {number}"))


def _read_file(hub: HubDataset, commit: str) -> Iterator[Text]:
    from huggingface_hub import HfFileSystem

    assert hub.file is not None
    with HfFileSystem().open(f"datasets/{hub.id}/{hub.file}", "rb", revision=commit) as lines:
        path, name = f"hub data set {hub.id}, {hub.file}", hub.file.rsplit("/", 1)[-1]
        for number, text in json_line_texts(lines, path, TextField(path, hub.field), Growth(path, None)):
            yield Text(name=f"{name}#{number}", text=text)


def _explain(hub: HubDataset, error: Exception) -> HubUnavailableError:
    """Explains an error of the hub's clients; any other error is a bug and is raised again."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/datasets/{hub.id}"
    if isinstance(error, errors.GatedRepoError):
        return HubUnavailableError("it is gated", f"Accept its licence at {page}, then run hf auth login.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubUnavailableError("the hub is switched off", "Unset HF_HUB_OFFLINE.")
    if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError)):
        return HubUnavailableError("the hub doesn't have it (any more), or not for you", f"Look at {page}.")
    from_client = any(base.__module__.partition(".")[0] in _CLIENTS for base in type(error).__mro__)
    if not (from_client or isinstance(error, OSError)):
        raise error
    return HubUnavailableError(f"the hub can't be reached ({reason(error)})", "Check the network.")
