"""`--out FOLDER`: a model folder that stock engines load with the encoding's frequencies, and no longeval installed.

It is written beside its place and renamed when it is complete, so that it is there whole or not at all. Weights are
copied byte for byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from longeval.errors import LongEvalError, reason
from longeval.export.encoding import Encoding
from longeval.export.files import LIMITS, file_names, raised_limit, source_folder
from longeval.export.form import new_config
from longeval.export.note import export_note
from longeval.export.stock import Stock, check_stock
from longeval.files import why_unwritable, working_folder
from longeval.models.files import config_path
from longeval.models.folder import read_config
from longeval.models.library import quiet_transformers
from longeval.models.load import check_weights
from longeval.models.resolve import ModelRef
from longeval.models.tokenizer import class_that_splits_otherwise

Progress = Callable[[int, int], None]
"""Told the bytes copied so far and all there are."""

_BLOCK_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenFolder:
    """An export that is done."""

    path: str
    num_files: int
    num_bytes: int
    stock: Stock
    changed: tuple[str, ...]
    """Files besides `config.json` that were written with a longer limit."""
    other_class: str | None
    """The class under which stock transformers would have split texts otherwise than `tokenizer.json`."""
    is_replaced: bool
    """Whether another name in `tokenizer_config.json` helps against that."""


def check_folder(path: str) -> None:
    """Raises LongEvalError, before anything is computed, unless a folder can appear at `path`."""
    if not path.strip():
        raise LongEvalError("--out '': an empty name", "Name a folder that doesn't exist yet.")
    parent = os.path.dirname(os.path.abspath(path))
    if os.path.lexists(path) and not os.path.isdir(path):
        raise LongEvalError(f"--out {path}: is a file", "Name a folder that doesn't exist yet.")
    if os.path.isdir(path) and os.listdir(path):
        raise LongEvalError(
            f"--out {path}: exists and isn't empty", "Name another folder, or remove this one; nothing is overwritten."
        )
    if not os.path.isdir(parent):
        raise LongEvalError(f"--out {path}: there is no folder {parent}", "Name a folder in one that exists.")
    if (why := why_unwritable(parent)) is not None:
        raise LongEvalError(f"--out {path}: can't write there ({why})", "Choose a folder you may write to.")


def write_folder(ref: ModelRef, config: Any, encoding: Encoding, path: str, progress: Progress) -> WrittenFolder:
    """Writes a model with the encoding in its configuration.

    Args:
        ref: The model.
        config: transformers' PreTrainedConfig of it.
        encoding: What its configuration shall say.
        path: Where the folder goes; absent or empty.
        progress: Called while files are copied.

    Raises:
        LongEvalError: If the model can't be had, its settings can't be replaced, stock transformers wouldn't honour
            them, or the folder can't be written. Nothing is left at `path` then.
    """
    check_folder(path)
    place = os.path.abspath(path)
    parent = os.path.dirname(place)
    try:
        with working_folder(parent) as work:
            stock = _write_config(ref, config, encoding, work)
            source = source_folder(ref)
            check_weights(ref, config)  # a stock engine would leave out, or make up, what doesn't fit
            names = file_names(source)
            _check_room(source, names, parent, path)
            changed = _copy(source, names, work, encoding, progress)
            other_class, is_replaced = _name_class(work, encoding.rope.model)
            _write_json(os.path.join(work, "longeval.json"), export_note(ref, encoding, stock))
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


def _write_config(ref: ModelRef, config: Any, encoding: Encoding, work: str) -> Stock:
    """Writes the new `config.json`, alone so far, and has stock transformers prove it."""
    raw = read_config(config_path(ref), ref.name)
    _write_json(os.path.join(work, "config.json"), new_config(raw, config, encoding))
    return check_stock(work, encoding, config)


def _check_room(source: str, names: list[str], parent: str, path: str) -> None:
    """Raises LongEvalError if the files don't fit onto the disk, rather than when it is full."""
    needed = sum(os.path.getsize(os.path.join(source, name)) for name in names)
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise LongEvalError(
            f"--out {path}: needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free there",
            "Make room, or choose another disk.",
        )


def _copy(source: str, names: list[str], work: str, encoding: Encoding, progress: Progress) -> tuple[str, ...]:
    """Copies the files; returns those that got a longer limit on the way."""
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
                _write_json(target, raised)
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
    """Names a class that takes `tokenizer.json` as it is, where stock transformers takes another; see WrittenFolder."""
    with quiet_transformers():
        if (other := class_that_splits_otherwise(work)) is None:
            return None, False
        path = os.path.join(work, "tokenizer_config.json")
        settings = read_config(path, model) if os.path.isfile(path) else {}
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
        _write_json(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})
        return other, class_that_splits_otherwise(work) is None


def _open_source(path: str, model: str) -> BinaryIO:
    """Opens a model's file for reading; what is wrong with it is no fault of `--out`."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise LongEvalError(
            f"--model {model}: {os.path.basename(path)}: {reason(error)}", "Check the model's folder."
        ) from error


def _write_json(path: str, value: Any) -> None:
    """Writes JSON as model folders have it; NaN is a bug."""
    with open(path, "x", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
