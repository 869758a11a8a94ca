"""A folder with a tokenizer's files and nothing else, for programs that load their tokenizer from a folder.

vLLM gets one where transformers would build another tokenizer from the model's own files. RULER's generators call
`AutoTokenizer.from_pretrained(…, trust_remote_code=True)`. In a folder that we saved, without `auto_map` and without
Python files, there is no foreign code that this could run.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
from typing import Any

from longeval.cache import cache_dir
from longeval.files import working_folder

_CONFIG = "tokenizer_config.json"


def tokenizer_folder(tokenizer: Any) -> str:
    """Saves a transformers tokenizer, once for each content, and returns its folder.

    Args:
        tokenizer: With `save_pretrained`.

    Returns:
        Absolute path, `cache_dir()/tokenizers/<digest>`; or a new temporary folder if the cache can't be written.
    """
    try:
        return _save(tokenizer, os.path.join(cache_dir(), "tokenizers"))
    except OSError:
        return _save(tokenizer, _temporary())


def _save(tokenizer: Any, parent: str) -> str:
    """Saves beside the final place and moves the folder there as a whole; another process may have been quicker."""
    os.makedirs(parent, mode=0o700, exist_ok=True)
    with working_folder(parent) as work:
        made = os.path.join(work, "tokenizer")
        tokenizer.save_pretrained(made)
        _remove_code(made)
        folder = os.path.join(parent, digest := _digest(made))
        if os.path.isdir(folder) and _digest(folder) != digest:  # damaged
            os.rename(folder, os.path.join(work, "damaged"))
        if not os.path.isdir(folder):
            with contextlib.suppress(OSError):  # another process has just put the same there
                os.rename(made, folder)
        return folder


@functools.cache
def _temporary() -> str:
    """A folder that lasts as long as this process."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(working_folder())


def _remove_code(folder: str) -> None:
    for name in os.listdir(folder):
        if name.endswith(".py"):
            os.unlink(os.path.join(folder, name))
    path = os.path.join(folder, _CONFIG)
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        config.pop("auto_map", None)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file, ensure_ascii=False, indent=2, sort_keys=True)


def _digest(folder: str) -> str:
    digest = hashlib.sha256()
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            content = file.read()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]
