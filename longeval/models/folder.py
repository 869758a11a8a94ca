"""Reads and checks a model's folder: its JSON files and the headers of its safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from longeval.errors import LongEvalError, reason

CONFIG = "config.json"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Names of the single weights file, and of the index of several files."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Names of the files of a peft adapter."""
ONLY_SAFETENSORS = "Only safetensors are read, because unpickling runs whatever the file says."

_FETCH_AGAIN = "Fetch it again."
_LFS = b"version https://git-lfs"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """Shape and dtype of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: str
    """The name in safetensors: F32, BF16, I64, …"""


def read_config(path: str, name: str, *, flag: str = "--model") -> dict[str, Any]:
    """Reads `config.json` or another JSON file of the model, or what else `flag` gives, that the user named `name`.

    Raises:
        LongEvalError: It can't be read or is not a JSON object.
    """
    file_name = os.path.basename(path)
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise LongEvalError(f"{flag} {name}: {file_name} is not readable ({reason(error)})", _FETCH_AGAIN) from error
    if not isinstance(config, dict):
        raise LongEvalError(f"{flag} {name}: {file_name} is not a JSON object", _FETCH_AGAIN)
    return config


def weight_files(folder: str) -> list[str]:
    """Returns the names of a model's weights files in its folder, sorted.

    It is `model.safetensors` if it exists, or else all files in the index, even missing ones, or else none.

    Raises:
        LongEvalError: The index can't be read, or names files outside the folder.
    """
    if os.path.isfile(os.path.join(folder, WHOLE)):
        return [WHOLE]
    index = os.path.join(folder, INDEX)
    if not os.path.isfile(index):
        return []
    try:
        with open(index, encoding="utf-8") as file:
            shards = sorted({str(shard) for shard in json.load(file)["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LongEvalError(f"{index}: not readable ({reason(error)})", _FETCH_AGAIN) from error
    for shard in shards:
        if not shard.endswith(".safetensors") or shard != os.path.basename(shard):
            raise LongEvalError(
                f"{index}: names {shard!r}, which is not a safetensors file in its folder", _FETCH_AGAIN
            )
    return shards


def stored_tensors(name: str, folder: str) -> dict[str, Stored]:
    """Returns shape and dtype of all tensors in the weights of the model that the user named `name`.

    Raises:
        LongEvalError: A file is missing, not a safetensors file or cut off, or two files hold a tensor of one name.
    """
    stored: dict[str, Stored] = {}
    for file in weight_files(folder):
        for key, tensor in read_header(os.path.join(folder, file), f"--model {name}: {file}").items():
            if key in stored:
                raise LongEvalError(
                    f"--model {name}: {key} is stored in two files, one of them {file}",
                    "Remove the file that doesn't belong to the model.",
                )
            stored[key] = tensor
    return stored


def read_header(path: str, what: str) -> dict[str, Stored]:
    """Returns shape and dtype of the tensors in one safetensors file, which messages call `what`.

    Raises:
        LongEvalError: It is missing, not a safetensors file, or its length isn't what its header says.
    """
    from safetensors import SafetensorError, safe_open

    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError as error:
        raise LongEvalError(f"{what}: {reason(error)}", _FETCH_AGAIN) from error
    if head and _LFS.startswith(head):
        raise LongEvalError(f"{what} is a Git LFS pointer, not weights", "Run `git lfs pull` in that folder.")
    stored: dict[str, Stored] = {}
    try:
        with safe_open(path, framework="numpy") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a dictionary)
                part = tensors.get_slice(key)
                stored[key] = Stored(shape=tuple(part.get_shape()), dtype=str(part.get_dtype()))
    except (SafetensorError, OSError) as error:
        raise LongEvalError(
            f"{what} is not a safetensors file, or cut off ({size} bytes; {reason(error)})", _FETCH_AGAIN
        ) from error
    return stored


def check_folder(path: str, name: str, *, weights: bool) -> None:
    """Raises LongEvalError if a folder lacks a configuration or, with `weights`, complete safetensors."""
    try:
        files = sorted(entry for entry in os.listdir(path) if os.path.isfile(os.path.join(path, entry)))
    except OSError as error:
        raise LongEvalError(
            f"--model {name}: this folder can't be read ({reason(error)})", "Give a folder that you can read."
        ) from error
    if CONFIG not in files:
        problem = f"--model {name}: this folder is not a model, it has no {CONFIG}"
        raise LongEvalError(problem, _remedy(path, name, files))
    read_config(os.path.join(path, CONFIG), name)
    if not weights:
        return
    if not weight_files(path):
        pickled = [file for file in files if file.endswith((".bin", ".pt", ".pth"))]
        if pickled:
            raise LongEvalError(
                f"--model {name}: its weights are pickle files ({pickled[0]})",
                f"{ONLY_SAFETENSORS} If you trust the model, load it, save it again with "
                "model.save_pretrained(FOLDER), and give that folder.",
            )
        raise LongEvalError(f"--model {name}: this folder has no safetensors weights", _remedy(path, name, files))
    stored_tensors(name, path)


def _remedy(path: str, name: str, files: list[str]) -> str:
    """The remedy for a folder that is not a model."""
    ggufs = [file for file in files if file.lower().endswith(".gguf")]
    if ggufs:
        return f"Name the GGUF file itself: --model {os.path.join(name, ggufs[0])}."
    if ADAPTER_CONFIG in files:
        base = read_config(os.path.join(path, ADAPTER_CONFIG), name).get("base_model_name_or_path")
        return adapter_remedy(name, str(base or "BASE"))
    return "Give a folder that model.save_pretrained and tokenizer.save_pretrained wrote."


def adapter_remedy(name: str, base: str = "BASE") -> str:
    """The remedy for an adapter that was given as a model."""
    return f"It is an adapter: give its base model and put it on that, --model {base} --adapter {name}."


def check_adapter(name: str, files: Iterable[str]) -> None:
    """Raises LongEvalError if an adapter is among a model's files."""
    found = sorted({ADAPTER_CONFIG, ADAPTER_WEIGHTS, "adapter_model.bin"} & set(files))
    if found:
        raise LongEvalError(
            f"--model {name}: comes with an adapter ({found[0]}), which isn't part of its weights",
            f"Move {' and '.join(found)} into a folder of their own. To measure the model with the adapter, give that "
            "folder as --adapter.",
        )
