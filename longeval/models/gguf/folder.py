"""Converts a GGUF into a safetensors folder in the cache, once.

transformers dequantises a GGUF at every start (20 s for 135M parameters). The resulting model refuses
`save_pretrained`, because it counts as quantised although its weights no longer are. So the model is rebuilt without
its quantisation config and saved; from then on it loads like any folder.

The dequantised values are stored exactly, in float32, or in bfloat16 or float16 if that changes no weight. Settings
that transformers ignores are added, or refused before anything is dequantised (see `config`). The tokenizer is built
from the file itself (see `tokenizer`).
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
"""Version of the conversion. Raise it whenever its result changes. From 2 on it is part of the folder's name.

2: RoPE scaling, BOS and Gemma's settings are read from the file.
3: The tokenizer is built by the rule that the file names (see `tokenizer`). Missing and unexpected weights are refused;
   all files of a split GGUF are read.
4: Text for Qwen's tokenizers is composed (NFC).
"""

_READ_ELSEWHERE = re.compile(r"rope_(freqs|factors_(long|short))\.weight")
"""Tensors that become part of the configuration: see `config`."""
_EXPERTS = re.compile(r"_exps(\.|$)")
"""Tensors with all experts of a layer, which transformers splits before it looks up their names."""
NOTE = "origin.json"
"""File in a converted folder that states its origin and the digest of each of its files."""


def converted_folder(
    path: str, *, name: str, sha256: str, conversion: int = CONVERSION, beside: Mapping[str, str] | None = None
) -> str:
    """Returns the folder of the dequantised model; makes it if it doesn't exist or is damaged.

    The folder is renamed to its final name when it is complete. If two processes make it, the first rename wins.

    Args:
        path: The GGUF file.
        name: Start of the folder's name, such as `smollm2-135m-q4`.
        sha256: The file's digest (hex).
        conversion: See `cached_folder`.
        beside: Further files for the folder, such as a licence: name in the folder → current path.

    Raises:
        LongEvalError: This GGUF can't be read exactly, or the cache can't be written.
    """
    folder = cached_folder(name, sha256, conversion)
    if is_whole(folder):
        return folder
    if os.path.lexists(folder):
        _log.warning("%s: its files were changed, or are from an earlier version; converting it again", folder)
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
            note_files(building, {"gguf": os.path.basename(path), "sha256": sha256})
            put_folder(building, folder, is_whole=is_whole)
    except OSError as error:
        raise unwritable(error) from error
    _log.info("converted in %.0f s", time.monotonic() - started)
    return folder


def cached_folder(name: str, sha256: str, conversion: int = CONVERSION) -> str:
    """Returns the path of a dequantised model's folder, whether it exists or not.

    Args:
        name: Start of the folder's name.
        sha256: The file's digest (hex).
        conversion: The `CONVERSION` of the folder; an older one for a file whose conversion has not changed since.
    """
    stem = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}-{sha256[:8]}"
    return os.path.join(cache_dir(), "models", stem if conversion == 1 else f"{stem}-v{conversion}")


def is_whole(folder: str) -> bool:
    """Whether a model's folder in the cache exists and its files are exactly those that were written."""
    try:
        with open(os.path.join(folder, NOTE), encoding="utf-8") as file:
            noted = json.load(file)["files"]
        names = {name for name in os.listdir(folder) if not name.startswith(".")}
        return names == {NOTE, *noted} and all(
            file_digest(os.path.join(folder, name)) == digest for name, digest in noted.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def unwritable(error: OSError) -> LongEvalError:
    """The error for a cache that can't be written."""
    return LongEvalError(
        f"cache {cache_dir()}: {reason(error)}",
        "A GGUF that is converted, or an adapter that is merged, needs room there for all weights of the model. "
        "Make room, or set LONGEVAL_CACHE to another folder.",
    )


def note_files(folder: str, origin: Mapping[str, str]) -> None:
    """Writes the note about a model's folder in the cache, for `is_whole`: its origin and the digests of its files."""
    import transformers

    files = {name: sha256_of(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}
    with open(os.path.join(folder, NOTE), "w", encoding="utf-8") as file:
        json.dump({**origin, "transformers": transformers.__version__, "files": files}, file, indent=1)
    for entry in os.scandir(folder):  # safetensors are written for their owner only; a cache may be shared
        os.chmod(entry.path, os.stat(folder).st_mode & 0o666)


def _convert(path: str, folder: str) -> None:
    """Dequantises `path` and writes config, safetensors and tokenizer into `folder`."""
    import transformers

    try:
        # The progress bar of the dequantisation can't be switched off, so stderr is redirected.
        with (
            whole_gguf(path, folder) as whole,
            quiet_transformers(),
            contextlib.redirect_stderr(io.StringIO()),
            _one_reader() as named,
        ):
            _dequantise(path, whole, folder, named)
    except Exception as error:  # transformers raises any kind of error for a file that it can't convert
        if isinstance(error, LongEvalError) or (isinstance(error, OSError) and error.errno):  # OSError: of the cache
            raise
        raise LongEvalError(
            f"--model {path}: transformers {transformers.__version__} can't convert this GGUF ({reason(error)})",
            "Give the original model instead, a hub id or a folder with config.json and safetensors.",
        ) from error


def _dequantise(name: str, path: str, folder: str, named: Mapping[str, str]) -> None:
    """Reads a GGUF with transformers, completes its config, and saves model and tokenizer into `folder`.

    `name` is the user's file, `path` the same model in one file, and `named` is from `_one_reader`.

    Raises:
        LongEvalError: Weights are missing or unexpected.
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
    """Makes gguf parse a file only once inside the block, although transformers opens it several times.

    Each parse takes 13 s for a vocabulary of 262k.

    Yields:
        A dictionary that is filled when transformers reads the file: name of the tensor in the file → transformers'
        name. transformers ignores all other tensors. It stays empty for architectures that transformers reads with its
        newer code, whose loading info is complete.
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
    """A model with the same weights, without quantisation config, in the narrowest dtype that changes no weight."""
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
    """bfloat16 or float16 if the cast changes no weight, otherwise float32."""
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(tensor.to(dtype).to(tensor.dtype), tensor) for tensor in tensors):
            return dtype
    return torch.float32
