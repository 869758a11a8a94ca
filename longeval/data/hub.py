"""Documents from the Hugging Face hub: text only, streamed, from plain data files (a loading script is never run).

A source's revision is settled before the first document is read, so that its origin says exactly what was read, and an
unreachable hub is noticed at once. Splits are read by `datasets` (streaming), single JSON-lines files by our reader.
"""

from __future__ import annotations

from collections.abc import Iterator

from longeval.data.corpora import HubDataset
from longeval.data.documents import Growth, Text, TextField, some_with_text
from longeval.data.readers import json_line_texts
from longeval.errors import LongEvalError, reason

_TIMEOUT_S = 10.0
_CLIENTS = {"aiohttp", "datasets", "fsspec", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3"}


class HubUnavailableError(Exception):
    """The hub can't serve a data set; `str()` is the reason, `remedy` what may help."""

    def __init__(self, reason: str, remedy: str) -> None:
        self.remedy = remedy
        super().__init__(reason)


def resolve_revision(hub: HubDataset) -> str:
    """Returns the commit that `hub.revision` (default: main) stands for; asks the hub.

    Raises:
        HubUnavailableError: If the hub can't be reached, or doesn't give this data set to this user.
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
        LongEvalError: While iterating, if the connection breaks or a record has no text in `hub.field`.
    """
    try:
        read = _read_split if hub.file is None else _read_file
        yield from some_with_text(read(hub, commit), f"hub data set {hub.id}")
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
        where = f"row {number}"
        yield Text.of_record(f"{hub.split}#{number}", field.checked(row[field.choose(list(row), where)], where))


def _read_file(hub: HubDataset, commit: str) -> Iterator[Text]:
    from huggingface_hub import HfFileSystem

    assert hub.file is not None
    with HfFileSystem().open(f"datasets/{hub.id}/{hub.file}", "rb", revision=commit) as lines:
        path, name = f"hub data set {hub.id}, {hub.file}", hub.file.rsplit("/", 1)[-1]
        for number, text in json_line_texts(lines, path, TextField(path, hub.field), Growth(path, None)):
            yield Text.of_record(f"{name}#{number}", text)


def _explain(hub: HubDataset, error: Exception) -> HubUnavailableError:
    """Says what an error of the hub's clients means; any other error is a bug and is raised again."""
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
