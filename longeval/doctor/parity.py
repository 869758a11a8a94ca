"""Does vLLM compute what transformers computes, under the same method? Compares tables, log-probabilities, answers.

Both run the same window of real text (Python's own standard library, which every machine has) and continue it.

Shapes: S scored tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.backends.base import Backend, GenerateRequest
from longeval.cells import Group
from longeval.evals.texts import Texts
from longeval.models.prepare import PreparedModel
from longeval.plan import Job, Plan
from longeval.session import Progress, backend_of, load_backend

NEW_TOKENS = 32
"""Of the greedy continuation."""

TOLERANCE = {"float32": 5e-4, "bfloat16": 0.1, "float16": 0.02}
"""Largest mean difference of a token's log-probability, nats, that rounding explains. Equal tables in float32 differ by
5e-6, other orders of summing alone; bfloat16 by 0.03, as much as rounding all wavelengths does."""


class Side(NamedTuple):
    """What one backend computed."""

    digest: str | None
    """Of the table that it holds."""
    nll_S: npt.NDArray[np.float32]
    """Negative log-likelihoods of the window's tokens, nats."""
    answer: str
    """Its greedy continuation of the window's first half."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """One comparison, and what it amounts to."""

    model: str
    pe: str
    factor: float | None
    length: int
    """Window, tokens."""
    dtype: str
    tokens: int
    """Scored ones."""
    digest_hf: str | None
    digest_vllm: str | None
    mean_difference: float
    """Of |log-probability|, nats a token."""
    max_difference: float
    perplexity_hf: float
    perplexity_vllm: float
    answer_hf: str
    answer_vllm: str
    reasons: tuple[str, ...]
    """What differs by more than rounding; empty if nothing does."""

    @property
    def verdict(self) -> Literal["same", "different"]:
        """Whether the two compute the same method."""
        return "different" if self.reasons else "same"


def parity(
    plan: Plan,
    progress: Progress,
    *,
    load_hf: Callable[[PreparedModel], Backend] | None = None,
    load_vllm: Callable[[PreparedModel], Backend] | None = None,
) -> Iterator[Parity]:
    """Compares the two backends on every group of a plan, one model in memory at a time.

    Args:
        plan: Of a request of one length and data set with `backend: vllm`.
        progress: Told about each window.
        load_hf: Brings the model into transformers; None: as always.
        load_vllm: Into vLLM; None: as the request says.

    Raises:
        LongEvalError: One of the two can't run the model.
    """
    loads = (load_hf or load_backend, load_vllm or backend_of(plan.spec))
    progress.begin([float(group.cells[0].length) for job in plan.jobs for group in job.groups for _ in loads])
    for job in plan.jobs:
        groups = [group for group in job.groups if group.cells[0].windows]
        hf, vllm = (_run(load, job, groups, progress) for load in loads)
        for group, a, b in zip(groups, hf, vllm, strict=True):
            for cell in group.cells:
                yield compare(a, b, job=job, pe=cell.pe.canonical, factor=cell.factor, length=cell.length)


def compare(a: Side, b: Side, *, job: Job, pe: str, factor: float | None, length: int) -> Parity:
    """What the sides `a` (hf) and `b` (vllm) amount to."""
    difference_S = np.abs(a.nll_S.astype(np.float64) - b.nll_S.astype(np.float64))
    mean = float(difference_S.mean())
    bound = TOLERANCE[job.model.dtype]
    reasons = []
    if a.digest != b.digest:
        reasons.append("the tables of cosines and sines are not the same")
    if not mean <= bound:  # also where one of them is NaN
        reasons.append(
            f"log-probabilities differ by {mean:.2g} nats a token; {job.model.dtype} explains {bound:g} at most"
        )
    return Parity(
        model=job.model.name,
        pe=pe,
        factor=factor,
        length=length,
        dtype=job.model.dtype,
        tokens=len(difference_S),
        digest_hf=a.digest,
        digest_vllm=b.digest,
        mean_difference=mean,
        max_difference=float(difference_S.max()),
        perplexity_hf=_perplexity(a),
        perplexity_vllm=_perplexity(b),
        answer_hf=a.answer,
        answer_vllm=b.answer,
        reasons=tuple(reasons),
    )


def _perplexity(side: Side) -> float:
    return math.exp(float(side.nll_S.astype(np.float64).mean()))


def _run(load: Callable[[PreparedModel], Backend], job: Job, groups: Sequence[Group], progress: Progress) -> list[Side]:
    """One backend's side of every group; the model is let go afterwards."""
    texts = Texts(job.corpus.selection, joined=False, bos_id=job.model.bos_id() if job.model.bos else None)
    backend = load(job.model)
    sides = []
    try:
        for group in groups:
            window = group.cells[0].windows[0]
            methods = ",".join(cell.pe.canonical for cell in group.cells)
            progress.stage(f"{methods} · {job.model.name} on {backend.name}", 1, "window")
            tokens_T = texts.window(window)
            backend.serve(group.table(window.length), window.length)
            nll_S = backend.score(tokens_T, window.context)
            prompt_T = tokens_T[: len(tokens_T) // 2]
            asked = GenerateRequest(prompt_T=prompt_T, max_new_tokens=NEW_TOKENS, stop=())
            ((_, answer),) = backend.generate([asked], job.model.tokenizer)
            sides.append(Side(backend.rope_digest(window.length), nll_S, answer.text))
            progress.advance(window.length, float(window.length), f"{len(nll_S)} scored")
    finally:
        backend.close()
    return sides
