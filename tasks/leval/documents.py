"""The questions of L-Eval as lm-eval sees them: one row a question, from a local copy or from the hub.

L-Eval (An et al. 2023, arXiv 2307.11088) keeps one long document with all its questions on each line of a JSON-lines
file. A local copy is `leval/FILE.jsonl` under $LONGEVAL_DATA. Otherwise the plain file comes from the hub, pinned to
one commit so that scores stay comparable, and is kept in the hub's own cache; no loading script is run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import NamedTuple

import datasets

from longeval.data.corpora import HubDataset
from longeval.data.hub import HubUnavailableError, resolve_revision
from longeval.errors import LongEvalError, MissingDataError

_HUB = "L4NLP/LEval"
_REVISION = "43b9dbf06c239360b183c76cb5d90ebe4f5e3070"
_EXAM = "exam"


class _Document(NamedTuple):  # lm-eval runs this file outside of sys.modules, where dataclasses can't be made
    """One line of a file: a long document and all that is asked about it."""

    name: str
    """File and line; lines with the same text have the name of the first: their answers are not independent."""
    text: str
    """The document."""
    questions: tuple[str, ...]
    """What is asked, in the file's order."""
    references: tuple[str, ...]
    """What would be right, one for each question."""


def load(file: str, evaluation: str, **_: object) -> dict[str, datasets.Dataset]:
    """Reads a file of L-Eval for lm-eval's `custom_dataset`.

    Args:
        file: Its name, without `.jsonl`.
        evaluation: Only lines whose own `evaluation` is this are read: `exam`, `rouge` or `f1`. L-Eval leaves lines
            marked `LLM` and `human` to judges, and out of its ROUGE and F1 tables.
        **_: The task's other metadata, of no use here.

    Returns:
        The split `test`, with the fields document, document_id, question, reference, index (which question of its
        document, from 0) and words (length of the reference). All first questions come first, then all second ones, …,
        so that the first N rows have as many documents as N allows.

    Raises:
        LongEvalError: If there is neither a local copy nor one on the hub, or the file isn't as it should be.
    """
    path = _local_copy(file) or _hub_copy(file, "Exam" if evaluation == _EXAM else "Generation")
    asked = [
        (index, document, question, reference)
        for document in _read(path, evaluation)
        for index, (question, reference) in enumerate(zip(document.questions, document.references, strict=True))
    ]
    if not asked:
        raise LongEvalError(f"{path}: no question with evaluation {evaluation!r}", _another_copy(file))
    asked.sort(key=lambda row: row[0])  # stable: within one index, the file's order of documents
    rows = [
        {
            "document": document.text,
            "document_id": document.name,
            "question": question,
            "reference": reference,
            "index": index,
            "words": len(reference.split()),
        }
        for index, document, question, reference in asked
    ]
    return {"test": datasets.Dataset.from_list(rows)}


def _local_copy(file: str) -> str | None:
    """The path below $LONGEVAL_DATA, if the file is there; set to something that is no folder, it is an error."""
    root = os.environ.get("LONGEVAL_DATA")
    if not root:
        return None
    root = os.path.expanduser(root)
    if not os.path.isdir(root):
        raise LongEvalError(f"LONGEVAL_DATA={root}: not a folder", "Set it to a folder with local copies, or unset it.")
    path = os.path.join(root, "leval", f"{file}.jsonl")
    return path if os.path.isfile(path) else None


def _hub_copy(file: str, folder: str) -> str:
    """Path of the hub's file in the hub's cache, fetched if it isn't there; a cached one needs no network."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    name = f"LEval/{folder}/{file}.jsonl"
    cached = try_to_load_from_cache(_HUB, name, repo_type="dataset", revision=_REVISION)
    if isinstance(cached, str):
        return cached
    try:
        # Asked first because it knows what the errors of the hub's clients mean.
        resolve_revision(HubDataset(id=_HUB, field="input", file=name, revision=_REVISION))
        return hf_hub_download(_HUB, name, repo_type="dataset", revision=_REVISION)
    except HubUnavailableError as error:
        raise _missing(file, str(error), error.remedy) from error
    except OSError as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise _missing(file, f"{name} can't be fetched ({reason})", "Check the network.") from error


def _missing(file: str, reason: str, remedy: str) -> MissingDataError:
    root = os.environ.get("LONGEVAL_DATA")
    local = f"no leval/{file}.jsonl in LONGEVAL_DATA={root}" if root else "no local copy (LONGEVAL_DATA is not set)"
    here = f"Or put a copy there as leval/{file}.jsonl."
    way = f"Or put a copy into a folder as leval/{file}.jsonl and set LONGEVAL_DATA=<that folder>."
    return MissingDataError(
        f"L-Eval's {file}: {local}, and hub data set {_HUB}: {reason}",
        f"{remedy} {here if root else way}",
    )


def _another_copy(file: str) -> str:
    return f"Get leval/{file}.jsonl anew (hub data set {_HUB}), or unset LONGEVAL_DATA to read it from the hub."


def _read(path: str, evaluation: str) -> Iterator[_Document]:
    """Yields the documents of a file that are scored by `evaluation`."""
    names: dict[str, str] = {}
    file = os.path.splitext(os.path.basename(path))[0]
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                questions, references = _texts(record["instructions"]), _texts(record["outputs"])
                text, rule = record["input"].strip(), record["evaluation"]
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise LongEvalError(
                    f"{path}, line {number}: not a line of L-Eval ({type(error).__name__}: {error})",
                    _another_copy(file),
                ) from error
            if len(questions) != len(references) or not text:
                raise LongEvalError(
                    f"{path}, line {number}: {len(questions)} questions and {len(references)} answers to a document "
                    f"of {len(text)} characters",
                    _another_copy(file),
                )
            if rule == evaluation:
                name = names.setdefault(text, f"{file}#{number}")
                yield _Document(name=name, text=text, questions=questions, references=references)


def _texts(values: list[str]) -> tuple[str, ...]:
    return tuple(value.strip() for value in values)
