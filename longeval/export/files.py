"""Which files of a model travel into an export: weights, tokenizer and other plain data, and nothing that can run.

Python files, pickles and weights of another kind stay behind. So do files that would make an engine take another path
than `config.json`: Mistral's `params.json` and consolidated weights (vLLM prefers them), and adapters.
"""

from __future__ import annotations

import os
from typing import Any

from longeval.errors import reason
from longeval.models.files import local_folder
from longeval.models.folder import weight_files
from longeval.models.hub import HubSnapshot, cached_weights, open_hub, unreachable_hub
from longeval.models.library import quiet_transformers
from longeval.models.resolve import ModelRef

WRITTEN = ("config.json", "longeval.json")
"""Files that the export writes itself."""

LIMITS = ("tokenizer_config.json", "generation_config.json")
"""Files that may hold a limit on length; see `raised_limit`."""

_DATA = (".json", ".jinja", ".md", ".model", ".tiktoken", ".txt", ".vocab", ".bpe")
_RUNS = (".py", ".pyc", ".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".so", ".sh")
_OTHER_PATHS = ("params.json", "adapter_config.json", "origin.json")
_TERMS = ("license", "licence", "notice", "copying", "terms", "use_policy")
_INDEX = "model.safetensors.index.json"


def travels(name: str) -> bool:
    """Whether a file at the top of a model's folder is plain data that belongs to it; weights aside."""
    lower = name.lower()
    if name in (*WRITTEN, *_OTHER_PATHS, _INDEX) or lower.endswith(_RUNS) or name.startswith("."):
        return False
    return lower.endswith(_DATA) or lower.startswith("tokenizer") or any(word in lower for word in _TERMS)


def config_path(ref: ModelRef) -> str:
    """Returns the path of the model's own `config.json`; of a hub model nothing else is fetched for it."""
    folder = local_folder(ref)
    return os.path.join(folder, "config.json") if folder is not None else open_hub(ref).config_path


def source_folder(ref: ModelRef) -> str:
    """Returns a local folder with all of a model's files; those of a hub model are fetched if need be.

    Raises:
        LongEvalError: If they can't be had.
    """
    folder = local_folder(ref)
    if folder is not None:
        return folder
    snapshot = open_hub(ref)
    folder = os.path.dirname(snapshot.config_path)
    if not snapshot.local_only:
        _fetch(ref, snapshot)
    elif not cached_weights(snapshot.hub_id, snapshot.commit):
        raise unreachable_hub(snapshot.hub_id, ref.name, "its weights were never downloaded")
    return folder


def file_names(folder: str) -> list[str]:
    """Names of the files of a model's folder that travel, sorted."""
    weights = weight_files(folder)
    names = {name for name in os.listdir(folder) if travels(name) and os.path.isfile(os.path.join(folder, name))}
    if weights != ["model.safetensors"]:
        names.add(_INDEX)
    return sorted(names | set(weights))


def _fetch(ref: ModelRef, snapshot: HubSnapshot) -> None:
    """Downloads what travels of a hub model into the hub's cache."""
    from huggingface_hub import HfApi, errors, hf_hub_download

    try:
        with quiet_transformers():
            listed = HfApi().list_repo_files(snapshot.hub_id, revision=snapshot.commit)
            names = [name for name in listed if "/" not in name and travels(name)]
            if "model.safetensors" in listed:
                names.append("model.safetensors")
            else:
                index = hf_hub_download(snapshot.hub_id, _INDEX, revision=snapshot.commit)
                names += weight_files(os.path.dirname(index))
            for name in names:
                hf_hub_download(snapshot.hub_id, name, revision=snapshot.commit)
    except (errors.HfHubHTTPError, errors.EntryNotFoundError, OSError) as error:
        raise unreachable_hub(snapshot.hub_id, ref.name, reason(error)) from error


def raised_limit(name: str, settings: dict[str, Any], *, native: int, target: int) -> dict[str, Any] | None:
    """Settings of a tokenizer or of generation with the target length in place of a smaller limit; None if none is.

    vLLM serves no more than the tokenizer's `model_max_length`. `generate` stops at `max_length`, which some models
    (Llama 2) set to their native length; a smaller one is somebody's choice and stays.
    """
    key, least = {"tokenizer_config.json": ("model_max_length", 1), "generation_config.json": ("max_length", native)}[
        name
    ]
    limit = settings.get(key)
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not least <= limit < target:
        return None
    return settings | {key: target}
