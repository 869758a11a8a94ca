"""Resolves `--model NAME`, finds the model's files on this machine, and identifies its weights.

A name is a short name of the catalogue, a hub id or address, a local folder, a GGUF file, or an embedded model. Weights
are told without loading them: a hub model is its commit; a folder is the content of its config and its safetensors; a
GGUF is the content of the file. Renaming or moving a folder doesn't change what it is.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from longeval.cache import files_digest
from longeval.errors import LongEvalError, did_you_mean
from longeval.models.adapter import Adapter, find_adapter
from longeval.models.embedded import EMBEDDED_MODELS, embedded_folder, embedded_path
from longeval.models.folder import CONFIG, INDEX, WHOLE, check_folder, weight_files
from longeval.models.gguf.folder import cached_folder, converted_folder, is_whole
from longeval.models.gguf.header import gguf_digest, gguf_shards
from longeval.models.hub import cached_weights, open_hub
from longeval.values import hub_id

QUANTISATION_FILE = "hf_quant_config.json"
"""ModelOpt's file with the quantisation of a model, which vLLM reads if `config.json` doesn't state it."""

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@([\w./-]+))?")
"""Owner and name, and a revision behind an @."""
_NO_TOKENIZER = (
    *(".safetensors", ".safetensors.index.json", ".gguf", ".ggml", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt"),
    *(".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".npz", ".tflite", ".mlmodel", ".pkl", ".pickle", ".md"),
)
"""Suffixes of files that no tokenizer reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogEntry:
    """A short name of a model, from `catalog.yaml`."""

    name: str
    hub_id: str | None = None
    """`organisation/name` on the hub; None for an embedded model."""
    licence: str
    gated: bool = False
    """Whether the hub requires an accepted licence and a token."""
    parameters: int
    """Number of weights, embeddings included, rounded to three digits."""
    native_length: int
    """L in tokens."""
    note: str = ""
    """What is special about it, in one line."""


def _load_catalog() -> dict[str, CatalogEntry]:
    """Reads `catalog.yaml` beside this file."""
    with open(os.path.join(os.path.dirname(__file__), "catalog.yaml"), encoding="utf-8") as file:
        plain: dict[str, dict[str, Any]] = yaml.safe_load(file)
    return {
        name: CatalogEntry(name=name, parameters=entry.pop("millions") * 10**6, **entry)
        for name, entry in plain.items()
    }


CATALOG: Mapping[str, CatalogEntry] = _load_catalog()
"""All short names of models."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRef:
    """A model whose name was resolved; its files have not been opened."""

    name: str
    """The name that the user gave, which records and reports show."""
    kind: Literal["hub", "folder", "gguf", "embedded"]
    location: str
    """Hub id, or the absolute path of the folder or GGUF file; the short name of an embedded model."""
    revision: str | None = None
    """Branch, tag or commit on the hub; None: the hub's default."""
    licence: str | None = None
    """The licence, if it is in the catalogue."""
    adapter: Adapter | None = None
    """The adapter that is merged into its weights when they are loaded."""


def resolve(name: str, *, revision: str | None = None, adapter: str | None = None, weights: bool = True) -> ModelRef:
    """Resolves the name of a model without network access.

    A short name of the catalogue comes first, then what exists as a path, then `organisation/name` as a hub id, with
    `@revision` or without.

    Args:
        name: The value of `--model`.
        revision: The value of `--revision`: branch, tag or commit; only hub models have one.
        adapter: The value of `--adapter`; see `find_adapter`.
        weights: Whether a folder must hold weights; if False, its config.json is enough.

    Raises:
        LongEvalError: The name is unknown, the path doesn't exist or is not a model, a revision is given for a model
            that is not on the hub, or the adapter can't be used.
    """
    name = hub_id(name)
    ref = _recognise(name.strip(), revision, weights)
    if revision is not None and ref.kind != "hub":
        raise LongEvalError(
            f"--revision {revision}: {name} is not on the hub",
            "Leave --revision out; it chooses a branch, tag or commit.",
        )
    if revision not in (None, ref.revision):
        raise LongEvalError(f"--revision {revision}: {name} names another one", "Leave one of the two out.")
    return ref if adapter is None else dataclasses.replace(ref, adapter=find_adapter(adapter))


def _recognise(name: str, revision: str | None, weights: bool) -> ModelRef:
    """The ref of a name. Folders and files are checked, hub ids are not."""
    if name in CATALOG:
        entry = CATALOG[name]
        if entry.hub_id is None:
            return ModelRef(name=name, kind="embedded", location=name, licence=entry.licence)
        return ModelRef(name=name, kind="hub", location=entry.hub_id, revision=revision, licence=entry.licence)
    path = os.path.abspath(os.path.expanduser(name))
    if name and os.path.isdir(path):
        check_folder(path, name, weights=weights)
        return ModelRef(name=name, kind="folder", location=path)
    if name and os.path.isfile(path):
        if not path.lower().endswith(".gguf"):
            raise LongEvalError(
                f"--model {name}: is a file, but not a .gguf",
                "Give the folder that holds config.json and the safetensors.",
            )
        return ModelRef(name=name, kind="gguf", location=gguf_shards(path)[0])
    if "://" in name:
        raise LongEvalError(f"--model {name}: not an address of the hub", "Give https://huggingface.co/OWNER/NAME.")
    found = _HUB_ID.fullmatch(name)
    is_path = name.lower().endswith(".gguf") or name.startswith((".", "/", "~")) or name.count("/") > 1
    if is_path and (found is None or found[2] is None):
        raise LongEvalError(f"--model {name}: there is no such file or folder", "Check the path.")
    if found is not None:
        return ModelRef(name=name, kind="hub", location=found[1], revision=found[2] or revision)
    raise LongEvalError(
        f"--model {name}: unknown",
        f"{did_you_mean(name, CATALOG)} Or give a hub id (organisation/name), a model folder, or a .gguf file.",
    )


def local_folder(ref: ModelRef) -> str | None:
    """Returns the folder with the model's config, safetensors and tokenizer, or None for a hub model.

    The first call fetches an embedded model or converts a GGUF, which takes seconds to minutes.
    """
    if ref.kind == "embedded":
        return embedded_folder(ref.location)
    if ref.kind == "gguf":
        return converted_folder(ref.location, name=_gguf_name(ref), sha256=gguf_digest(ref.location))
    return ref.location if ref.kind == "folder" else None


def config_path(ref: ModelRef) -> str:
    """Returns the path of the model's `config.json`; for a hub model, only this file is fetched."""
    folder = local_folder(ref)
    return os.path.join(folder, CONFIG) if folder is not None else open_hub(ref).config_path


def is_present(ref: ModelRef) -> bool:
    """Whether the model can be loaded without fetching or converting anything."""
    if ref.kind == "embedded":
        return is_whole(embedded_path(ref.location))
    if ref.kind == "gguf":
        return is_whole(cached_folder(_gguf_name(ref), gguf_digest(ref.location)))
    return ref.kind == "folder" or cached_weights(ref.location, ref.revision)


def _gguf_name(ref: ModelRef) -> str:
    """Name of the cache folder for a user's GGUF file, to which a digest is appended."""
    return f"gguf-{os.path.splitext(os.path.basename(ref.location))[0]}"


def weights_digest(ref: ModelRef) -> str:
    """Returns the identity of a model's weights, without its adapter.

    Returns:
        `hub:ID@COMMIT`, `sha256:…` of a folder, or `gguf:…` with the SHA-256 of the file (also for an embedded model).

    Raises:
        LongEvalError: A hub model can't be found.
        OSError: A file can't be read.
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
    # ModelOpt states the quantisation in a separate file, and the model's Python files, if trusted, change results.
    counted |= {name for name in names if name == QUANTISATION_FILE or name.endswith(".py")}
    return f"sha256:{files_digest(ref.location, counted)}"


def tokenizer_files(ref: ModelRef) -> str:
    """Returns the identity of all files that a tokenizer may read: those of the folder except weights and configs."""
    if ref.kind != "folder":
        return weights_digest(ref)
    return files_digest(ref.location, tokenizer_names(ref.location))


def tokenizer_names(folder: str) -> set[str]:
    """Returns the names of all files in a model's folder that a tokenizer may read."""
    names = {
        entry.name
        for entry in os.scandir(folder)
        if entry.is_file() and not entry.name.startswith(".") and not entry.name.lower().endswith(_NO_TOKENIZER)
    }
    return names - {CONFIG, "generation_config.json"}
