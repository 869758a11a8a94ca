"""A folder with a tokenizer's files and nothing else, for tasks of lm-eval that load their tokenizer from a folder.

RULER's generators call `AutoTokenizer.from_pretrained(…, trust_remote_code=True)`. In a folder that we saved, without
`auto_map` and without Python files, there is no foreign code that this could run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from typing import Any

from longeval.cache import cache_dir

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
        return _save(tokenizer, tempfile.mkdtemp(prefix="longeval-tokenizer-"))


def _save(tokenizer: Any, parent: str) -> str:
    """Saves beside the final place and moves the folder there as a whole; another process may have been quicker."""
    os.makedirs(parent, mode=0o700, exist_ok=True)
    beside = tempfile.mkdtemp(prefix=".saving-", dir=parent)
    try:
        tokenizer.save_pretrained(beside)
        _remove_code(beside)
        folder = os.path.join(parent, _digest(beside))
        if not os.path.isdir(folder):
            with contextlib.suppress(OSError):  # another process has just put the same there
                os.rename(beside, folder)
        return folder
    finally:
        shutil.rmtree(beside, ignore_errors=True)


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
