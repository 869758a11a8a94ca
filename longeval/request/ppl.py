"""A request of `longeval ppl`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from longeval.errors import LongEvalError
from longeval.request.model import ModelRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class PplRequest(ModelRequest):
    """A request of `longeval ppl`. Every combination of model, method, length and data set is a cell."""

    command: ClassVar[str] = "ppl"

    data: tuple[str, ...] = ("gov_report",)
    """Corpora, `leval:NAME`, `stdlib`, files and folders."""
    protocol: str = "prefix"
    """Which tokens are scored with how much context."""
    stride: int | None = None
    """Tokens between windows (sliding, sliding_window_mean, stream); None: 256."""
    min_tokens: int | None = None
    """Documents with fewer tokens (BOS not counted) are skipped. None: the longest length under prefix, else 2."""
    docs: int | Literal["all"] | None = None
    """At most this many documents; None: what the data set suggests."""
    text_field: str | None = None
    """The field of JSON, CSV, parquet and Arrow files that holds the text."""

    def __post_init__(self) -> None:
        ModelRequest.__post_init__(self)  # by name: super() knows the class as it was before it got slots
        if not self.data:
            raise LongEvalError("--data: nothing named", "Give at least one.")
        if self.stride is not None and self.stride < 1:
            raise LongEvalError(f"--stride {self.stride}: must be at least 1", "256 is usual.")
        if self.min_tokens is not None and self.min_tokens < 2:
            raise LongEvalError(f"--min-tokens {self.min_tokens}: must be at least 2", "Leave it out for the default.")
        if isinstance(self.docs, int) and self.docs < 1:
            raise LongEvalError(f"--docs {self.docs}: must be at least 1", "Give a number, or all.")
