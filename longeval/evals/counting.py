"""How many tokens a prompt has before its task exists: for tasks that make their own samples to fit a window.

The count is that of the prompt as it is rendered later, by the same functions of lm-eval: a prompt that fits when it is
made fits when it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from longeval.evals.prepared import Window


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
