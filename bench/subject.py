"""What is measured: one model, loaded as longeval loads it and once more untouched, and one long text.

The plain side is the loop that a script without longeval would hold: `model(input_ids, labels=input_ids)` under
`no_grad`, the model and its call otherwise as they come. Both score the same tokens from the same weights, so their
mean negative log-likelihoods must agree, and the bench shows both.

Shapes: T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longeval.backends.base import OutOfMemoryError
from longeval.errors import LongEvalError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from longeval.backends.base import Backend
    from longeval.studies.ppl.request import PplRequest
    from longeval.studies.ppl.work import PplWork

SHORTEST_LONGEST = 16
"""The longest length must be at least this: a curve of its quarters has to make sense."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to measure."""

    model: str
    lengths: tuple[int, ...]
    """Window lengths in tokens, ascending."""
    dtypes: tuple[str, ...]
    """The curve and the sliding window are measured in the first only."""
    repeats: int
    device: str
    """The device, as `models.device.resolve_device` returns it."""

    def __post_init__(self) -> None:
        if self.longest < SHORTEST_LONGEST:
            raise LongEvalError(
                f"--lengths {self.longest}: the longest must have at least {SHORTEST_LONGEST} tokens",
                "1k,2k,3k is the default.",
            )

    @property
    def longest(self) -> int:
        """The longest length, tokens."""
        return max(self.lengths)

    @property
    def stride(self) -> int:
        """The sliding window's new tokens: 256 as everywhere in longeval, less where windows are hardly longer."""
        return min(256, self.longest // 4)

    @property
    def warm_up(self) -> bool:
        """GPUs choose kernels and grow their pool at the first pass of each shape, CPUs hardly do."""
        return self.device != "cpu"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Text:
    """The text, and the prepared model (without weights) that it was tokenised for."""

    work: PplWork
    """The one work of a plan with the one cell (none, longest)."""
    tokens_T: npt.NDArray[np.int32]
    """The longest window, BOS included where the model has one."""


def request_spec(request: Request, dtype: str, *, pe: str, lengths: tuple[int, ...]) -> PplRequest:
    """The perplexity request of one method on one document of the standard library, under `prefix`."""
    from longeval.studies.ppl.request import PplRequest

    return PplRequest(
        model=(request.model,),
        pe=(pe,),
        lengths=lengths,
        data=("stdlib",),
        docs=1,
        min_tokens=request.longest,
        dtype=dtype,
        device=request.device,
    )


def open_text(request: Request, dtype: str) -> Text:
    """Plans the longest window and reads its tokens; raises LongEvalError for what a user can mend."""
    from longeval.studies.ppl.plan import plan_ppl
    from longeval.studies.ppl.work import PplWork, Texts

    (work,) = plan_ppl(request_spec(request, dtype, pe="none", lengths=(request.longest,))).work
    assert isinstance(work, PplWork)
    texts = Texts(work.corpus.selection, joined=False, prefix=work.model.prefix)
    return Text(work=work, tokens_T=texts.window(work.passes()[0][0]))


def open_ours(text: Text) -> Backend:
    """Loads the model as a run does, and serves the table that it came with for the whole text."""
    from longeval.backends.hf.backend import load_backend

    backend = load_backend(text.work.model)
    serve_shipped(backend, text)
    return backend


def serve_shipped(backend: Backend, text: Text) -> None:
    """Makes the model rotate as it was shipped, as the plain one does."""
    length = len(text.tokens_T)
    backend.serve(text.work.table(length), length)


def open_plain(text: Text) -> Any:
    """Loads the same weights as an untouched transformers model."""
    return text.work.model.load()


def plain_loss(model: Any, tokens_T: npt.NDArray[np.int32]) -> float:
    """Mean negative log-likelihood (nats) of tokens 1 … T−1 by the plain loop; raises OutOfMemoryError."""
    import numpy as np
    import torch

    ids_BT = torch.from_numpy(tokens_T.astype(np.int64))[None].to(model.get_input_embeddings().weight.device)
    try:
        with torch.no_grad():
            return float(model(input_ids=ids_BT, labels=ids_BT).loss)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(str(error).splitlines()[0]) from error
