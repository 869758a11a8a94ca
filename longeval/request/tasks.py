"""A request of `longeval tasks`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from longeval.errors import LongEvalError
from longeval.request.model import ModelRequest
from longeval.values import check_word

Overlong = Literal["middle", "left", "right", "skip", "error"]
OVERLONG: tuple[Overlong, ...] = get_args(Overlong)
"""What becomes of a sample that is longer than the window: its document loses its middle, its beginning (left) or its
end (right), the sample is left out, or nothing is computed."""

ChatTemplate = Literal["auto", "on", "off"]
CHAT_TEMPLATES: tuple[ChatTemplate, ...] = get_args(ChatTemplate)
"""Whether prompts go through the tokenizer's chat template; auto: if it has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TasksRequest(ModelRequest):
    """A request of `longeval tasks`. Every combination of model, method, length and task is a cell."""

    command: ClassVar[str] = "tasks"

    tasks: tuple[str, ...]
    """Names of tasks and groups, files of tasks."""
    include: tuple[str, ...] = ()
    """Folders with more tasks."""
    limit: int | None = None
    """At most this many samples of each task; None: all, for synthetic tasks as many as they suggest."""
    overlong: Overlong = "middle"
    """What becomes of a sample that is longer than the window."""
    same_samples: bool = False
    """Whether a sample that is left out at one length is left out at every length."""
    chat_template: ChatTemplate = "auto"
    """Whether prompts go through the tokenizer's chat template."""
    num_fewshot: int | None = None
    """Examples in front of each question; None: what the task says."""
    max_new_tokens: int | None = None
    """Most tokens of an answer; None: what the task says."""
    haystack: str | None = None
    """What needles are hidden in: `noise`, `stdlib`, or any documents; None: noise."""

    def __post_init__(self) -> None:
        ModelRequest.__post_init__(self)  # by name: super() knows the class as it was before it got slots
        if not self.tasks:
            raise LongEvalError("--tasks: nothing named", "`longeval tasks --list` shows what there is.")
        if self.limit is not None and self.limit < 1:
            raise LongEvalError(f"--limit {self.limit}: must be at least 1", "Leave it out for all samples.")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise LongEvalError(f"--num-fewshot {self.num_fewshot}: must be at least 0", "0 is none.")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise LongEvalError(f"--max-new-tokens {self.max_new_tokens}: must be at least 1", "Leave it out.")
        check_word("--overlong", self.overlong, OVERLONG)
        if self.same_samples and self.overlong != "skip":
            raise LongEvalError(
                f"--same-samples: would do nothing under --overlong {self.overlong}, which leaves no sample out",
                "Leave it out, or use --overlong skip.",
            )
        check_word("--chat-template", self.chat_template, CHAT_TEMPLATES)
