"""Opens a model on the hub: finds its commit, and explains why it can't be read.

Once per process it is checked whether the hub answers, because the hub's client retries an unreachable host for half a
minute. If it doesn't answer, models are read from the hub's local cache.
"""

from __future__ import annotations

import functools
import os
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

from longeval.errors import LongEvalError, reason
from longeval.models.folder import ADAPTER_CONFIG, CONFIG, INDEX, ONLY_SAFETENSORS, WHOLE, adapter_remedy, weight_files

if TYPE_CHECKING:
    from longeval.models.resolve import ModelRef

_PROBE_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class HubSnapshot:
    """One commit of a model on the hub."""

    hub_id: str
    commit: str
    """Full commit id; all files of the model are read at this commit."""
    config_path: str
    """Path of the downloaded `config.json`."""
    local_only: bool
    """Whether nothing can be downloaded, because the hub is switched off or unreachable."""
    files: tuple[str, ...] = ()
    """Names of the model's known files."""


@functools.cache
def hub_reachable(timeout_s: float = _PROBE_S) -> str | None:
    """Checks once per process whether the hub answers.

    Returns:
        None if it answered, even with an error; otherwise the reason in a few words.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():  # also TRANSFORMERS_OFFLINE
        return "switched off by HF_HUB_OFFLINE"
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310 (the hub's own setting)
    try:
        urllib.request.urlopen(request, timeout=timeout_s).close()  # noqa: S310 (as above)
    except urllib.error.HTTPError:
        return None  # it answered
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):
            return None  # a server answered; the hub's client has its own certificate settings
        return f"{constants.ENDPOINT}: {error.reason}"
    except (OSError, ValueError) as error:
        return f"{constants.ENDPOINT}: {reason(error)}"
    return None


@functools.cache
def open_hub(ref: ModelRef) -> HubSnapshot:
    """Finds the commit of a hub model by fetching its `config.json`, once per process.

    Raises:
        LongEvalError: The hub is unreachable and the model is not in its local cache; or the model is gated, doesn't
            exist, or has no such revision, no config, or no safetensors.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    hub_id, revision, name = ref.location, ref.revision, ref.name
    unreachable = hub_reachable()
    local_only = unreachable is not None
    page = f"{constants.ENDPOINT}/{hub_id}"
    try:
        path = hf_hub_download(hub_id, CONFIG, revision=revision, local_files_only=local_only)
    except errors.GatedRepoError as error:
        raise LongEvalError(
            f"--model {name}: {hub_id} is gated{f' ({ref.licence} licence)' if ref.licence else ''}",
            f"Accept its licence at {page} with your account, then log in with `hf auth login` or set HF_TOKEN.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise LongEvalError(
            f"--model {name}: the hub has no public model {hub_id}",
            "Check the spelling. If it is private, log in with `hf auth login` or set HF_TOKEN.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise LongEvalError(
            f"--revision {revision}: {hub_id} has no such branch, tag or commit", f"See {page}/tree/main."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise unreachable_hub(hub_id, name, unreachable or _cause(error)) from error
    except errors.EntryNotFoundError as error:
        is_adapter = ADAPTER_CONFIG in _listed(hub_id, revision)
        raise LongEvalError(
            f"--model {name}: {hub_id} has no config.json, so it is not a transformers model",
            adapter_remedy(hub_id) if is_adapter else f"See {page}.",
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise unreachable_hub(hub_id, name, _cause(error)) from error
    folder = os.path.dirname(path)
    commit = os.path.basename(folder)
    files = os.listdir(folder) if local_only else _listed(hub_id, commit)
    # Loading accepts only safetensors; this check finds missing ones early.
    if not local_only and files and WHOLE not in files and INDEX not in files:
        raise LongEvalError(
            f"--model {name}: {hub_id} has no safetensors weights",
            f"{ONLY_SAFETENSORS} Look for a branch or copy of the model with safetensors (--revision), or, if you "
            "trust it, convert it and give the folder.",
        )
    return HubSnapshot(hub_id=hub_id, commit=commit, config_path=path, local_only=local_only, files=tuple(files))


def cached_weights(hub_id: str, revision: str | None = None) -> bool:
    """Whether the hub's local cache holds all weights of the model, without network access."""
    from huggingface_hub import try_to_load_from_cache

    def cached(file: str) -> str | None:
        path = try_to_load_from_cache(hub_id, file, revision=revision)
        return path if isinstance(path, str) else None

    if cached(WHOLE):
        return True
    index = cached(INDEX)
    return index is not None and all(cached(shard) for shard in weight_files(os.path.dirname(index)))


def unreachable_hub(hub_id: str, name: str, why: str) -> LongEvalError:
    """The error for a hub that can't be reached; its remedy lists other ways to get a model."""
    from huggingface_hub import constants

    return LongEvalError(
        f"--model {name}: {hub_id} is not in the hub's local cache ({constants.HF_HUB_CACHE}), and the hub can't be "
        f"reached ({why.rstrip('.')})",
        "Use a local folder (--model /path/to/model), a .gguf file, a cache copied from a machine with access "
        f"(HF_HOME; `hf download {hub_id}` fills it), or the embedded model: --model smollm2-135m-q4.",
    )


def _listed(hub_id: str, commit: str | None) -> list[str]:
    """Names of a model's files on the hub; empty if it doesn't list them."""
    from huggingface_hub import HfApi, errors

    try:
        return list(HfApi().list_repo_files(hub_id, revision=commit))
    except (errors.HfHubHTTPError, OSError):
        return []


def _cause(error: BaseException) -> str:
    """The reason of the first error in a chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return reason(error)
