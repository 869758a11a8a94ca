"""A window: the tokens of one forward pass, and which of them are scored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One forward pass: tokens [start, stop) of a document behind a prefix; [score_start, stop) are scored."""

    document: int
    """Index of the document (for `stream`, of the document that holds the first scored token)."""
    start: int
    """First token, index in the document (in the stream for `stream`)."""
    stop: int
    """End of the window, exclusive."""
    score_start: int
    """First scored token."""
    prefix: int
    """Tokens in front: a BOS, or what else the tokenizer puts before a text."""

    @property
    def length(self) -> int:
        """Tokens in the window, prefix included: what length-dependent methods go by."""
        return self.stop - self.start + self.prefix

    @property
    def context(self) -> int:
        """Position in the window, prefix included, of the first scored token."""
        return self.score_start - self.start + self.prefix

    @property
    def num_scored(self) -> int:
        """Scored tokens."""
        return self.stop - self.score_start
