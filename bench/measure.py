"""The timed measurements: tokens/s against the plain loop, a curve against its longest length, a sliding window's pass.

Shapes: T tokens of a window, S scored ones.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.subject import Request, Text, plain_loss, request_spec, serve_shipped
from bench.timing import Timed, alternate

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from longeval.backends.base import Backend
    from longeval.studies.ppl.plan import PplPlan

CURVE_LIMIT = 1.3
"""What a curve of four lengths may cost, as a multiple of its longest length alone."""

CURVE_PE = "yarn"
"""The curve's method: static, and not what the model came with, so its table is really served."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Throughput:
    """One window of `length` tokens, every token after the first scored: ours first, the plain loop second."""

    dtype: str
    length: int
    timed: Timed
    mean_nll: float | None
    """Ours, nats per token; None where it ran out of memory."""
    plain_mean_nll: float | None
    """The plain loop's loss: the same number but for rounding."""

    @property
    def tokens_per_s(self) -> float | None:
        """Ours."""
        took = self.timed.first.median_s
        return None if took is None else self.length / took

    @property
    def plain_tokens_per_s(self) -> float | None:
        """The plain loop's."""
        took = self.timed.second.median_s
        return None if took is None else self.length / took

    @property
    def speedup(self) -> float | None:
        """Tokens/s of ours over the plain loop's."""
        ratio = self.timed.ratio
        return None if ratio is None else 1 / ratio


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A whole run of four lengths first, a whole run of the longest alone second; the model is loaded before."""

    dtype: str
    lengths: tuple[int, ...]
    pe: str
    timed: Timed

    @property
    def within_limit(self) -> bool | None:
        """Whether the ratio is at most CURVE_LIMIT; None if it could not be measured."""
        ratio = self.timed.ratio
        return None if ratio is None else ratio <= CURVE_LIMIT


@dataclass(frozen=True, kw_only=True, slots=True)
class Sliding:
    """One window: every token's logits first, only those of the last `stride` tokens second."""

    dtype: str
    length: int
    stride: int
    timed: Timed
    largest_difference: float | None
    """Largest |NLL difference| of the last `stride` tokens between the two, nats: rounding only."""


def measure_throughput(request: Request, dtype: str, text: Text, backend: Backend, plain: Any) -> list[Throughput]:
    """Times every length; `backend` and `plain` are the same model."""
    serve_shipped(backend, text)
    short_T = text.tokens_T[: request.lengths[0]]
    backend.score(short_T, 1)  # thread pools and kernels of this dtype
    plain_loss(plain, short_T)
    return [_at_length(request, dtype, text.tokens_T[:length], backend, plain) for length in request.lengths]


def _at_length(
    request: Request, dtype: str, tokens_T: npt.NDArray[np.int32], backend: Backend, plain: Any
) -> Throughput:
    """One row: both sides on the same window."""
    ours: list[float] = []
    theirs: list[float] = []
    timed = alternate(
        lambda: ours.append(float(backend.score(tokens_T, 1).mean(dtype=float))),
        lambda: theirs.append(plain_loss(plain, tokens_T)),
        repeats=request.repeats,
        warm_up=request.warm_up,
    )
    return Throughput(
        dtype=dtype,
        length=len(tokens_T),
        timed=timed,
        mean_nll=ours[-1] if timed.first.seconds else None,
        plain_mean_nll=theirs[-1] if timed.second.seconds else None,
    )


def measure_curve(request: Request, dtype: str, backend: Backend) -> Curve:
    """Times `engine.run` from plan to stored records, with a loaded model, on a store of its own each time."""
    from longeval.studies.ppl.plan import plan_ppl

    longest = request.longest
    lengths = (longest // 4, longest // 2, 3 * longest // 4, longest)
    plans = [
        plan_ppl(request_spec(request, dtype, pe=CURVE_PE, lengths=wanted))
        for wanted in (lengths, lengths[-1:], lengths[:1])
    ]
    with tempfile.TemporaryDirectory(prefix="longeval-bench-") as folder:
        carry_out(plans[2], backend, folder)  # what a process does once: versions, commit, first use of everything
        timed = alternate(
            lambda: carry_out(plans[0], backend, folder),
            lambda: carry_out(plans[1], backend, folder),
            repeats=request.repeats,
            warm_up=request.warm_up,
        )
    return Curve(dtype=dtype, lengths=lengths, pe=CURVE_PE, timed=timed)


def carry_out(plan: PplPlan, backend: Backend, folder: str) -> None:
    """Runs a plan with a loaded model into a new store under `folder`; a failed cell raises RuntimeError."""
    from longeval.cli.progress import RunProgress
    from longeval.run.engine import run
    from longeval.store.folder import Store

    store = Store(os.path.join(tempfile.mkdtemp(dir=folder), "run"))
    with RunProgress(quiet=True) as progress:
        result = run(plan, store, progress, load=lambda _: Borrowed(backend))
    for record in result.records:
        if record.status != "ok":
            raise RuntimeError(f"{record.pe} at {record.length} tokens {record.status}: {record.error}")
    assert result.computed == len(plan.cells), "a cell was served from a store that should have been empty"


def measure_sliding(request: Request, dtype: str, text: Text, backend: Backend) -> Sliding:
    """Times one window's pass with all logits and with the tail's only, and compares what they say of the tail."""
    import numpy as np

    serve_shipped(backend, text)
    tokens_T, stride = text.tokens_T, request.stride
    full: list[Any] = []
    tail: list[Any] = []
    timed = alternate(
        lambda: full.append(backend.score(tokens_T, 1)),
        lambda: tail.append(backend.score(tokens_T, len(tokens_T) - stride)),
        repeats=request.repeats,
        warm_up=request.warm_up,
    )
    difference = None
    if timed.ratio is not None:
        full_S, tail_S = full[-1][-stride:], tail[-1]
        assert full_S.shape == tail_S.shape
        difference = float(np.abs(full_S - tail_S).max())
    return Sliding(dtype=dtype, length=len(tokens_T), stride=stride, timed=timed, largest_difference=difference)


class Borrowed:
    """A backend that outlives the run that uses it: a run closes what it has loaded."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def close(self) -> None:
        """Nothing: whoever lent it goes on using it."""
