"""What the user means by `--model NAME`: a short name, a hub id, a local folder, a GGUF file, or an embedded model.

Only names and local files are looked at here; the network comes with `hub.py`, weights with `load.py`. Light to import.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Any, Literal

from longeval.errors import LongEvalError, did_you_mean, reason
from longeval.models.catalog import CATALOG
from longeval.models.embedded import embedded_folder, embedded_path
from longeval.models.gguf.folder import cached_folder, converted_folder, gguf_digest, gguf_shards, is_whole
from longeval.models.hub import ADAPTER_REMEDY

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_LFS = b"version https://git-lfs"

Kind = Literal["hub", "folder", "gguf", "embedded"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRef:
    """A model that was named and recognised, not yet opened."""

    name: str
    """As the user named it: what records and reports show."""
    kind: Kind
    location: str
    """Hub id, or the absolute path of the folder or GGUF file; the short name of an embedded model."""
    revision: str | None = None
    """Branch, tag or commit on the hub; None is the hub's default."""
    licence: str | None = None
    """Where the catalogue knows it."""


def resolve(name: str, *, revision: str | None = None, weights: bool = True) -> ModelRef:
    """Recognises a model by its name.

    A short name of the catalogue comes first, then what exists as a path, then `organisation/name` as a hub id.

    Args:
        name: The value of `--model`.
        revision: The value of `--revision`: branch, tag or commit; only hub models have one.
        weights: Whether a folder must hold weights; without, its config.json is enough.

    Raises:
        LongEvalError: For an unknown name (with suggestions), a path that isn't there, a folder or file that is no
            model, or a revision where there is none to choose.
    """
    ref = _recognise(name.strip(), revision, weights)
    if revision is not None and ref.kind != "hub":
        raise LongEvalError(
            f"--revision {revision}: {name} is not on the hub",
            "Leave --revision out; it chooses a branch, tag or commit.",
        )
    return ref


def local_folder(ref: ModelRef) -> str | None:
    """Returns the folder with the model's config, safetensors and tokenizer, or None for a hub model.

    An embedded model is fetched and a GGUF converted if that hasn't happened yet (seconds to minutes, once).
    """
    if ref.kind == "embedded":
        return embedded_folder(ref.location)
    if ref.kind == "gguf":
        return converted_folder(ref.location, name=_gguf_name(ref), sha256=gguf_digest(ref.location))
    return ref.location if ref.kind == "folder" else None


def is_present(ref: ModelRef) -> bool:
    """Whether the model can be loaded without fetching or converting anything; asks no network."""
    if ref.kind == "embedded":
        return is_whole(embedded_path(ref.location))
    if ref.kind == "gguf":
        return is_whole(cached_folder(_gguf_name(ref), gguf_digest(ref.location)))
    if ref.kind == "folder":
        return True
    from longeval.models.hub import cached_weights

    return cached_weights(ref.location, ref.revision)


def _gguf_name(ref: ModelRef) -> str:
    """What the folder that is made of a user's GGUF file begins with."""
    return f"gguf-{os.path.splitext(os.path.basename(ref.location))[0]}"


def _recognise(name: str, revision: str | None, weights: bool) -> ModelRef:
    """The ref of a name; folders and files are checked, hub ids are taken as they are."""
    if name in CATALOG:
        entry = CATALOG[name]
        if entry.hub_id is None:
            return ModelRef(name=name, kind="embedded", location=name, licence=entry.licence)
        return ModelRef(name=name, kind="hub", location=entry.hub_id, revision=revision, licence=entry.licence)
    path = os.path.abspath(os.path.expanduser(name))
    if name and os.path.isdir(path):
        _check_folder(path, name, weights)
        return ModelRef(name=name, kind="folder", location=path)
    if name and os.path.isfile(path):
        if not path.lower().endswith(".gguf"):
            raise LongEvalError(
                f"--model {name}: a file, but no .gguf", "Give the folder that holds config.json and the safetensors."
            )
        return ModelRef(name=name, kind="gguf", location=gguf_shards(path)[0])
    if name.lower().endswith(".gguf") or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise LongEvalError(f"--model {name}: there is no such file or folder", "Check the path.")
    if _HUB_ID.fullmatch(name):
        return ModelRef(name=name, kind="hub", location=name, revision=revision)
    raise LongEvalError(
        f"--model {name}: unknown",
        f"{did_you_mean(name, CATALOG)} Or give a hub id (organisation/name), a model folder, or a .gguf file.",
    )


def _check_folder(path: str, name: str, weights_too: bool) -> None:
    """Raises LongEvalError unless the folder holds a config and, if those are needed, whole safetensors."""
    try:
        files = sorted(entry for entry in os.listdir(path) if os.path.isfile(os.path.join(path, entry)))
    except OSError as error:
        raise LongEvalError(
            f"--model {name}: this folder can't be read ({error.strerror or error})", "Give a folder that you can read."
        ) from error
    if "config.json" not in files:
        raise LongEvalError(
            f"--model {name}: this folder is no model, it has no config.json", _folder_remedy(name, files)
        )
    read_config(os.path.join(path, "config.json"), name)
    if not weights_too:
        return
    weights = weight_files(path)
    if not weights:
        pickled = [file for file in files if file.endswith((".bin", ".pt", ".pth"))]
        if pickled:
            raise LongEvalError(
                f"--model {name}: its weights are pickle files ({pickled[0]})",
                "Only safetensors are read, because unpickling runs whatever the file says. Load the model where you "
                "trust it, save it again with model.save_pretrained(FOLDER), and give that folder.",
            )
        raise LongEvalError(f"--model {name}: this folder has no safetensors weights", _folder_remedy(name, files))
    for file in weights:
        _check_safetensors(os.path.join(path, file), f"--model {name}: {file}")


def _folder_remedy(name: str, files: list[str]) -> str:
    ggufs = [file for file in files if file.lower().endswith(".gguf")]
    if ggufs:
        return f"Name the GGUF file itself: --model {os.path.join(name, ggufs[0])}."
    if "adapter_config.json" in files:
        return ADAPTER_REMEDY
    return "Give a folder as model.save_pretrained and tokenizer.save_pretrained write it."


def read_config(path: str, name: str) -> dict[str, Any]:
    """Returns a model's `config.json`, or another JSON file of it, as a dictionary; raises LongEvalError otherwise."""
    file_name = os.path.basename(path)
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise LongEvalError(
            f"--model {name}: {file_name} is not readable ({reason(error)})", "Fetch the model again."
        ) from error
    if not isinstance(config, dict):
        raise LongEvalError(f"--model {name}: {file_name} is not a JSON object", "Fetch the model again.")
    return config


def weight_files(folder: str) -> list[str]:
    """Returns the names of a folder's safetensors that make up the model, sorted.

    Those of the index if there is one (also when they are missing), else `model.safetensors`, else none.
    """
    index = os.path.join(folder, "model.safetensors.index.json")
    if os.path.isfile(os.path.join(folder, "model.safetensors")):
        return ["model.safetensors"]
    if not os.path.isfile(index):
        return []
    try:
        with open(index, encoding="utf-8") as file:
            shards = sorted({str(shard) for shard in json.load(file)["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LongEvalError(f"{index}: not readable ({reason(error)})", "Fetch the model again.") from error
    for shard in shards:
        if not shard.endswith(".safetensors") or shard != os.path.basename(shard):
            raise LongEvalError(
                f"{index}: names {shard!r}, no safetensors file of its folder", "Fetch the model again."
            )
    return shards


def _check_safetensors(path: str, what: str) -> None:
    """Raises LongEvalError unless the file is there, has a safetensors header, and is as long as the header says."""
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError as error:
        raise LongEvalError(f"{what}: {error.strerror or error}", "Fetch the model again.") from error
    if _LFS.startswith(head) and head:
        raise LongEvalError(f"{what} is a Git LFS pointer, not weights", "Run `git lfs pull` in that folder.")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise LongEvalError(
            f"{what} is not a safetensors file, or cut off ({size} bytes; {reason(error)})", "Fetch the model again."
        ) from error
