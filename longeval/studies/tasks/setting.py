"""What a task that makes its samples itself must know of the cell it makes them for.

lm-eval passes a task's metadata to its `custom_dataset` function as keyword arguments. longeval adds
`setting=Setting(…)` to it, so that a YAML file with a generator beside it gets the window, the seed and a way to count
tokens, and no model. The count is that of the prompt as it is rendered later, by the same functions of lm-eval: a
prompt that fits when it is made fits when it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longeval.errors import LongEvalError
from longeval.values import format_length

if TYPE_CHECKING:
    from longeval.studies.tasks.prompts.requests import PromptWindow

DEFAULT_SAMPLES = 100
"""Samples that a synthetic task makes where neither the user nor its YAML says how many."""

_BYTES_PER_TOKEN = 20
"""Of a sample that is made: its text as made, kept and rendered, about 5 bytes a token each, and its token ids."""


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
    """Called with the number of samples made so far."""

    def indices(self) -> Iterator[int]:
        """The numbers of all samples, from 0; a generator that goes by them tells how far it is."""
        for index in range(self.num_samples):
            yield index
            self.on_sample(index + 1)


def prompt_counter(window: PromptWindow, config: Mapping[str, Any]) -> Callable[[str], int]:
    """Text of the user's message → tokens of the whole prompt: BOS, chat template, beginning of the answer included.

    Args:
        window: What inputs of the model look like.
        config: The task's keys: `gen_prefix` and `target_delimiter` belong to the prompt.
    """
    from lm_eval.api.task import ConfigurableTask

    encoder = window.encoder()
    prefix = config.get("gen_prefix")
    delimiter = config.get("target_delimiter", " ")

    def count(text: str) -> int:
        turn = ConfigurableTask.build_qa_turn(None, q=text, gen_prefix=prefix, tgt_delim=delimiter, few_delim="")
        if window.chat:
            prompt = encoder.chat([message.to_dict() for message in turn], add_generation_prompt=not prefix)
        else:
            prompt = "".join(message.to_text() for message in turn)
        return len(encoder.encode([prompt])[0])

    return count


def check_samples_fit(num_samples: int, length: int) -> None:
    """Raises LongEvalError where so many samples of `length` tokens, all held at once, need more than the memory."""
    import psutil

    needed, there = num_samples * length * _BYTES_PER_TOKEN, int(psutil.virtual_memory().total)
    if needed > there:
        raise LongEvalError(
            f"--limit {num_samples}: so many samples of {format_length(length)} tokens need about "
            f"{needed / 2**30:,.0f} GiB for their prompts alone, and there are {there / 2**30:.1f} GiB",
            f"Ask for fewer; without --limit there are {DEFAULT_SAMPLES}.",
        )
