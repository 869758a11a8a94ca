"""What a task that makes its samples itself must know of the cell it makes them for.

lm-eval passes a task's metadata to its `custom_dataset` function as keyword arguments. longeval adds
`setting=Setting(…)` to it, so that a YAML file with a generator beside it gets the window, the seed and a way to count
tokens, and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """The window, the number of samples and the token count that samples are made for."""

    length: int
    """Window length n in tokens, what the model has to generate included."""
    num_samples: int
    """How many samples are asked for: `--limit`, or the task's own default."""
    seed: int
    """Samples with the same seed, length and tokenizer are the same."""
    haystack: str
    """Where filler text comes from: `noise`, `stdlib`, or any `--data` name or path."""
    measure: Callable[[str], int]
    """Text of the user's message → tokens of the whole prompt as the model gets it: BOS, chat template, prefix of the
    answer included."""
    digest: str
    """Digest of all that `measure` depends on (tokenizer, chat template, BOS): a key for caches."""
    cache: str | None
    """Cache folder (`longeval.cache.cache_dir()`); null: nothing is cached."""
    on_sample: Callable[[int], None] = lambda number: None
    """Told how many samples are made."""

    def indices(self) -> Iterator[int]:
        """The numbers of all samples, from 0; a generator that goes by them tells how far it is."""
        for index in range(self.num_samples):
            yield index
            self.on_sample(index + 1)
