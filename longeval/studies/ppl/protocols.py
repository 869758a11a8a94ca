"""Perplexity protocols: exactly which tokens are scored with how much context.

Protocols that share a name elsewhere differ in these two points, and so in their numbers; here each has its own name,
and the name is in every record. A protocol turns document lengths into windows; what the windows mean is derived later
from their token-level values (`stats.bootstrap`).

    prefix               the first n tokens of each document, one window
    sliding              Press et al. 2022 (arXiv 2108.12409): a window every `stride` tokens, only new tokens count
    sliding_window_mean  the same windows; the plain mean of window means, as YaRN's GovReport numbers were made
    stream               documents joined; every token of every window counts (LongLoRA, LCEG)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longeval.errors import LongEvalError
from longeval.registry import Registry
from longeval.run.cost import Window


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """A registered protocol."""

    name: str
    summary: str
    """One line for help and reports."""
    windows: Callable[[Sequence[int], int, int, int], list[Window]]
    """(document lengths, window length n, stride, tokens of the prefix) → windows."""
    nested: bool = False
    """Whether a shorter length's windows are beginnings of a longer one's, so that one pass serves both."""
    strided: bool = True
    """Whether `stride` means anything."""
    joined: bool = False
    """Whether documents are joined into one stream first."""


PROTOCOLS: Registry[Protocol] = Registry("--protocol")


def prefix_windows(lengths: Sequence[int], length: int, stride: int, prefix: int) -> list[Window]:
    """One window a document that can fill it: the prefix and the first tokens, n in all. `stride` is not used."""
    payload = length - prefix
    first = 0 if prefix else 1
    return [
        Window(document=index, start=0, stop=payload, score_start=first, prefix=prefix)
        for index, num_tokens in enumerate(lengths)
        if num_tokens >= payload > first
    ]


def sliding_windows(lengths: Sequence[int], length: int, stride: int, prefix: int) -> list[Window]:
    """Windows every `stride` tokens over each whole document, scoring what no earlier window scored.

    The first window scores all it can; the last one ends at the document's end and may be shorter than n, as may the
    only window of a short document. A window's first token is never scored unless a prefix stands before it.
    """
    payload = length - prefix
    windows = []
    for index, num_tokens in enumerate(lengths):
        scored_to = 0
        for start in range(0, num_tokens, stride):
            stop = min(start + payload, num_tokens)
            score_start = max(scored_to, start + (0 if prefix else 1))
            if score_start < stop:
                windows.append(Window(document=index, start=start, stop=stop, score_start=score_start, prefix=prefix))
            scored_to = stop
            if stop == num_tokens:
                break
    return windows


def stream_windows(lengths: Sequence[int], length: int, stride: int, prefix: int) -> list[Window]:
    """Full windows every `stride` tokens over the joined documents, each scoring all it can.

    A tail shorter than a stride that fits no full window is not scored. Tokens are indices in the stream.
    """
    payload = length - prefix
    ends = list(itertools.accumulate(lengths))
    windows, document = [], 0
    for start in range(0, sum(lengths) - payload + 1, stride):
        score_start = start + (0 if prefix else 1)
        while ends[document] <= score_start:
            document += 1
        if score_start < start + payload:
            windows.append(
                Window(document=document, start=start, stop=start + payload, score_start=score_start, prefix=prefix)
            )
    return windows


for _protocol in (
    Protocol(
        name="prefix",
        summary="first n tokens of each document, every token after the first scored once",
        windows=prefix_windows,
        nested=True,
        strided=False,
    ),
    Protocol(
        name="sliding",
        summary="windows of n tokens every stride tokens, each token scored once (Press et al. 2022)",
        windows=sliding_windows,
    ),
    Protocol(
        name="sliding_window_mean",
        summary="sliding windows, plain mean of the window means (YaRN's GovReport numbers)",
        windows=sliding_windows,
    ),
    Protocol(
        name="stream",
        summary="documents joined, every token of every window scored (LongLoRA, LCEG)",
        windows=stream_windows,
        joined=True,
    ),
):
    PROTOCOLS.register(_protocol.name, _protocol)


def check_stride(protocol: Protocol, stride: int, shortest: int, prefix: int) -> None:
    """Refuses a stride that would leave tokens unscored between windows of the shortest length."""
    if protocol.strided and stride > shortest - prefix:
        raise LongEvalError(
            f"--stride {stride}: longer than a window of {shortest} tokens, {prefix} of them in front of the text",
            f"Tokens between windows would never be scored: give --stride {shortest - prefix} or less.",
        )
