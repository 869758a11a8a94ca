"""GGUF files as models: dequantised once by transformers, kept as an ordinary safetensors folder in the cache.

transformers dequantises a GGUF at every start (20 s for 135M parameters), and the model that it makes refuses
`save_pretrained`: it counts as quantised although all its weights are plain numbers by then. So the model is rebuilt
without its quantisation config and saved, and from then on loads like any folder.

Values are kept exactly as dequantised: in float32, or in a half-width dtype if every single weight survives that. What
a file states about its model and transformers leaves out is added, or refused before anything is dequantised (see
`config`). The tokenizer is built from the file itself (see `tokenizer`).
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

from longeval.cache import cache_dir, file_digest, sha256_of
from longeval.errors import LongEvalError, reason
from longeval.files import put_folder, working_folder
from longeval.models.gguf.config import complete_config
from longeval.models.gguf.header import model_header, whole_gguf
from longeval.models.gguf.tokenizer import build_tokenizer
from longeval.models.library import empty_model, quiet_transformers
from longeval.models.weights import check_complete

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

CONVERSION = 4
"""Raised whenever a file would be converted into something else than before; part of the folder's name from 2 on.

2: RoPE scaling, BOS and Gemma's settings are read from the file.
3: The tokenizer is built by the rule that the file names (see `tokenizer`). Weights that are missing, or that the
   model has no place for, are refused; all files of a split one are read.
4: Text for Qwen's tokenizers is composed (NFC).
"""

_READ_ELSEWHERE = re.compile(r"rope_(freqs|factors_(long|short))\.weight")
"""Tensors that become part of the configuration: see `config`."""
_EXPERTS = re.compile(r"_exps(\.|$)")
"""Tensors of all experts of a layer, which transformers takes apart before it looks for their names."""
_NOTE = "origin.json"
"""What a converted folder came from, and the digest of each of its files."""


def converted_folder(
    path: str, *, name: str, sha256: str, conversion: int = CONVERSION, beside: Mapping[str, str] | None = None
) -> str:
    """Returns the folder of the dequantised model, and makes it if it isn't there yet or is damaged.

    The folder appears by one rename when it is complete. When two processes make it at once, the first rename wins.

    Args:
        path: The GGUF file.
        name: What the folder's name starts with, e.g. `smollm2-135m-q4`.
        sha256: The file's digest (hex).
        conversion: See `cached_folder`.
        beside: Files to keep in the folder, such as a licence: their names there, and where they are now.

    Raises:
        LongEvalError: If this GGUF can't be read exactly, or the cache can't be written.
    """
    folder = cached_folder(name, sha256, conversion)
    if is_whole(folder):
        return folder
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
            put_folder(building, folder, is_whole=is_whole)
    except OSError as error:
        raise unwritable(error) from error
    _log.info("converted in %.0f s", time.monotonic() - started)
    return folder


def cached_folder(name: str, sha256: str, conversion: int = CONVERSION) -> str:
    """Returns where the dequantised model is or would be, without making it.

    Args:
        name: What the folder's name starts with.
        sha256: The file's digest (hex).
        conversion: The `CONVERSION` that the folder comes from; an older one for a file whose conversion is known not
            to have changed since.
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
        f"cache {cache_dir()}: {reason(error)}",
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


def _convert(path: str, folder: str) -> None:
    """Dequantises `path` and writes config, safetensors and tokenizer into `folder`."""
    import transformers

    try:
        # The progress bar of the dequantisation can't be switched off: it gets a stderr of its own.
        with (
            whole_gguf(path, folder) as whole,
            quiet_transformers(),
            contextlib.redirect_stderr(io.StringIO()),
            _one_reader() as named,
        ):
            _dequantise(path, whole, folder, named)
    except Exception as error:  # the file may hold anything, and transformers checks little
        if isinstance(error, LongEvalError) or (isinstance(error, OSError) and error.errno):  # the latter of the cache
            raise
        raise LongEvalError(
            f"--model {path}: transformers {transformers.__version__} can't convert this GGUF ({reason(error)})",
            "Give the original model instead, a hub id or a folder with config.json and safetensors.",
        ) from error


def _dequantise(name: str, path: str, folder: str, named: Mapping[str, str]) -> None:
    """Has transformers read a file, adds what it left out, and saves the model and its tokenizer into `folder`.

    Args:
        name: The user's file, for messages.
        path: The same model in one file.
        folder: Where to.
        named: From `_one_reader`.

    Raises:
        LongEvalError: The file lacks weights, or has some that the model has no place for.
    """
    import torch
    import transformers

    header = model_header(name)  # its messages name the user's file
    source = {
        "pretrained_model_name_or_path": os.path.dirname(os.path.abspath(path)),
        "gguf_file": os.path.basename(path),
    }
    config = complete_config(header, transformers.AutoConfig.from_pretrained(**source))
    build_tokenizer(header).save_pretrained(folder)
    quantised, loading = transformers.AutoModelForCausalLM.from_pretrained(
        **source, config=config, dtype=torch.float32, output_loading_info=True
    )
    unused = [tensor for tensor in header.tensors if tensor not in named and not _EXPERTS.search(tensor)]
    unexpected = {*loading["unexpected_keys"], *(unused if named else ())}
    unexpected = {tensor for tensor in unexpected if not _READ_ELSEWHERE.fullmatch(tensor)}
    check_complete(name, loading | {"unexpected_keys": unexpected}, config)
    _rebuild(quantised).save_pretrained(folder)


@contextlib.contextmanager
def _one_reader() -> Iterator[dict[str, str]]:
    """Inside the block, gguf parses a file once, and not each time that transformers asks.

    That takes 13 s each time for a vocabulary of 262k. Readers only read, so one may serve all.

    Yields:
        transformers' names of the file's tensors, by the file's names; filled when transformers reads the file.
        A tensor that isn't among them is left out of the model. Empty for the architectures that transformers reads in
        its newer way, whose loading info is complete.
    """
    import gguf
    import transformers.modeling_gguf_pytorch_utils as reading

    reader, names = gguf.GGUFReader, reading.get_gguf_hf_weights_map
    named: dict[str, str] = {}

    def remember(*arguments: Any, **options: Any) -> dict[str, str]:
        found: dict[str, str] = names(*arguments, **options)
        named.update(found)
        return found

    gguf.GGUFReader = functools.cache(reader)
    reading.get_gguf_hf_weights_map = remember
    try:
        yield named
    finally:
        gguf.GGUFReader = reader
        reading.get_gguf_hf_weights_map = names


def _rebuild(quantised: Any) -> Any:
    """The same weights (shared, not copied) in a model without quantisation config, in the narrowest exact dtype."""
    plain = quantised.config.to_dict()
    plain.pop("quantization_config", None)
    dtype = _narrowest_exact([tensor for tensor in quantised.state_dict().values() if tensor.is_floating_point()])
    config = type(quantised.config).from_dict(plain | {"dtype": str(dtype).removeprefix("torch.")})
    model = empty_model(config)
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
