"""The evaluations before and after: requests of `ppl` and `tasks`, which are carried out in the same run folder.

Before: the untouched model, without a method and with each method that is trained. After: the trained models, which
carry their method in their configuration, so that they are measured under `none`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from longeval.cache import cache_dir
from longeval.data.sources import open_source
from longeval.data.tokens import TokenisedDocument, select, tokenise
from longeval.errors import LongEvalError
from longeval.export.encoding import Encoding
from longeval.models.prepare import PreparedModel
from longeval.request import StudyRequest
from longeval.run.study import Tell, request_from_mapping
from longeval.studies.finetune.request import FinetuneRequest
from longeval.studies.finetune.text import TrainingText
from longeval.values import format_length


def lengths(request: FinetuneRequest, model: PreparedModel) -> tuple[int, ...]:
    """The lengths of the evaluation: as asked, or the native and the target length."""
    return request.lengths or tuple(sorted({model.native_length, request.length}))


def before(
    request: FinetuneRequest, model: PreparedModel, encodings: Sequence[Encoding], dtype: str
) -> Iterator[StudyRequest]:
    """The requests that measure a model before it is trained, without a method and with each of those."""
    methods = dict.fromkeys(("none", *(encoding.name.canonical for encoding in encodings)))
    factors = {encoding.factor for encoding in encodings if encoding.name.method.uses_factor}  # one for all
    how = {
        "native": request.native,
        "scale_from": request.scale_from,
        "layers": request.layers,
        "revision": request.revision,
        "pe_args": request.pe_args,
        "factor": next(iter(factors), None),
    }
    yield from _requests(request, [model.name], list(methods), lengths(request, model), dtype, how)


def after(request: FinetuneRequest, model: PreparedModel, folders: Sequence[str], dtype: str) -> Iterator[StudyRequest]:
    """The requests that measure the trained models of one model."""
    if folders:
        yield from _requests(request, folders, ["none"], lengths(request, model), dtype, {})


def _requests(
    request: FinetuneRequest,
    models: Sequence[str],
    methods: Sequence[str],
    asked: Sequence[int],
    dtype: str,
    how: dict[str, Any],
) -> Iterator[StudyRequest]:
    """The request of perplexities, and that of tasks if there are any."""
    common = {
        "model": list(models),
        "pe": list(methods),
        "lengths": list(asked),
        "bos": request.bos,
        "parse_special": request.parse_special,
        "dtype": dtype,
        "device": request.device,
        "attn": request.attn,
        **how,
    }
    wanted = [{"command": "ppl", "data": list(request.eval_data), "docs": request.eval_docs}]
    if request.tasks:
        wanted.append({"command": "tasks", "tasks": list(request.tasks), "limit": request.limit})
    for own in wanted:
        given = {key: value for key, value in (common | own).items() if value not in (None, {})}
        yield request_from_mapping(given, origin="evaluation")


@contextlib.contextmanager
def _as_eval_data() -> Iterator[None]:
    """Names `--eval-data` in errors about data, which speak of `--data` or of no flag."""
    try:
        yield
    except LongEvalError as error:
        problem = error.problem if error.problem.startswith("--") else f"--data {error.problem}"
        spoken = (text.replace("--data", "--eval-data") for text in (problem, error.remedy))
        raise LongEvalError(*spoken) from error


def check_untrained(request: FinetuneRequest, model: PreparedModel, text: TrainingText, tell: Tell) -> None:
    """Raises LongEvalError if a document of the evaluation is trained on, or if there is none."""
    longest = lengths(request, model)[-1]
    for name in request.eval_data:
        with _as_eval_data():
            source = open_source(name)

            def tokenised(document: Any) -> TokenisedDocument:
                return tokenise(
                    document, model.tokenizer, model.tokenizer_digest, cache_dir(), parse_special=request.parse_special
                )

            tell.preparing(f"reading {source.name}")
            docs = request.eval_docs if request.eval_docs is not None else source.default_docs or "all"
            chosen = select(source.documents(), tokenised, min_tokens=longest, docs=docs)
        found = text.overlap(chosen.documents)
        if found:
            shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
            raise LongEvalError(
                f"--eval-data {name}: {shown} would be trained on and measured on (--data {','.join(request.data)})",
                "Measure on other text, or train on a part of it: --data 'folder/[a-m]*.txt' --eval-data "
                "'folder/[n-z]*.txt'; --no-eval only trains.",
            )
        if not chosen.documents:
            raise LongEvalError(
                f"--eval-data {name}: no document has the {format_length(longest)} tokens of the longest of --lengths "
                f"(the longest read has {chosen.longest_tokens})",
                "Give longer documents or shorter --lengths; --no-eval only trains.",
            )
