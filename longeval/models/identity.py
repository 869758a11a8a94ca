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
from longeval.models.gguf.folder import gguf_digest
from longeval.models.hub import open_hub
from longeval.models.resolve import weight_files

if TYPE_CHECKING:
    from longeval.models.resolve import ModelRef

_NO_TOKENIZER = (
    *(".safetensors", ".safetensors.index.json", ".gguf", ".ggml", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt"),
    *(".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".npz", ".tflite", ".mlmodel", ".pkl", ".pickle", ".md"),
)
_INDEX = "model.safetensors.index.json"
QUANTISATION_FILE = "hf_quant_config.json"
"""Where ModelOpt writes how it quantised a model, if its `config.json` doesn't say: vLLM reads it."""


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
        return f"gguf:{gguf_digest(ref.location)}"
    return f"sha256:{_folder_digest(ref.location)}"


def tokenizer_files(ref: ModelRef) -> str:
    """Returns the identity of all files that a tokenizer may have read: those of a folder that are no weights."""
    if ref.kind != "folder":
        return weights_digest(ref)
    names = [
        entry.name
        for entry in os.scandir(ref.location)
        if entry.is_file() and not entry.name.startswith(".") and not entry.name.lower().endswith(_NO_TOKENIZER)
    ]
    return _digest_of(ref.location, set(names) - {"config.json", "generation_config.json"})


def _folder_digest(folder: str) -> str:
    """SHA-256 over the lines `name digest` of config, index, weights and Python files, sorted by name."""
    names = {"config.json", *weight_files(folder)}
    if _INDEX not in names and "model.safetensors" not in names:
        names.add(_INDEX)
    # ModelOpt models state their quantisation in this file.
    names |= {QUANTISATION_FILE} & set(os.listdir(folder))
    # Code of the model's own decides what it computes, where it is trusted to run.
    names |= {name for name in os.listdir(folder) if name.endswith(".py")}
    return _digest_of(folder, names)


def _digest_of(folder: str, names: set[str]) -> str:
    """SHA-256 over the lines `name digest` of files, sorted by name."""
    lines = [f"{name} {file_digest(os.path.join(folder, name))}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
