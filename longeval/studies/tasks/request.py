"""A request of `longeval tasks`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from longeval.errors import LongEvalError
from longeval.request import setting
from longeval.request.model import ModelRequest
from longeval.request.setting import Declare

SAMPLES = "Samples and prompts"

Overlong = Literal["middle", "left", "right", "skip", "error"]
"""What becomes of a sample that is longer than the window: its document loses its middle, its beginning (left) or its
end (right), the sample is left out, or nothing is computed."""

ChatTemplate = Literal["auto", "on", "off"]
"""Whether prompts go through the tokenizer's chat template; auto: if it has one."""


class TasksRequest(ModelRequest, frozen=True):
    """Downstream long-text tasks, by RoPE method and window length.

    Every combination of model, method, length and task is a cell. Finished
    cells are stored at once; the same command goes on where it stopped.

    [bold]Examples[/bold]

    longeval tasks --list

    longeval tasks --model smollm2-135m-q4 --pe none,yarn --tasks passkey,niah --lengths 4k,8k,12k --limit 20

    longeval tasks --model llama2-7b-chat --pe ntk,yarn,resonance_yarn --tasks leval --lengths 8k,16k,32k
    """

    command: ClassVar[str] = "tasks"
    can_show: ClassVar[bool] = True
    how_only: ClassVar[frozenset[str]] = frozenset({"keep_text"})

    tasks: Annotated[
        tuple[str, ...],
        Declare(
            setting.paths,
            "Tasks, groups (leval, niah, longbench, …), patterns ('arc*') or .yaml files; comma list.",
            example="passkey",
        ),
    ]
    include: Annotated[
        tuple[str, ...],
        Declare(setting.paths, "Folder with task files of your own; may be repeated.", repeated=True, panel=SAMPLES),
    ] = ()
    limit: Annotated[
        int | None,
        Declare(
            setting.count(),
            "At most so many samples of each task; synthetic tasks make as many.",
            unset="all; 100 of synthetic tasks",
            panel=SAMPLES,
        ),
    ] = None
    overlong: Annotated[
        Overlong,
        Declare(
            setting.words(Overlong),
            "A sample longer than the window: cut its document's middle, left (its beginning), right (its end), "
            "skip the sample, or error.",
            panel=SAMPLES,
        ),
    ] = "middle"
    same_samples: Annotated[
        bool, Declare(setting.switch, "Skip a sample at every length if it is at one.", panel=SAMPLES)
    ] = False
    chat_template: Annotated[
        ChatTemplate, Declare(setting.words(ChatTemplate), "on, off, or auto: if the tokenizer has one.", panel=SAMPLES)
    ] = "auto"
    num_fewshot: Annotated[
        int | None, Declare(setting.count(least=0), "Examples before each question.", unset="the task's", panel=SAMPLES)
    ] = None
    max_new_tokens: Annotated[
        int | None, Declare(setting.count(), "Most tokens of an answer.", unset="the task's", panel=SAMPLES)
    ] = None
    haystack: Annotated[
        str | None,
        Declare(
            setting.text,
            "What needles are hidden in: noise, stdlib, or any --data of ppl.",
            unset="noise",
            panel=SAMPLES,
        ),
    ] = None

    keep_text: Annotated[
        bool | None,
        Declare(
            setting.switch,
            "Keep with each answer the prompt that the model was given: the report's page then shows it.",
            unset="don't keep it: long prompts take much space",
            panel=SAMPLES,
            former="save_prompts",
        ),
    ] = None

    def check(self) -> None:
        """See `StudyRequest.check`."""
        ModelRequest.check(self)
        if self.same_samples and self.overlong != "skip":
            raise LongEvalError(
                f"--same-samples: would do nothing under --overlong {self.overlong}, which leaves no sample out",
                "Leave it out, or use --overlong skip.",
            )
