"""The questions of a task as one model is asked them at one length: rendered, tokenised, and cut where they must be.

Prompts are rendered by lm-eval's own tasks, in the way of its `Task.build_all_requests`. They don't depend on the RoPE
method: a task is prepared once, and every method answers the same token ids.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from longeval.backends.base import GenerateRequest
from longeval.errors import LongEvalError
from longeval.request.tasks import Overlong
from longeval.studies.tasks.definitions.metadata import read_metadata
from longeval.studies.tasks.prompts.overlong import (
    Need,
    NoRoomError,
    Side,
    cut,
    document_field,
    most_that_fits,
    too_long,
)
from longeval.studies.tasks.prompts.prepared import PreparedSample, PreparedTask, PromptWindow
from longeval.studies.tasks.prompts.rendering import Renderer, task_name
from longeval.studies.tasks.prompts.requests import Built, Request, build, decoding, digest, input_tokens, reach


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
        LongEvalError: The task's prompts can't be made, or a sample doesn't fit and isn't allowed to, or can't be made
            to.
    """
    preparer = _Preparer(task, window, num_fewshot=num_fewshot, max_new_tokens=max_new_tokens, seed=seed)

    def need(index: int, examples: int) -> Need:
        fewer = _Preparer(task, window, num_fewshot=examples, max_new_tokens=max_new_tokens, seed=seed)
        return fewer.need(*next(fewer.renderer.samples(None, [index])))

    samples: list[PreparedSample] = []
    spelt: Counter[str] = Counter()
    skipped: dict[int, int] = {}
    failures: dict[int, int] = {}
    total = len(preparer.renderer.asked(limit, indices))
    for number, (index, doc, instances) in enumerate(preparer.renderer.samples(limit, indices), start=1):
        try:
            samples.append(preparer.sample(index, doc, instances))
            spelt += preparer.spelt(instances)
        except NoRoomError as error:
            (skipped if window.overlong == "skip" else failures)[index] = error.needed
        on_sample(number, total)
    if failures:
        raise too_long(preparer.name, window, failures, need=need, num_fewshot=preparer.renderer.num_fewshot)
    return PreparedTask(
        name=preparer.name,
        samples=tuple(samples),
        skipped=skipped,
        num_docs=preparer.renderer.num_docs,
        request_type=str(task.OUTPUT_TYPE or (samples[0].instances[0].request_type if samples else "")),
        num_fewshot=preparer.renderer.num_fewshot,
        max_new_tokens=max(
            (r.max_new_tokens for s in samples for r in s.requests if isinstance(r, GenerateRequest)), default=None
        ),
        spelt=spelt,
        digest=_digest(samples),
        notes=tuple(_notes(preparer.name, samples)),
    )


class _Cutter(NamedTuple):
    """Makes a sample's document shorter."""

    num_units: int
    """Number of units in which the document can be cut."""
    keep: Callable[[int], tuple[Any, ...]]
    """Number of units to keep → lm-eval's instances of the shortened sample."""


class _Preparer:
    """Makes samples of one task for one window."""

    def __init__(
        self, task: Any, window: PromptWindow, *, num_fewshot: int | None, max_new_tokens: int | None, seed: int
    ) -> None:
        self.name = task_name(task)
        self.encoder = window.encoder()
        self.renderer = Renderer(
            task, self.encoder.chat if window.chat else None, num_fewshot=num_fewshot, seed=seed, name=self.name
        )
        self._task = task
        self._window = window
        self._side = _side(window.overlong)
        self._max_new_tokens = max_new_tokens
        self._metadata = read_metadata(task.config.metadata)

    def sample(self, index: int, doc: Any, instances: tuple[Any, ...]) -> PreparedSample:
        """A sample that fits, cut if need be.

        Raises:
            NoRoomError: It doesn't fit, or would have to be cut and may not be.
        """
        built = self._build(index, instances)
        whole = _longest(built.requests, input_tokens)
        tokens = _longest(built.requests, reach)
        if tokens > self._window.length:
            if self._side is None:
                raise NoRoomError(tokens)
            instances, built = self._shorten(index, doc, instances, built, self._side)
        left = _longest(built.requests, input_tokens)
        return PreparedSample(
            index=index,
            doc=doc,
            instances=instances,
            requests=built.requests,
            places=built.places,
            prompt_digest=digest(built.requests, settings=False)[:16],
            tokens=left,
            truncated=tokens > self._window.length,
            cut_tokens=whole - left,
            target=self.renderer.target(index, doc),
            cluster=self._cluster(index, doc),
            depth=self._depth(index, doc),
        )

    def spelt(self, instances: tuple[Any, ...]) -> Counter[str]:
        """How often texts of a sample spell each special token; a context that choices share counts once."""
        texts = dict.fromkeys(text for instance in instances for text in instance.args if isinstance(text, str))
        return sum((self.encoder.special.spelt(text) for text in texts), Counter())

    def _build(self, index: int, instances: tuple[Any, ...]) -> Built:
        try:
            return build(instances, self.encoder, length=self._window.length, max_new_tokens=self._max_new_tokens)
        except LongEvalError as error:
            raise LongEvalError(f"task {self.name}, sample {index}: {error.problem}", error.remedy) from error

    def need(self, index: int, doc: Any, instances: tuple[Any, ...]) -> Need:
        """What a sample takes of the window at least: whole where it may not be cut, else with next to no document."""
        built, document = self._build(index, instances), True
        if self._side is not None:
            cutter = self._cutter(index, doc, instances, self._side)
            document = cutter is not None
            if cutter is not None and cutter.num_units > 1:
                built = self._build(index, cutter.keep(1))
        tokens = _longest(built.requests, reach)
        return Need(tokens=tokens, answer=tokens - _longest(built.requests, input_tokens), document=document)

    def _shorten(
        self, index: int, doc: Any, instances: tuple[Any, ...], built: Built, side: Side
    ) -> tuple[tuple[Any, ...], Built]:
        """The sample with its document cut so that it fits."""
        tokens = _longest(built.requests, reach)
        cutter = self._cutter(index, doc, instances, side)
        if cutter is None or not cutter.num_units:
            raise NoRoomError(tokens)
        longest = max(range(len(instances)), key=lambda number: _reach_of(built, number))

        def measure(keep: int) -> int:
            # One of the choices will do: they are as long as they were before, and the prompt is the same.
            return _longest(self._build(index, (cutter.keep(keep)[longest],)).requests, reach)

        length = self._window.length
        while True:
            try:
                keep = most_that_fits(measure, cutter.num_units, length=length, tokens=tokens)
            except NoRoomError:  # for one of the choices, in what another one leaves of the window
                raise NoRoomError(self.need(index, doc, instances).tokens) from None
            shorter = cutter.keep(keep)
            fitted = self._build(index, shorter)
            over = _longest(fitted.requests, reach) - self._window.length
            if over <= 0:
                return shorter, fitted
            length -= over  # another choice has become the longest

    def _cutter(self, index: int, doc: Any, instances: tuple[Any, ...], side: Side) -> _Cutter | None:
        """A function that shortens the sample's document; None if it has none."""
        field = self._document(index, doc, instances, side)
        if field is None:
            return None
        text: str = doc[field]
        ends_U = self.encoder.unit_ends(text)

        def keep(units: int) -> tuple[Any, ...]:
            return self.renderer.instances(index, {**doc, field: cut(text, ends_U, units, side)})

        return _Cutter(len(ends_U), keep)

    def _document(self, index: int, doc: Any, instances: tuple[Any, ...], side: Side) -> str | None:
        """The field that may be cut; None where there is none."""
        named = self._metadata.document
        if named is not None:
            if not isinstance(doc.get(named), str):
                raise self._bad_field("document", named, index)
            return named
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
        name = self._metadata.cluster
        if name is None:
            return None
        if doc.get(name) is None:
            raise self._bad_field("cluster", name, index)
        value = str(doc[name])
        return value if len(value) <= 64 else hashlib.sha256(value.encode()).hexdigest()[:16]

    def _depth(self, index: int, doc: Any) -> float | None:
        name = self._metadata.depth
        if name is None:
            return None
        if name not in doc:
            raise self._bad_field("depth", name, index)
        return None if doc[name] is None else float(doc[name])

    def _bad_field(self, key: str, name: object, index: int) -> LongEvalError:
        return LongEvalError(
            f"task {self.name}: its metadata says {key}: {name}, a field that sample {index} doesn't have",
            "Correct the task's YAML file.",
        )


def _side(overlong: Overlong) -> Side | None:
    """Which part of a document is cut out; None if documents aren't cut."""
    match overlong:
        case "skip" | "error":
            return None
        case side:
            return side


def _longest(requests: tuple[Request, ...], size: Any) -> int:
    return max(map(size, requests), default=0)


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


def _digest(samples: list[PreparedSample]) -> str:
    """SHA-256 of all requests and of the whole uncut samples, which scoring may look at."""
    whole = hashlib.sha256()
    for sample in samples:
        held = json.dumps(sample.doc, sort_keys=True, default=str, ensure_ascii=True)
        parts = (
            sample.index,
            digest(sample.requests, settings=True),
            sample.target,
            sample.cluster,
            sample.depth,
            held,
        )
        whole.update(f"{json.dumps(parts)}\n".encode())
    return whole.hexdigest()


def _notes(name: str, samples: list[PreparedSample]) -> Iterator[str]:
    """Lines on what is done differently from what the task asks for."""
    instances = [instance for sample in samples for instance in sample.instances]
    generated = [instance for instance in instances if instance.request_type == "generate_until"]
    for unheeded in dict.fromkeys(decoding(instance.args[1]).unheeded for instance in generated[:1]):
        if unheeded:
            yield f"{name} asks for {unheeded}; answers are decoded greedily instead"
    repeats = max((instance.repeats or 1 for instance in instances), default=1)
    if repeats > 1:
        yield f"{name} asks each question {repeats} times; greedy answers are equal, so it is asked once"
