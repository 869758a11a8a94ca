"""Where a model's files are on this machine, and which weights they are: what a cell's id says of the model.

Weights are told without loading them. A hub model is its commit; a folder is the content of its config and its
safetensors; a GGUF is the content of the file. Renaming or moving a folder doesn't change what it is.
"""

from __future__ import annotations

import os

from longeval.cache import files_digest
from longeval.models.embedded import EMBEDDED_MODELS, embedded_folder, embedded_path
from longeval.models.folder import CONFIG, INDEX, WHOLE, weight_files
from longeval.models.gguf.folder import cached_folder, converted_folder, is_whole
from longeval.models.gguf.header import gguf_digest
from longeval.models.hub import cached_weights, open_hub
from longeval.models.resolve import ModelRef

QUANTISATION_FILE = "hf_quant_config.json"
"""Where ModelOpt writes how it quantised a model, if its `config.json` doesn't say: vLLM reads it."""

_NO_TOKENIZER = (
    *(".safetensors", ".safetensors.index.json", ".gguf", ".ggml", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt"),
    *(".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".npz", ".tflite", ".mlmodel", ".pkl", ".pickle", ".md"),
)


def local_folder(ref: ModelRef) -> str | None:
    """Returns the folder with the model's config, safetensors and tokenizer, or None for a hub model.

    An embedded model is fetched and a GGUF converted if that hasn't happened yet (seconds to minutes, once).
    """
    if ref.kind == "embedded":
        return embedded_folder(ref.location)
    if ref.kind == "gguf":
        return converted_folder(ref.location, name=_gguf_name(ref), sha256=gguf_digest(ref.location))
    return ref.location if ref.kind == "folder" else None


def config_path(ref: ModelRef) -> str:
    """Returns the path of the model's own `config.json`; of a hub model nothing else is fetched for it."""
    folder = local_folder(ref)
    return os.path.join(folder, CONFIG) if folder is not None else open_hub(ref).config_path


def is_present(ref: ModelRef) -> bool:
    """Whether the model can be loaded without fetching or converting anything; asks no network."""
    if ref.kind == "embedded":
        return is_whole(embedded_path(ref.location))
    if ref.kind == "gguf":
        return is_whole(cached_folder(_gguf_name(ref), gguf_digest(ref.location)))
    return ref.kind == "folder" or cached_weights(ref.location, ref.revision)


def _gguf_name(ref: ModelRef) -> str:
    """What the folder that is made of a user's GGUF file begins with."""
    return f"gguf-{os.path.splitext(os.path.basename(ref.location))[0]}"


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
    weights, names = weight_files(ref.location), os.listdir(ref.location)
    counted = {CONFIG, *weights} | ({INDEX} if WHOLE not in weights else set())
    # ModelOpt models state their quantisation in a file of its own. Code of the model's own decides what it computes,
    # where it is trusted to run.
    counted |= {name for name in names if name == QUANTISATION_FILE or name.endswith(".py")}
    return f"sha256:{files_digest(ref.location, counted)}"


def tokenizer_files(ref: ModelRef) -> str:
    """Returns the identity of all files that a tokenizer may have read: those of a folder that are no weights."""
    if ref.kind != "folder":
        return weights_digest(ref)
    names = {
        entry.name
        for entry in os.scandir(ref.location)
        if entry.is_file() and not entry.name.startswith(".") and not entry.name.lower().endswith(_NO_TOKENIZER)
    }
    return files_digest(ref.location, names - {CONFIG, "generation_config.json"})
