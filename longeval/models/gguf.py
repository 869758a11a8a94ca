"""GGUF files as models: dequantised once by transformers, kept as an ordinary safetensors folder in the cache.

Reading a GGUF takes its time at every start (20 s for 135M parameters), and the model that transformers makes of it
refuses `save_pretrained`: it counts as quantised although all its weights are plain numbers by then. So it is rebuilt
without its quantisation config, saved, and from then on loads like any folder. GGUF: ggml's file format.

Values are kept exactly as dequantised: in float32, or in a half-width dtype if every single weight survives that. What
a file states about its model and transformers leaves out is added, or refused before anything is dequantised: see
`gguf_config`. The tokenizer is built from the file itself: see `gguf_tokenizer`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from longeval.cache import cache_dir
from longeval.errors import LongEvalError
from longeval.files import working_folder
from longeval.models.digests import file_digest, sha256_of
from longeval.models.gguf_config import complete_config
from longeval.models.gguf_header import GgufHeader, read_header
from longeval.models.gguf_tokenizer import build_tokenizer
from longeval.models.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

CONVERSION = 3
"""Raised whenever a file would be converted into something else than before; part of the folder's name from 2 on.

2: RoPE scaling, BOS and Gemma's settings are read from the file.
3: The tokenizer is built by the rule that the file names (see `gguf_tokenizer`).
"""

_UNREADABLE = (ValueError, KeyError, NotImplementedError, RuntimeError, IndexError, ImportError)
"""What transformers raises for a file that isn't what it expects."""
_MAGIC = b"GGUF"
_NOTE = "origin.json"
"""What a converted folder came from, and the digest of each of its files."""


def check_gguf(path: str) -> None:
    """Raises LongEvalError unless `path` is a readable file that starts like a GGUF."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(_MAGIC))
    except OSError as error:
        raise LongEvalError(
            f"--model {path}: {error.strerror or error}", "Give the path of a .gguf file that you can read."
        ) from error
    if head != _MAGIC:
        raise LongEvalError(
            f"--model {path}: not a GGUF file (it starts with {head!r})",
            "A Git LFS pointer or a broken download looks like this: fetch the file again.",
        )


def converted_folder(
    path: str, *, name: str, sha256: str, conversion: int = CONVERSION, beside: Mapping[str, str] | None = None
) -> str:
    """Returns the folder of the dequantised model, and makes it if it isn't there yet or is damaged.

    The folder appears by one rename when it is complete, so that it is either whole or absent; when two processes
    make it at once, both build and the first rename wins. Its files are held against their digests at each use.

    Args:
        path: The GGUF file.
        name: What the folder's name starts with, e.g. `smollm2-135m-q4`.
        sha256: The file's digest (hex); the folder is named by its first 8 digits.
        conversion: See `cached_folder`.
        beside: Files to keep in the folder, such as a licence: their names there, and where they are now.

    Raises:
        LongEvalError: If this GGUF can't be read exactly, or the cache can't be written.
    """
    folder = cached_folder(name, sha256, conversion)
    if is_whole(folder):
        return folder
    check_gguf(path)
    if os.path.lexists(folder):
        _log.warning("%s: not the files that were put there, or from an earlier version; making it again", folder)
    _log.info("converting %s to safetensors (once; kept in %s)", os.path.basename(path), folder)
    started = time.monotonic()
    try:
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        with working_folder(os.path.dirname(folder)) as work:
            building = os.path.join(work, "model")
            os.mkdir(building)
            _convert(path, building)
            for kept, source in (beside or {}).items():
                shutil.copyfile(source, os.path.join(building, kept))
            _note_files(building, {"gguf": os.path.basename(path), "sha256": sha256})
            _put(building, folder, aside=os.path.join(work, "damaged"))
    except OSError as error:
        raise unwritable(error) from error
    _log.info("converted in %.0f s", time.monotonic() - started)
    return folder


def cached_folder(name: str, sha256: str, conversion: int = CONVERSION) -> str:
    """Returns where the dequantised model is or would be, without making it.

    Args:
        name: What the folder's name starts with.
        sha256: The file's digest (hex).
        conversion: The `CONVERSION` that the folder comes from. Older ones than the present are for a file that is
            known to be converted in the same way since then.
    """
    stem = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{sha256[:8]}"
    return os.path.join(cache_dir(), "models", stem if conversion == 1 else f"{stem}-v{conversion}")


def is_whole(folder: str) -> bool:
    """Whether a converted folder is there and holds the files that were put there, byte for byte, and no others."""
    try:
        with open(os.path.join(folder, _NOTE), encoding="utf-8") as file:
            noted = json.load(file)["files"]
        names = {name for name in os.listdir(folder) if not name.startswith(".")}
        return names == {_NOTE, *noted} and all(
            file_digest(os.path.join(folder, name)) == digest for name, digest in noted.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def unwritable(error: OSError) -> LongEvalError:
    """The message for a cache that can't be written."""
    return LongEvalError(
        f"cache {cache_dir()}: {error.strerror or error}",
        "Converting a GGUF needs room there for its weights in float32 (four bytes a parameter). "
        "Make room, or name another folder in LONGEVAL_CACHE.",
    )


def _note_files(folder: str, origin: Mapping[str, str]) -> None:
    """Writes where a folder's files come from, and what they are."""
    import transformers

    files = {name: sha256_of(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}
    with open(os.path.join(folder, _NOTE), "w", encoding="utf-8") as file:
        json.dump({**origin, "transformers": transformers.__version__, "files": files}, file, indent=1)
    for entry in os.scandir(folder):  # safetensors are written for their owner only; a cache may be shared
        os.chmod(entry.path, os.stat(folder).st_mode & 0o666)


def _put(made: str, folder: str, *, aside: str) -> None:
    """Renames a complete folder to its place, where a damaged one makes room and a whole one of others stays."""
    if is_whole(folder):
        return
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, aside)
    try:
        os.rename(made, folder)
    except OSError:
        if not is_whole(folder):  # else another process was first: its folder is as good
            raise


def _convert(path: str, folder: str) -> None:
    """Dequantises `path` and writes config, safetensors and tokenizer into `folder`."""
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    try:
        # the bar of the dequantisation heeds no switch: it goes to a stderr of its own
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()), _one_reader():
            _dequantise(path, folder, read_header(path))
    except (*_UNREADABLE, StrictDataclassError) as error:  # the last for impossible settings of a config
        raise LongEvalError(
            f"--model {path}: transformers {transformers.__version__} can't convert this GGUF "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
            "Give the original model instead, a hub id or a folder with config.json and safetensors.",
        ) from error


def _dequantise(path: str, folder: str, header: GgufHeader) -> None:
    """Has transformers read the file, adds what it left out, and saves the model and its tokenizer."""
    import torch
    import transformers

    source = {
        "pretrained_model_name_or_path": os.path.dirname(os.path.abspath(path)),
        "gguf_file": os.path.basename(path),
    }
    config = complete_config(header, transformers.AutoConfig.from_pretrained(**source))
    build_tokenizer(header).save_pretrained(folder)
    quantised = transformers.AutoModelForCausalLM.from_pretrained(**source, config=config, dtype=torch.float32)
    _rebuild(quantised).save_pretrained(folder)


@contextlib.contextmanager
def _one_reader() -> Iterator[None]:
    """Inside the block, gguf parses a file once, and not once for each time that transformers asks.

    That takes 13 s each time for a vocabulary of 262k. Readers only read, so one may serve all.
    """
    import gguf

    reader = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(reader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader


def _rebuild(quantised: Any) -> Any:
    """The same weights (shared, not copied) in a model without quantisation config, in the narrowest exact dtype."""
    import torch
    import transformers

    plain = quantised.config.to_dict()
    plain.pop("quantization_config", None)
    dtype = _narrowest_exact([tensor for tensor in quantised.state_dict().values() if tensor.is_floating_point()])
    config = type(quantised.config).from_dict(plain | {"dtype": str(dtype).removeprefix("torch.")})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    weights = {name: tensor.to(dtype) for name, tensor in quantised.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = quantised.generation_config
    return model


def _narrowest_exact(tensors: list[torch.Tensor]) -> torch.dtype:
    """bfloat16 or float16 if every weight is unchanged by it, else float32."""
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(tensor.to(dtype).to(tensor.dtype), tensor) for tensor in tensors):
            return dtype
    return torch.float32
