"""Saves a trained model as an ordinary model folder: weights, tokenizer, and the method in its configuration.

The method is written as its own rope type: transformers' own for yarn, llama3, longrope and pi (`linear`), else that of
`longeval.hf`, which the process that loads it must import. `--stock` writes longrope lists instead, which transformers
and vLLM read without longeval. Under `none` the configuration keeps its RoPE, and its length becomes the target.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from longeval.errors import LongEvalError, WriteError, reason
from longeval.export.encoding import Encoding, export_note
from longeval.export.folder import copy_files, file_names, source_folder, write_json
from longeval.export.form import new_config
from longeval.export.stock import check_stock
from longeval.files import working_folder
from longeval.models.folder import read_config, weight_files
from longeval.models.library import quiet_transformers
from longeval.models.resolve import config_path

if TYPE_CHECKING:
    import torch

    from longeval.models.prepare import PreparedModel

NOTE = "longeval.json"
"""The file of a model's folder that names its training."""


def check_config(model: PreparedModel, encoding: Encoding, *, stock: bool) -> None:
    """Makes sure, before anything is trained, that a configuration can hold the method.

    Raises:
        LongEvalError: transformers would not compute with these frequencies.
    """
    with working_folder() as work:
        try:
            _write_config(model, encoding, work, stock=stock, dtype=model.dtype)
        except LongEvalError as error:
            if stock:
                raise
            raise LongEvalError(
                error.problem, "--stock saves the frequencies as longrope lists, which most families can hold."
            ) from error


def save_model(
    trained: Any,
    model: PreparedModel,
    encoding: Encoding,
    path: str,
    *,
    stock: bool,
    dtype: str,
    note: Mapping[str, Any],
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Writes the model's folder, whole or not at all. One that lies there already is replaced.

    Args:
        trained: The trained transformers model, adapters merged.
        model: The model that it was made of; its tokenizer and other files are copied.
        encoding: The method.
        path: The folder.
        stock: Whether frequencies are written as longrope lists.
        dtype: What the weights are stored in.
        note: What else `longeval.json` says, such as the training's id.
        state: The weights, where they are not `trained`'s own.

    Raises:
        WriteError: The folder can't be written.
    """
    import torch

    own: Mapping[str, torch.Tensor] = trained.state_dict() if state is None else state
    cast = {name: tensor.to(getattr(torch, dtype)) for name, tensor in own.items()}
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with working_folder(os.path.dirname(path)) as work:
            with quiet_transformers():
                trained.save_pretrained(work, state_dict=cast)
            source = source_folder(model.ref)
            weights = {*weight_files(source), "model.safetensors.index.json"}
            names = [name for name in file_names(source) if name not in weights]
            for name in (*names, "config.json"):
                if os.path.exists(os.path.join(work, name)):
                    os.remove(os.path.join(work, name))
            copy_files(source, names, work, encoding, lambda done, total: None)
            _write_config(model, encoding, work, stock=stock, dtype=dtype)
            engine = {"name": "transformers", "rope_type": rope_type(encoding, stock=stock)}
            write_json(os.path.join(work, NOTE), export_note(model.ref, encoding, engine) | dict(note))
            if os.path.isdir(path):
                shutil.rmtree(path)
            os.rename(work, path)
    except OSError as error:
        raise WriteError(f"{path}: can't be written ({reason(error)})", "Make room, and repeat the command.") from error


def training_of(path: str) -> str | None:
    """The id of the training that a folder's model comes from; None if there is no folder, "" if it isn't ours."""
    return str(_note(path).get("training", "")) if os.path.lexists(path) else None


def rope_type(encoding: Encoding, *, stock: bool) -> str:
    """The rope type that a saved model's note names."""
    return "longrope" if stock else encoding.name.canonical


def saved_rope_type(path: str) -> str | None:
    """The rope type that a saved model's note names; None if there is no such note."""
    engine = _note(path).get("engine")
    return engine.get("rope_type") if isinstance(engine, dict) else None


def _note(path: str) -> dict[str, Any]:
    """The note in a folder; empty if there is none."""
    try:
        with open(os.path.join(path, NOTE), encoding="utf-8") as file:
            note = json.load(file)
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _write_config(model: PreparedModel, encoding: Encoding, work: str, *, stock: bool, dtype: str) -> None:
    """Writes `config.json`, and checks with transformers that it gives the encoding's frequencies."""
    raw = read_config(config_path(model.ref), model.name)
    if encoding.name.canonical == "none":
        new = copy.deepcopy(raw)
        part = new if model.config.get_text_config() is model.config else new["text_config"]
        part["max_position_embeddings"] = max(encoding.target_length, part.get("max_position_embeddings") or 0)
    else:
        new = new_config(raw, model.config, encoding, own_type=not stock)
    for part in (new, new.get("text_config")):
        if isinstance(part, dict):
            part.pop("torch_dtype", None)
            part["dtype"] = dtype
    new.pop("quantization_config", None)  # what was quantised is dequantised now
    write_json(os.path.join(work, "config.json"), new)
    if encoding.name.canonical != "none":
        check_stock(work, encoding, model.config)
