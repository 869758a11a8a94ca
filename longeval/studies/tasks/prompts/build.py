"""The questions of a task as one model is asked them at one length: rendered, tokenised, and cut where they must be.

Prompts are rendered by lm-eval's own tasks, sample by sample, in the way of its `Task.build_all_requests` (0.4.13).
They don't depend on the RoPE method: a task is prepared once, and every method answers the same token ids.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from longeval.backends.base import GenerateRequest
from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.files import NotRunError
from longeval.studies.tasks.definitions.guards import quiet, seeded
from longeval.studies.tasks.definitions.metadata import read_metadata
from longeval.studies.tasks.definitions.templates import TemplateError
from longeval.studies.tasks.prompts.overlong import (
    Need,
    NoRoomError,
    Side,
    cut,
    document_field,
    most_that_fits,
    too_long,
)
from longeval.studies.tasks.prompts.requests import (
    Built,
    PreparedSample,
    PreparedTask,
    PromptWindow,
    build,
    decoding,
    digest,
    longest,
    reach,
)
from longeval.studies.tasks.request import Overlong

T = TypeVar("T")


def prepare(
    task: Any,
    window: PromptWindow,
    *,
    limit: int | None,
    indices: Collection[int] | None = None,
    num_fewshot: int | None = None,
    max_new_tokens: int | None = None,
    seed: int = 1234,
    on_sample: Callable[[int, int], None] = lambda number, total: None,
) -> PreparedTask:
    """Renders and tokenises a task's samples.

    Args:
        task: An lm-eval `Task`.
        window: What inputs look like, how long they may be, and what becomes of longer ones.
        limit: Only the first so many samples; None: all.
        indices: Of those, only these; None: all.
        num_fewshot: Examples in front of each question; None: the task's own number.
        max_new_tokens: Most tokens of an answer; None: the task's own number.
        seed: For the draw of examples. With lm-eval's, 1234, they are lm-eval's. A sample's don't depend on `limit` or
            `indices`.
        on_sample: Called with the number of samples that are done, and the number of all.

    Raises:
        LongEvalError: The task's prompts can't be made; or a sample doesn't fit and isn't allowed to, or can't be made
            to.
    """
    preparer = _Preparer(task, window, num_fewshot=num_fewshot, max_new_tokens=max_new_tokens, seed=seed)
    renderer, name = preparer.renderer, preparer.name

    def need(index: int, examples: int) -> Need:
        fewer = _Preparer(task, window, num_fewshot=examples, max_new_tokens=max_new_tokens, seed=seed)
        return fewer.need(*next(fewer.renderer.samples([index])))

    samples: list[PreparedSample] = []
    spelt: Counter[str] = Counter()
    unfit: dict[int, int] = {}
    asked = renderer.asked(limit, indices)
    for number, (index, doc, instances) in enumerate(renderer.samples(asked), start=1):
        try:
            samples.append(preparer.sample(index, doc, instances))
            spelt += preparer.spelt(instances)
        except NoRoomError as error:
            unfit[index] = error.needed
        on_sample(number, len(asked))
    if unfit and window.overlong != "skip":
        raise too_long(name, window, unfit, need=need, num_fewshot=renderer.num_fewshot)
    generated = [one for sample in samples for one in sample.requests if isinstance(one, GenerateRequest)]
    return PreparedTask(
        name=name,
        samples=tuple(samples),
        skipped=unfit,
        num_docs=renderer.num_docs,
        request_type=str(task.OUTPUT_TYPE or (samples[0].instances[0].request_type if samples else "")),
        num_fewshot=renderer.num_fewshot,
        max_new_tokens=max((request.max_new_tokens for request in generated), default=None),
        spelt=spelt,
        digest=_digest(samples),
        notes=tuple(_notes(name, samples)),
    )


def _digest(samples: list[PreparedSample]) -> str:
    """SHA-256 of all requests and of the whole uncut samples, which scoring may look at."""
    whole = hashlib.sha256()
    for sample in samples:
        held = json.dumps(sample.doc, sort_keys=True, default=str, ensure_ascii=True)
        asked = digest(sample.requests, settings=True)
        parts = (sample.index, asked, sample.target, sample.cluster, sample.depth, held)
        whole.update(f"{json.dumps(parts)}\n".encode())
    return whole.hexdigest()


def _notes(name: str, samples: list[PreparedSample]) -> Iterator[str]:
    """Lines on what is done differently from what the task asks for."""
    instances = [instance for sample in samples for instance in sample.instances]
    generated = next((instance for instance in instances if instance.request_type == "generate_until"), None)
    unheeded = "" if generated is None else decoding(generated.args[1]).unheeded
    if unheeded:
        yield f"{name} asks for {unheeded}; answers are decoded greedily instead"
    repeats = max((instance.repeats or 1 for instance in instances), default=1)
    if repeats > 1:
        yield f"{name} asks each question {repeats} times; greedy answers are equal, so it is asked once"


class _Cutter(NamedTuple):
    """Makes a sample's document shorter."""

    num_units: int
    """Number of units in which the document can be cut."""
    keep: Callable[[int], tuple[Any, ...]]
    """Number of units to keep → lm-eval's instances of the shortened sample."""


class _Preparer:
    """Makes prepared samples of one task for one window: tokenised, and cut where they must be."""

    def __init__(
        self, task: Any, window: PromptWindow, *, num_fewshot: int | None, max_new_tokens: int | None, seed: int
    ) -> None:
        self.name = str(task.config.task or type(task).__name__)
        self._task = task
        self._encoder = window.encoder()
        chat = self._encoder.chat if window.chat else None
        self.renderer = _Renderer(task, chat, num_fewshot=num_fewshot, seed=seed, name=self.name)
        self._length = window.length
        self._side = _side(window.overlong)
        self._max_new_tokens = max_new_tokens
        self._metadata = read_metadata(task.config.metadata, f"task {self.name}")

    def sample(self, index: int, doc: Any, instances: tuple[Any, ...]) -> PreparedSample:
        """A sample that fits, cut if need be.

        Raises:
            NoRoomError: It doesn't fit, or would have to be cut and may not be.
        """
        built = self._build(index, instances)
        whole, tokens = longest(built.requests), longest(built.requests, reach)
        if tokens > self._length:
            if self._side is None:
                raise NoRoomError(tokens)
            instances, built = self._shorten(index, doc, instances, built, self._side)
        left = longest(built.requests)
        depth = self._field("depth", index, doc)
        return PreparedSample(
            index=index,
            doc=doc,
            instances=instances,
            requests=built.requests,
            places=built.places,
            prompt_digest=digest(built.requests, settings=False)[:16],
            tokens=left,
            truncated=tokens > self._length,
            cut_tokens=whole - left,
            target=self.renderer.target(index, doc),
            cluster=self._cluster(index, doc),
            depth=None if depth is None else float(depth),
        )

    def spelt(self, instances: tuple[Any, ...]) -> Counter[str]:
        """How often texts of a sample spell each special token; a context that choices share counts once."""
        texts = dict.fromkeys(text for instance in instances for text in instance.args if isinstance(text, str))
        return sum((self._encoder.special.spelt(text) for text in texts), Counter())

    def need(self, index: int, doc: Any, instances: tuple[Any, ...]) -> Need:
        """What a sample takes of the window at least: whole where it may not be cut, else with next to no document."""
        built, document = self._build(index, instances), True
        if self._side is not None:
            cutter = self._cutter(index, doc, instances, self._side)
            document = cutter is not None
            if cutter is not None and cutter.num_units > 1:
                built = self._build(index, cutter.keep(1))
        tokens = longest(built.requests, reach)
        return Need(tokens=tokens, answer=tokens - longest(built.requests), document=document)

    def _build(self, index: int, instances: tuple[Any, ...]) -> Built:
        try:
            return build(instances, self._encoder, length=self._length, max_new_tokens=self._max_new_tokens)
        except LongEvalError as error:
            raise LongEvalError(f"task {self.name}, sample {index}: {error.problem}", error.remedy) from error

    def _shorten(
        self, index: int, doc: Any, instances: tuple[Any, ...], built: Built, side: Side
    ) -> tuple[tuple[Any, ...], Built]:
        """The sample with its document cut so that it fits."""
        tokens = longest(built.requests, reach)
        cutter = self._cutter(index, doc, instances, side)
        if cutter is None or not cutter.num_units:
            raise NoRoomError(tokens)
        # One of the choices will do to measure: they are as long as they were before, and the prompt is the same.
        measured = max(range(len(instances)), key=lambda number: _reach_of(built, number))

        def measure(keep: int) -> int:
            return longest(self._build(index, (cutter.keep(keep)[measured],)).requests, reach)

        length = self._length
        while True:
            try:
                keep = most_that_fits(measure, cutter.num_units, length=length, tokens=tokens)
            except NoRoomError:  # for one of the choices, in what another one leaves of the window
                raise NoRoomError(self.need(index, doc, instances).tokens) from None
            shorter = cutter.keep(keep)
            fitted = self._build(index, shorter)
            over = longest(fitted.requests, reach) - self._length
            if over <= 0:
                return shorter, fitted
            length -= over  # another choice has become the longest

    def _cutter(self, index: int, doc: Any, instances: tuple[Any, ...], side: Side) -> _Cutter | None:
        """What shortens the sample's document; None if it has none."""
        field = self._document(index, doc, instances, side)
        if field is None:
            return None
        text: str = doc[field]
        ends_U = self._encoder.unit_ends(text)

        def keep(units: int) -> tuple[Any, ...]:
            return self.renderer.instances(index, {**doc, field: cut(text, ends_U, units, side)})

        return _Cutter(len(ends_U), keep)

    def _document(self, index: int, doc: Any, instances: tuple[Any, ...], side: Side) -> str | None:
        """The field that may be cut; None where there is none."""
        if self._field("document", index, doc) is not None:
            return self._metadata.document
        contexts = [instance.args[0] for instance in instances]
        field = document_field(doc, contexts) if isinstance(doc, Mapping) else None
        if field is None:
            return None
        if side != "middle" and str(self._task.doc_to_text(doc)).strip() == doc[field].strip():
            raise LongEvalError(
                f"--overlong {side}: task {self.name} has its question inside its document, which would be cut",
                "Use --overlong middle, which keeps beginning and end, or skip.",
            )
        return field

    def _cluster(self, index: int, doc: Any) -> str | None:
        """The name of the sample's document, or a digest of a long name."""
        value = self._field("cluster", index, doc)
        if value is None or len(str(value)) <= 64:
            return None if value is None else str(value)
        return hashlib.sha256(str(value).encode()).hexdigest()[:16]

    def _field(self, key: str, index: int, doc: Any) -> Any:
        """The value of the field that the task's metadata names under `key`; None where it names none."""
        name = getattr(self._metadata, key)
        if name is None:
            return None
        value = doc.get(name)
        there = isinstance(value, str) if key == "document" else value is not None or (key == "depth" and name in doc)
        if not there:
            raise LongEvalError(
                f"task {self.name}: its metadata says {key}: {name}, a field that sample {index} doesn't have",
                "Correct the task's YAML file.",
            )
        return value


def _side(overlong: Overlong) -> Side | None:
    """What of a document is cut out; None if documents aren't cut."""
    match overlong:
        case "skip" | "error":
            return None
        case side:
            return side


def _reach_of(built: Built, number: int) -> int:
    """Tokens that one instance takes in and may give out."""
    sizes = [0]
    for place in built.places[number]:
        request = built.requests[place.request]
        if isinstance(request, GenerateRequest):
            sizes.append(reach(request))
        else:
            sizes.append(len(request.context_T) + len(request.continuations[place.continuation]))
    return max(sizes)


class _Renderer:
    """Has lm-eval's task render its samples.

    Examples in front of a question are drawn in the order of samples, as lm-eval draws them; a sample that is rendered
    again, with a shorter document, gets the same ones.

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
        self._states: list[Any] = []
        """Of the generators, as they were before the examples of the last sample were drawn."""

    def asked(self, limit: int | None, indices: Collection[int] | None) -> Sequence[int]:
        """The first `limit` samples, or those of `indices` among them, in order."""
        stop = self.num_docs if limit is None else min(limit, self.num_docs)
        return range(stop) if indices is None else sorted({index for index in indices if index < stop})

    def samples(self, indices: Sequence[int]) -> Iterator[tuple[int, Any, tuple[Any, ...]]]:
        """Yields index, sample and instances, in ascending order."""
        self._task.set_fewshot_seed(self._seed)
        drawn = 0
        for index in indices:
            if self.num_fewshot:
                for earlier in range(drawn, index):  # only for what they draw
                    self._rendered(earlier, self._docs[earlier])
                drawn = index + 1
            self._states = [generator.getstate() for generator in self._generators()]
            doc = self._docs[index]
            yield index, doc, self._rendered(index, doc)

    def instances(self, index: int, doc: Any) -> tuple[Any, ...]:
        """The instances of the sample that was yielded last, in another form of it, with the same examples."""
        for generator, state in zip(self._generators(), self._states, strict=True):
            generator.setstate(state)
        return self._rendered(index, doc)

    def target(self, index: int, doc: Any) -> str:
        """The right answer, as text: the right choice where the task has choices."""
        return self._guarded(index, lambda: _target(self._task, doc))

    def _generators(self) -> list[Any]:
        """What examples are drawn with."""
        sampler = getattr(self._task, "sampler", None)
        found = [getattr(self._task, "fewshot_rnd", None), getattr(sampler, "rnd", None)]
        return [generator for generator in found if generator is not None]

    def _rendered(self, index: int, doc: Any) -> tuple[Any, ...]:
        return self._guarded(index, lambda: self._render(index, doc))

    def _guarded(self, index: int, work: Callable[[], T]) -> T:
        """Returns what `work` returns; an error of the task's own code or templates names the sample."""
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


def _target(task: Any, doc: Any) -> str:
    target = task.doc_to_target(doc)
    if getattr(task.config, "doc_to_choice", None) is None or getattr(task, "multiple_input", False):
        choices = None
    else:
        choices = task.doc_to_choice(doc)
    targets = target if isinstance(target, list | tuple) else [target]
    texts = [choices[one] if choices and isinstance(one, int) and 0 <= one < len(choices) else one for one in targets]
    return " | ".join(str(text) for text in texts)
