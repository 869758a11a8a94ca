"""Prompts as lm-eval's tasks write them, sample by sample, in the way of its `Task.build_all_requests` (0.4.13).

Examples in front of a question are drawn in the order of samples, as lm-eval draws them; a sample that is rendered
again, with a shorter document, gets the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.code import NotRunError
from longeval.studies.tasks.definitions.guards import seeded
from longeval.studies.tasks.definitions.templates import TemplateError
from longeval.studies.tasks.quiet import quiet

T = TypeVar("T")


def task_name(task: Any) -> str:
    """The task's name as lm-eval knows it; its class for one without."""
    return str(task.config.task or type(task).__name__)


class Renderer:
    """Renders samples of one task.

    Args:
        task: An lm-eval `Task`.
        chat_template: Messages → text; None: prompts are plain text.
        num_fewshot: Examples in front of each question; None: the task's own number.
        seed: For the draw of examples.
        name: The task's, for messages.

    Raises:
        LongEvalError: The task says that it takes no examples, and some are asked for.
    """

    def __init__(
        self, task: Any, chat_template: Callable[..., str] | None, *, num_fewshot: int | None, seed: int, name: str
    ) -> None:
        self._task = task
        self._chat_template = chat_template
        self._seed = seed
        self._name = name
        own: int | None = task.config.num_fewshot
        if num_fewshot and own == 0:
            raise LongEvalError(f"--num-fewshot {num_fewshot}: task {name} takes no examples", "Leave it out.")
        self.num_fewshot = (own or 0) if num_fewshot is None else num_fewshot
        with quiet():
            self._docs = task.eval_docs
        self.num_docs = len(self._docs)
        self._draws: dict[int, tuple[Any, ...]] = {}

    def asked(self, limit: int | None, indices: Collection[int] | None) -> Sequence[int]:
        """The first `limit` samples, or those of `indices` among them, in order."""
        stop = self.num_docs if limit is None else min(limit, self.num_docs)
        return range(stop) if indices is None else sorted({index for index in indices if index < stop})

    def samples(self, limit: int | None, indices: Collection[int] | None) -> Iterator[tuple[int, Any, tuple[Any, ...]]]:
        """Yields index, sample and instances of the first `limit` samples, or of those of `indices` among them."""
        wanted = self.asked(limit, indices)
        self._task.set_fewshot_seed(self._seed)
        drawn = 0
        for index in wanted:
            if self.num_fewshot:
                for earlier in range(drawn, index):  # only for what they draw
                    self._rendered(earlier, self._docs[earlier])
                drawn = index + 1
            self._draws = {index: self._generators()}
            doc = self._docs[index]
            yield index, doc, self._rendered(index, doc)

    def target(self, index: int, doc: Any) -> str:
        """The right answer, as text: the right choice where the task has choices."""
        return self._guarded(index, lambda: _target(self._task, doc))

    def instances(self, index: int, doc: Any) -> tuple[Any, ...]:
        """The instances of the sample that was yielded last, in another form of it, with the same examples."""
        self._restore(self._draws[index])
        return self._rendered(index, doc)

    def _rendered(self, index: int, doc: Any) -> tuple[Any, ...]:
        return self._guarded(index, lambda: self._render(index, doc))

    def _guarded(self, index: int, work: Callable[[], T]) -> T:
        """What `work` returns, which is done by the task's own code and templates."""
        try:
            with quiet(), seeded(self._seed + index):
                return work()
        except TemplateError as error:
            error.sample = index
            raise
        except (LongEvalError, NotRunError):
            raise
        except Exception as error:  # whatever a task's functions raise for samples that aren't what they expect
            raise LongEvalError(
                f"task {self._name}: the prompt of sample {index} can't be made: {type(error).__name__}: {error}",
                "Its YAML file or the functions beside it don't fit its data.",
            ) from error

    def _render(self, index: int, doc: Any) -> tuple[Any, ...]:
        task, chat = self._task, self._chat_template is not None
        context = task.fewshot_context(
            doc,
            num_fewshot=self.num_fewshot,
            system_instruction=None,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            chat_template=self._chat_template,
            gen_prefix=task.doc_to_prefix(doc),
        )
        instances = task.construct_requests(
            doc=doc,
            ctx=context,
            metadata=(task.config.task, index, task.config.repeats),
            apply_chat_template=chat,
            chat_template=self._chat_template,
        )
        if not isinstance(instances, list):
            return (instances,)
        return tuple(sorted(instances, key=lambda instance: int(instance.idx)))

    def _generators(self) -> tuple[Any, ...]:
        """The states of the generators that examples are drawn with."""
        return tuple(generator.getstate() for generator in self._own_generators())

    def _restore(self, states: tuple[Any, ...]) -> None:
        for generator, state in zip(self._own_generators(), states, strict=True):
            generator.setstate(state)

    def _own_generators(self) -> list[Any]:
        sampler = getattr(self._task, "sampler", None)
        found = [getattr(self._task, "fewshot_rnd", None), getattr(sampler, "rnd", None)]
        return [generator for generator in found if generator is not None]


def _target(task: Any, doc: Any) -> str:
    target = task.doc_to_target(doc)
    if getattr(task.config, "doc_to_choice", None) is None or getattr(task, "multiple_input", False):
        choices = None
    else:
        choices = task.doc_to_choice(doc)
    targets = target if isinstance(target, list | tuple) else [target]
    texts = [choices[one] if choices and isinstance(one, int) and 0 <= one < len(choices) else one for one in targets]
    return " | ".join(str(text) for text in texts)
