"""What tasks need that make their own samples to fit a window: the tokens of a prompt before the task exists.

The count is that of the prompt as it is rendered later, by the same functions of lm-eval: a prompt that fits when it is
made fits when it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.metadata import DEFAULT_SAMPLES
from longeval.studies.tasks.prompts.prepared import Window
from longeval.values import format_length

_BYTES_PER_TOKEN = 20
"""Of a sample that is made: its text as made, kept and rendered, about 5 bytes a token each, and its token ids."""


def prompt_counter(window: Window, config: Mapping[str, Any]) -> Callable[[str], int]:
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
    """A task's samples are all held at once; more than the machine holds are refused before the first is made.

    Args:
        num_samples: How many are asked for.
        length: Window in tokens, which each fills.

    Raises:
        LongEvalError: They need more than the machine's memory.
    """
    import psutil

    needed, there = num_samples * length * _BYTES_PER_TOKEN, int(psutil.virtual_memory().total)
    if needed > there:
        raise LongEvalError(
            f"--limit {num_samples}: so many samples of {format_length(length)} tokens need about "
            f"{needed / 2**30:,.0f} GiB for their prompts alone, and there are {there / 2**30:.1f} GiB",
            f"Ask for fewer; without --limit there are {DEFAULT_SAMPLES}.",
        )
