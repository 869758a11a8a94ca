"""`--out FOLDER`: writes a model folder with the encoding's frequencies, which stock engines load without longeval.

The folder is written under a temporary name and renamed when it is complete, so that no incomplete folder is left.
Weights, tokenizer and other plain data are copied byte for byte. Files that can run code (Python files, pickles) are
left out. So are files that an engine would read instead of `config.json`: adapters, and Mistral's `params.json` and
consolidated weights, which vLLM prefers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import Any, BinaryIO

from longeval.errors import LongEvalError, reason
from longeval.export.encoding import Encoding, Progress, check_parent, export_note
from longeval.export.form import new_config
from longeval.export.stock import Stock, check_stock
from longeval.files import working_folder
from longeval.models.folder import ADAPTER_CONFIG, read_config, stored_tensors, weight_files
from longeval.models.hub import HubSnapshot, cached_weights, open_hub, unreachable_hub
from longeval.models.library import quiet_transformers
from longeval.models.load import check_weights, load_config
from longeval.models.merged import merged_folder
from longeval.models.resolve import ModelRef, config_path, local_folder
from longeval.models.tokenizer import class_that_splits_otherwise

WRITTEN = ("config.json", "longeval.json")
"""Files that the export writes itself."""

LIMITS = ("tokenizer_config.json", "generation_config.json")
"""Files that may limit the length; see `raised_limit`."""

_DATA = (".json", ".jinja", ".md", ".model", ".tiktoken", ".txt", ".vocab", ".bpe")
_RUNS = (".py", ".pyc", ".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".so", ".sh")
_OTHER_PATHS = ("params.json", ADAPTER_CONFIG, "origin.json")
_TERMS = ("license", "licence", "notice", "copying", "terms", "use_policy")
_INDEX = "model.safetensors.index.json"

_BLOCK_BYTES = 1 << 24
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""Precisions of stored weights, as safetensors and torch name them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenFolder:
    """A finished export."""

    path: str
    num_files: int
    num_bytes: int
    stock: Stock
    changed: tuple[str, ...]
    """Names of files besides `config.json` in which a limit on length was raised."""
    other_class: str | None
    """A tokenizer class with which stock transformers splits texts differently from `tokenizer.json`; else None."""
    is_replaced: bool
    """Whether naming another class in `tokenizer_config.json` solved that."""


def check_folder(path: str) -> None:
    """Raises LongEvalError if no folder can be written at `path`."""
    if not path.strip():
        raise LongEvalError("--out '': an empty name", "Name a folder that doesn't exist yet.")
    if os.path.lexists(path) and not os.path.isdir(path):
        raise LongEvalError(f"--out {path}: is a file", "Name a folder that doesn't exist yet.")
    if os.path.isdir(path) and os.listdir(path):
        raise LongEvalError(
            f"--out {path}: exists and isn't empty", "Name another folder, or remove this one; nothing is overwritten."
        )
    check_parent(path)


def write_folder(ref: ModelRef, config: Any, encoding: Encoding, path: str, progress: Progress) -> WrittenFolder:
    """Writes a model with the encoding in its configuration to `path`, which is absent or empty.

    An adapter is merged into the weights first, in the precision in which they are stored.

    Raises:
        LongEvalError: The model can't be read, its settings can't be replaced, stock transformers would not apply
            them, or the folder can't be written. Then nothing is left at `path`.
    """
    check_folder(path)
    place = os.path.abspath(path)
    parent = os.path.dirname(place)
    try:
        os.makedirs(parent, exist_ok=True)
        with working_folder(parent) as work:
            merged = ref if ref.adapter is None else _merged(ref)
            if merged is not ref:
                config = load_config(merged)
            stock = _write_config(merged, config, encoding, work)
            source = source_folder(merged)
            check_weights(merged, config)  # a stock engine would ignore or randomly initialise weights that don't fit
            names = file_names(source)
            _check_room(source, names, parent, path)
            changed = copy_files(source, names, work, encoding, progress)
            other_class, is_replaced = _name_class(work, encoding.rope.model)
            write_json(os.path.join(work, "longeval.json"), export_note(ref, encoding, stock.to_json()))
            written = WrittenFolder(
                path=place,
                num_files=len(os.listdir(work)),
                num_bytes=sum(entry.stat().st_size for entry in os.scandir(work)),
                stock=stock,
                changed=changed,
                other_class=other_class,
                is_replaced=is_replaced,
            )
            os.rename(work, place)
    except OSError as error:
        raise LongEvalError(
            f"--out {path}: {reason(error)}", "Make room, or choose a folder you may write to."
        ) from error
    return written


def _merged(ref: ModelRef) -> ModelRef:
    """The model with its adapter merged in, as a folder of the cache."""
    kinds = Counter(tensor.dtype for tensor in stored_tensors(ref.name, source_folder(ref)).values())
    dtype = next((_DTYPES[kind] for kind, _ in kinds.most_common() if kind in _DTYPES), "float32")
    return dataclasses.replace(
        ref, kind="folder", location=merged_folder(ref, dtype=dtype), revision=None, adapter=None
    )


def _write_config(ref: ModelRef, config: Any, encoding: Encoding, work: str) -> Stock:
    """Writes the new `config.json` and checks it with stock transformers."""
    raw = read_config(config_path(ref), ref.name)
    write_json(os.path.join(work, "config.json"), new_config(raw, config, encoding))
    return check_stock(work, encoding, config)


def _check_room(source: str, names: list[str], parent: str, path: str) -> None:
    """Raises LongEvalError if the disk has not enough room for the files."""
    needed = sum(os.path.getsize(os.path.join(source, name)) for name in names)
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise LongEvalError(
            f"--out {path}: needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free there",
            "Make room, or choose another disk.",
        )


def copy_files(source: str, names: list[str], work: str, encoding: Encoding, progress: Progress) -> tuple[str, ...]:
    """Copies files of a model's folder, and returns the names of those in which a limit on length was raised."""
    total = sum(os.path.getsize(os.path.join(source, name)) for name in names)
    done = 0
    changed = []
    for name in names:
        origin, target = os.path.join(source, name), os.path.join(work, name)
        if name in LIMITS:
            raised = raised_limit(
                name,
                read_config(origin, encoding.rope.model),
                native=encoding.native_length,
                target=encoding.target_length,
            )
            if raised is not None:
                write_json(target, raised)
                changed.append(name)
                continue
        with _open_source(origin, encoding.rope.model) as reader, open(target, "xb") as writer:
            while block := reader.read(_BLOCK_BYTES):
                writer.write(block)
                done += len(block)
                progress(done, total)
            writer.flush()
            os.fsync(writer.fileno())
    return tuple(changed)


def _name_class(work: str, model: str) -> tuple[str | None, bool]:
    """Names a generic tokenizer class if the model's own class would not follow `tokenizer.json`.

    Returns:
        `other_class` and `is_replaced` of `WrittenFolder`.
    """
    with quiet_transformers():
        if (other := class_that_splits_otherwise(work)) is None:
            return None, False
        path = os.path.join(work, "tokenizer_config.json")
        settings = read_config(path, model) if os.path.isfile(path) else {}
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
        write_json(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})
        return other, class_that_splits_otherwise(work) is None


def _open_source(path: str, model: str) -> BinaryIO:
    """Opens a model's file for reading. Its errors name `--model` instead of `--out`."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise LongEvalError(
            f"--model {model}: {os.path.basename(path)}: {reason(error)}", "Check the model's folder."
        ) from error


def write_json(path: str, value: Any) -> None:
    """Writes a JSON file in the usual layout of model folders."""
    with open(path, "x", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def is_copied(name: str) -> bool:
    """Whether a file in a model's folder is copied. Weights are not decided here."""
    lower = name.lower()
    if name in (*WRITTEN, *_OTHER_PATHS, _INDEX) or lower.endswith(_RUNS) or name.startswith("."):
        return False
    return lower.endswith(_DATA) or lower.startswith("tokenizer") or any(word in lower for word in _TERMS)


def source_folder(ref: ModelRef) -> str:
    """A local folder with all files of a model; missing files of a hub model are downloaded."""
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
    """Names of the files in a model's folder that are copied, weights included, sorted."""
    weights = weight_files(folder)
    names = {name for name in os.listdir(folder) if is_copied(name) and os.path.isfile(os.path.join(folder, name))}
    if weights != ["model.safetensors"]:
        names.add(_INDEX)
    return sorted(names | set(weights))


def _fetch(ref: ModelRef, snapshot: HubSnapshot) -> None:
    """Downloads the files of a hub model that are copied into the hub's cache."""
    from huggingface_hub import HfApi, errors, hf_hub_download

    try:
        with quiet_transformers():
            listed = HfApi().list_repo_files(snapshot.hub_id, revision=snapshot.commit)
            names = [name for name in listed if "/" not in name and is_copied(name)]
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
    """The content of a file of LIMITS with its limit on length raised to the target length; None if it isn't smaller.

    vLLM serves at most the tokenizer's `model_max_length`. `generate` stops at `max_length`, which some models (Llama
    2) set to their native length; a smaller value was chosen on purpose and stays.
    """
    key, least = {"tokenizer_config.json": ("model_max_length", 1), "generation_config.json": ("max_length", native)}[
        name
    ]
    limit = settings.get(key)
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not least <= limit < target:
        return None
    return settings | {key: target}
