"""Samples as a data set, made once and kept: what a generator made is read back where nothing that decides it changed.

The file is JSON, named by the digest of all that decides its rows, and holds theirs: what is not whole is made anew.
The tokens of its first prompt are counted again before it is trusted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import datasets

from longeval.cache import write_if_possible
from longeval.plain import canonical_json
from longeval.studies.tasks.setting import Setting

VERSION = 1
"""Of all generators in this folder; a change of what they make changes it, and with it the name of every file."""

Row = dict[str, Any]


def make_row(
    index: int, *, text: str, question: str, answers: list[str], form: str, tokens: int, depth: float | None = None,
    repeats: int | None = None,
) -> Row:  # fmt: skip
    """One sample: `input` is the user's message and ends with `question`; `target` is what would be right, as text."""
    row: Row = {
        "index": index,
        "input": text,
        "question": question,
        "answers": answers,
        "target": ", ".join(answers),
        "form": form,
        "tokens": tokens,
    }
    if depth is not None:
        row["depth"] = depth
    if repeats is not None:
        row["haystack_repeats"] = repeats
    return row


def dataset(
    task: str, setting: Setting, max_new_tokens: int, make: Callable[[], list[Row]], *, haystack: str = ""
) -> dict[str, datasets.Dataset]:
    """The samples of a task as lm-eval takes them; from the cache, or made and put there.

    Args:
        task: Its name.
        setting: What they are made for.
        max_new_tokens: Tokens left for the answer.
        make: Makes the rows.
        haystack: Digest of the documents that they hide something in, if any.
    """
    path = None if setting.cache is None else _path(setting.cache, task, setting, max_new_tokens, haystack)
    rows = None if path is None else _read(path, setting)
    if rows is None:
        rows = make()
        if path is not None:
            kept = {"digest": _digest(rows), "rows": rows}
            write_if_possible(path, json.dumps(kept, ensure_ascii=False).encode())
    return {"test": datasets.Dataset.from_list(rows)}


def _path(cache: str, task: str, setting: Setting, max_new_tokens: int, haystack: str) -> str:
    decides = {
        "task": task,
        "version": VERSION,
        "length": setting.length,
        "num_samples": setting.num_samples,
        "seed": setting.seed,
        "max_new_tokens": max_new_tokens,
        "haystack": haystack,
        "measure": setting.digest,
    }
    return os.path.join(cache, "synthetic", f"{_digest(decides)}.json")


def _read(path: str, setting: Setting) -> list[Row] | None:
    """Rows that were kept; null if there are none, or the file is not whole, or its prompts have other lengths now."""
    try:
        with open(path, encoding="utf-8") as file:
            kept = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(kept, dict) or kept.get("digest") != _digest(kept.get("rows")):
        return None
    rows: list[Row] = kept["rows"]
    return rows if setting.measure(rows[0]["input"]) == rows[0]["tokens"] else None


def _digest(value: object) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
