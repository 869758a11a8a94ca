"""Compares vLLM with transformers under the same method: tables, log-probabilities and greedy continuations.

Both score the same window of real text (Python's standard library, which every machine has) and continue it. Greedy
continuations may diverge at a token where two are almost equally probable. So hf, which runs second, computes by how
much it prefers its own token there.

Shapes: T tokens of a window or a prompt, S scored tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.backends.answering import end_tokens
from longeval.backends.base import Backend, GenerateRequest
from longeval.backends.hf.backend import load_backend
from longeval.models.prepare import PreparedModel
from longeval.run.host import Progress, backend_of
from longeval.studies.ppl.plan import PplPlan
from longeval.studies.ppl.work import PplWork, Texts

NEW_TOKENS = 32
"""Tokens of the greedy continuation."""

TOLERANCE = {"float32": 5e-4, "bfloat16": 0.1, "float16": 0.02}
"""The largest mean difference of a token's log-probability that rounding explains, nats.

With equal tables, float32 differs by 5e-6 because of the order of additions. bfloat16 differs by 0.03, which is as much
as the effect of rounding all wavelengths. These were measured on CPUs; a GPU with TF32 products may differ more."""

CHUNKS = 3
"""Minimum number of steps in which vLLM reads the window, so that chunked prefill is compared too."""

SEQUENCES = 8
"""vLLM's `max_num_seqs`, which must not exceed the tokens of a chunk; parity sends one sequence at a time."""

Tokens = npt.NDArray[np.int32]


class Side(NamedTuple):
    """The results of one backend."""

    digest: str | None
    """Digest of its table."""
    nll_S: npt.NDArray[np.float32]
    """Negative log-likelihoods of the window's tokens, nats."""
    answer: str
    """Its greedy continuation of the window's first half."""
    answer_tokens: tuple[int, ...]
    """The continuation as tokens, without the end token."""
    gap: float | None = None
    """By how many nats it prefers its own token where the two continuations diverge; None if they are equal, or if the
    other backend has not run yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """One comparison and its verdict."""

    model: str
    pe: str
    factor: float | None
    length: int
    """Length of the window, tokens."""
    dtype: str
    tokens: int
    """Scored tokens."""
    digest_hf: str | None
    digest_vllm: str | None
    mean_difference: float
    """Mean absolute difference of a token's log-probability, nats."""
    max_difference: float
    perplexity_hf: float
    perplexity_vllm: float
    answer_hf: str
    answer_vllm: str
    answer_gap: float | None
    """By how many nats hf prefers its own token where the continuations diverge; None if they are equal."""
    reasons: tuple[str, ...]
    """The differences that rounding does not explain; empty if there are none."""

    @property
    def verdict(self) -> Literal["same", "different"]:
        """`same` if rounding explains all differences."""
        return "different" if self.reasons else "same"


def parity(
    plan: PplPlan,
    progress: Progress,
    *,
    load_hf: Callable[[PreparedModel], Backend] | None = None,
    load_vllm: Callable[[PreparedModel], Backend] | None = None,
) -> Iterator[Parity]:
    """Compares the two backends on all work of a plan, one model in memory at a time, vLLM's first.

    Args:
        plan: The plan of a request with one length, one data set and `backend: vllm`.
        progress: Shows each window.
        load_hf: Loads the model into transformers; None: `load_backend`.
        load_vllm: Loads the model into vLLM; None: the function of the request's backend.

    Raises:
        LongEvalError: One of the two backends can't run the model.
    """
    loads = (load_hf or load_backend, load_vllm or backend_of(plan.request))
    every = [work for work in plan.work if isinstance(work, PplWork)]
    progress.begin([float(work.longest) for work in every for _ in loads])
    for model in plan.models:
        own = [work for work in every if work.model is model]
        vllm = _run(loads[1], model, own, progress)
        hf = _run(loads[0], model, own, progress, others=vllm)
        for work, a, b in zip(own, hf, vllm, strict=True):
            for cell in work.cells:
                yield compare(a, b, model=model, pe=cell.pe.canonical, factor=cell.factor, length=cell.length)


def compare(a: Side, b: Side, *, model: PreparedModel, pe: str, factor: float | None, length: int) -> Parity:
    """Compares the results `a` of hf with the results `b` of vllm."""
    difference_S = np.abs(a.nll_S.astype(np.float64) - b.nll_S.astype(np.float64))
    mean = float(difference_S.mean())
    bound = TOLERANCE[model.dtype]
    reasons = []
    if a.digest != b.digest:
        reasons.append("the tables of cosines and sines are not the same")
    if not mean <= bound:  # also true for NaN
        reasons.append(
            f"log-probabilities differ by {mean:.2g} nats per token; {model.dtype} explains at most {bound:g}"
        )
    # Only in float32: in bfloat16 and float16, rounding changes single tokens far more than their mean.
    if a.gap is not None and model.dtype == "float32" and not a.gap <= bound:
        reasons.append(
            f"the continuations diverge at a token that hf prefers to vllm's by {a.gap:.2g} nats; rounding explains at "
            f"most {bound:g}"
        )
    return Parity(
        model=model.name,
        pe=pe,
        factor=factor,
        length=length,
        dtype=model.dtype,
        tokens=len(difference_S),
        digest_hf=a.digest,
        digest_vllm=b.digest,
        mean_difference=mean,
        max_difference=float(difference_S.max()),
        perplexity_hf=_perplexity(a),
        perplexity_vllm=_perplexity(b),
        answer_hf=a.answer,
        answer_vllm=b.answer,
        answer_gap=a.gap,
        reasons=tuple(reasons),
    )


def _perplexity(side: Side) -> float:
    """Perplexity over all scored tokens."""
    return math.exp(float(side.nll_S.astype(np.float64).mean()))


def in_chunks(tokens: int, args: Mapping[str, Any]) -> dict[str, Any]:
    """Adds options to `args` with which vLLM reads a window of `tokens` tokens in several steps, unless given."""
    chunk = {"max_num_seqs": SEQUENCES, **args}
    return {"max_num_batched_tokens": max(math.ceil(tokens / CHUNKS), chunk["max_num_seqs"]), **chunk}


def _run(
    load: Callable[[PreparedModel], Backend],
    model: PreparedModel,
    every_work: Sequence[PplWork],
    progress: Progress,
    *,
    others: Sequence[Side] = (),
) -> list[Side]:
    """Runs one backend on all work, compares its continuations with `others`, and unloads the model."""
    backend = load(model)
    sides = []
    try:
        for number, work in enumerate(every_work):
            texts = Texts(work.corpus.selection, joined=False, prefix=model.prefix)
            window = work.cells[0].windows[0]
            methods = ",".join(cell.pe.canonical for cell in work.cells)
            backend.serve(work.table(window.length), window.length)  # before the stage: an engine's start is not a pass
            progress.stage(f"{methods} · {model.name} on {backend.name}", 1, "window")
            tokens_T = texts.window(window)
            nll_S = backend.score(tokens_T, window.context)
            prompt_T = tokens_T[: len(tokens_T) // 2]
            asked = GenerateRequest(prompt_T=prompt_T, max_new_tokens=NEW_TOKENS, stop=())
            recorder = _Recorder(model.tokenizer)
            ((_, answer),) = backend.generate([asked], recorder)
            assert recorder.text == answer.text, "the answer was decoded differently"
            side = Side(backend.rope_digest(window.length), nll_S, answer.text, recorder.last)
            if others:
                ends = end_tokens(model.generation_settings(), model.tokenizer)
                gap = _gap(backend, prompt_T, side.answer_tokens, others[number].answer_tokens, ends)
                side = side._replace(gap=gap)
            sides.append(side)
            progress.advance(window.length, float(window.length), f"{len(nll_S)} scored")
    finally:
        backend.close()
    return sides


class _Recorder:
    """Wraps a tokenizer and keeps the last decoded tokens, because backends return only the text of an answer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.last: tuple[int, ...] = ()
        self.text = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, tokens: Sequence[int], **options: Any) -> str:
        """Decodes with the wrapped tokenizer and stores tokens and text."""
        self.last = tuple(int(token) for token in tokens)
        self.text = self._tokenizer.decode(tokens, **options)
        return self.text


def _gap(
    backend: Backend, prompt_T: Tokens, own: Sequence[int], other: Sequence[int], ends: Collection[int]
) -> float | None:
    """By how many nats the backend prefers its own token where two continuations diverge; None if they are equal.

    The backend must still serve the table with which it generated `own`. If one continuation is a prefix of the other,
    its next token is the likeliest of the end tokens `ends`.
    """
    if tuple(own) == tuple(other):
        return None
    place = next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other)))
    before_T = np.concatenate((prompt_T, np.array(own[:place], dtype=np.int32)))

    def nll(candidates: Collection[int]) -> float:
        windows = (np.append(before_T, np.int32(token)) for token in candidates)
        return min(float(backend.score(tokens_T, len(before_T))[0]) for tokens_T in windows)

    return nll(other[place : place + 1] or ends) - nll(own[place : place + 1] or ends)
