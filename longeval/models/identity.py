"""Which weights these are: the part of a cell's id that stands for the model.

Available without loading weights. A hub model is its commit; a folder is the content of its config and its
safetensors; a GGUF is the content of the file. Renaming or moving a folder doesn't change what it is.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from longeval.models.digests import file_digest
from longeval.models.embedded import EMBEDDED_MODELS
from longeval.models.hub import open_hub
from longeval.models.resolve import weight_files

if TYPE_CHECKING:
    from longeval.models.resolve import ModelRef

_INDEX = "model.safetensors.index.json"


def weights_digest(ref: ModelRef) -> str:
    """Returns the identity of a model's weights.

    Returns:
        `hub:ID@COMMIT`, `sha256:…` of a folder, or `gguf:…` with the SHA-256 of the file (also for an embedded model).

    Raises:
        LongEvalError: If a hub model can't be found (see `open_hub`).
        OSError: If a file can't be read.
    """
    if ref.kind == "hub":
        snapshot = open_hub(ref)
        return f"hub:{snapshot.hub_id}@{snapshot.commit}"
    if ref.kind == "embedded":
        return f"gguf:{EMBEDDED_MODELS[ref.location].gguf_sha256}"
    if ref.kind == "gguf":
        return f"gguf:{file_digest(ref.location)}"
    return f"sha256:{_folder_digest(ref.location)}"


def _folder_digest(folder: str) -> str:
    """SHA-256 over the lines `name digest` of config, index, weights and Python files, sorted by name."""
    names = {"config.json", *weight_files(folder)}
    if _INDEX not in names and "model.safetensors" not in names:
        names.add(_INDEX)
    # Code of the model's own decides what it computes, where it is trusted to run.
    names |= {name for name in os.listdir(folder) if name.endswith(".py")}
    lines = [f"{name} {file_digest(os.path.join(folder, name))}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
