"""The `vllm` backend: vLLM's engine with our table in it, one engine for each table.

Prompts are given as token ids and scored by vLLM's prompt log-probabilities; answers are decoded by us, so that they
end where those of the `hf` backend end. Prefix caching is left to vLLM for tasks; log-probabilities are only taken from
places that were computed for the request itself.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.backends.answering import ChoicePair, DistinctPairs, Ending, end_tokens
from longeval.backends.base import (
    BackendError,
    ChoiceScore,
    ChoicesRequest,
    GenerateRequest,
    Generation,
    OutOfMemoryError,
)
from longeval.backends.vllm.engine import Engine, is_memory, start_engine
from longeval.backends.vllm.options import check_known, engine_arguments, engine_device
from longeval.rope.base import CosSin, RopeTable, table_digest

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel

logger = logging.getLogger(__name__)

Tokens = npt.NDArray[np.int32]

_MAX_WAITING_TOKENS = 1 << 25
"""Most tokens in the engine's queue (0.3 GB as lists)."""


class _Asked(NamedTuple):
    """One request to the engine."""

    tokens: list[int]
    params: Any
    """vLLM's SamplingParams."""


class VLLMBackend:
    """A model in vLLM. See `Backend`; engines start when a table is served, and end when another is or at `close`.

    Args:
        model: The model; its weights are loaded by vLLM.
        length: The longest window of the run, tokens: what the engines are built for.
        args: Engine options of the user, from `parse_vllm_args`.
        share_prefixes: Whether prompts that begin alike share that part of the cache.

    Raises:
        LongEvalError: vLLM has no such option, or computes on another device.
    """

    name = "vllm"

    def __init__(
        self, model: PreparedModel, *, length: int, args: Mapping[str, Any] | None = None, share_prefixes: bool = False
    ) -> None:
        self._args = dict(args or {})
        check_known(self._args)
        self.dtype = model.dtype
        self.device = engine_device(model.device)
        self._model = model
        self._length = length
        self._share_prefixes = share_prefixes
        self._engine: Engine | None = None
        self._table: RopeTable | None = None
        self._refused: list[tuple[RopeTable, BackendError]] = []
        self._runs = 0

    def serve(self, table: RopeTable, length: int) -> None:
        """See `Backend.serve`; another table is another engine.

        Raises:
            BackendError: The engine doesn't start, or doesn't hold the table.
        """
        assert length <= self._length, "the engine was asked for shorter windows"
        if self._engine is not None and self._table is not None and self._table.same_as(table):
            return
        for refused, error in self._refused:
            if refused.same_as(table):
                raise error  # it would fail as it did, a minute later
        self.close()
        # A window is scored as a prompt, and vLLM generates at least one token after it.
        engine_length = self._length + 1
        arguments = engine_arguments(self._model, table, engine_length, self._args, share_prefixes=self._share_prefixes)
        logger.info(
            "starting vLLM's engine for %s, windows of up to %d tokens; this may take a minute",
            self._model.name,
            self._length,
        )
        try:
            self._engine = start_engine(self._model.name, arguments)
            self._table = table
            self.rope_digest(length)
        except BaseException as error:
            self.close()
            if isinstance(error, BackendError):
                self._refused.append((table, error))
            raise

    def rope_digest(self, length: int) -> str:
        """See `Backend.rope_digest`: every worker's tables are read and compared with the one that was asked for.

        Raises:
            BackendError: A worker holds anything else.
        """
        assert self._engine is not None and self._table is not None, "nothing is served"
        table = self._table
        parts = [table] if table.local is None else [table, table.local]
        held = [CosSin(*part.cos_sin(np.arange(length, dtype=np.int64))) for part in parts]
        try:
            workers = self._engine.llm.collective_rpc("longeval_held_tables", args=(length,))
        except _dead_engine() as error:
            raise self._died() from error
        problems: list[str] = []
        found: set[str] = set()
        for worker in workers:
            problems += worker["problems"]
            # Layers that keep their own settings have vLLM's own module; where all are to be ours, none may.
            if worker["others"] and not (self._model.rope.config.by_layer_type and table.local is None):
                problems.append(f"it rotates by {', '.join(worker['others'])}")
            if not worker["digests"]:
                problems.append("no rotary module has it")
            found |= set(worker["digests"])
        if not problems and found != {table_digest(part) for part in held}:
            problems.append("another one is there")
        if problems:
            raise BackendError(
                f"--backend vllm: {self._model.name}: the engine doesn't hold the table that it was given: "
                f"{problems[0]}",
                "This model's code in vLLM doesn't take it; use --backend hf.",
            )
        return table_digest(*held)

    def score(self, tokens_T: Tokens, first_scored: int) -> npt.NDArray[np.float32]:
        """See `Backend.score`."""
        return self.score_batch(tokens_T[None], [first_scored])[0]

    def score_batch(self, tokens_BT: Tokens, first_scored_B: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """See `Backend.score_batch`; the engine batches them as it likes."""
        assert all(1 <= first <= tokens_BT.shape[1] for first in first_scored_B)
        params = self._params(prompt_logprobs=0, max_tokens=1, skip_reading_prefix_cache=True)
        found = dict(self._run(_Asked(tokens_T.tolist(), params) for tokens_T in tokens_BT))
        return [
            -np.array(log_likelihoods(found[row], tokens_BT[row, first:]), dtype=np.float32)
            for row, first in enumerate(first_scored_B)
        ]

    def choices(self, requests: Sequence[ChoicesRequest]) -> Iterator[tuple[int, tuple[ChoiceScore, ...]]]:
        """See `Backend.choices`."""
        distinct = DistinctPairs(requests)
        yield from distinct.without_continuations()
        for number, score in self._score_pairs(distinct.pairs):
            yield from distinct.scored(number, score)

    def _score_pairs(self, pairs: Sequence[ChoicePair]) -> Iterator[tuple[int, ChoiceScore]]:
        """Scores pairs; yields (index, score) as they are done."""
        numbers: Sequence[int] = range(len(pairs))
        for from_cache in (True, False):
            params = self._params(prompt_logprobs=1, max_tokens=1, skip_reading_prefix_cache=not from_cache)
            asked = (_Asked(np.concatenate(pairs[number]).tolist(), params) for number in numbers)
            again = []
            for place, output in self._run(asked):
                number = numbers[place]
                # Of what came from the cache there are no log-probabilities, only memory that was never written.
                if (output.num_cached_tokens or 0) >= len(pairs[number].context_T):
                    assert from_cache, "the engine took a prompt from its cache that it was to compute"
                    again.append(number)
                else:
                    yield number, choice_score(output, pairs[number].continuation_S)
            numbers = again

    def generate(self, requests: Sequence[GenerateRequest], tokenizer: Any) -> Iterator[tuple[int, Generation]]:
        """See `Backend.generate`."""
        ends = end_tokens(self._model.generation_settings(), tokenizer)
        endings = [Ending(tokenizer, ends, request) for request in requests]
        again = []
        asked = (self._answer_to(request, ending) for request, ending in zip(requests, endings, strict=True))
        for index, output in self._run(asked):
            if (answer := endings[index].of_whole(output.outputs[0].token_ids)) is not None:
                yield index, answer
            else:
                again.append(index)
        # The engine's text, decoded piece by piece, begins with a blank where the whole's doesn't: what it took for a
        # stop text at the very beginning is none.
        whole = (self._answer_to(requests[index], endings[index], with_stop=False) for index in again)
        for place, output in self._run(whole):
            found = endings[again[place]].within(output.outputs[0].token_ids)
            assert found is not None, "an answer without an end"
            yield again[place], found

    def _answer_to(self, request: GenerateRequest, ending: Ending, *, with_stop: bool = True) -> _Asked:
        params = self._params(
            max_tokens=request.max_new_tokens,
            stop=(list(request.stop) or None) if with_stop else None,
            stop_token_ids=sorted(ending.ids),
            ignore_eos=True,  # what ends an answer is in stop_token_ids, as for every backend
            detokenize=True,
        )
        return _Asked(request.prompt_T.tolist(), params)

    def _params(self, **settings: Any) -> Any:
        """Greedy SamplingParams."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        settings = {"detokenize": False, "flat_logprobs": True} | settings
        return SamplingParams(temperature=0.0, output_kind=RequestOutputKind.FINAL_ONLY, **settings)

    def _run(self, asked: Iterable[_Asked]) -> Iterator[tuple[int, Any]]:
        """Hands all requests to the engine at once; yields (index, vLLM's RequestOutput) as they are done.

        Raises:
            RuntimeError: The engine died; the next table that is served gets a new one.
            OutOfMemoryError: It died because memory ran out.
        """
        assert self._engine is not None, "nothing is served"
        engine = self._engine.llm.llm_engine
        self._runs += 1
        sizes: dict[str, int] = {}
        """Tokens of each request under way, by name."""
        coming = enumerate(asked)
        following = next(coming, None)
        try:
            while following is not None or sizes:
                while following is not None and sum(sizes.values()) < _MAX_WAITING_TOKENS:
                    index, request = following
                    name = f"{self._runs}-{index}"
                    sizes[name] = len(request.tokens)
                    engine.add_request(name, {"prompt_token_ids": request.tokens}, request.params)
                    following = next(coming, None)
                assert engine.has_unfinished_requests(), "the engine left requests unanswered"
                for output in engine.step():
                    if output.finished:
                        if not is_answered(output):
                            raise _dead_engine()
                        del sizes[output.request_id]
                        yield int(output.request_id.partition("-")[2]), output
        except _dead_engine() as error:
            sizes.clear()
            raise self._died() from error
        finally:
            if sizes and self._engine is not None:
                with contextlib.suppress(Exception):  # nothing here may hide an interrupt
                    engine.abort_request(list(sizes))

    def _died(self) -> Exception:
        """What to raise; the engine is gone."""
        assert self._engine is not None
        cause = self._engine.cause_of_death()
        self.close()
        problem = f"vLLM's engine died: {cause}"
        return OutOfMemoryError(problem) if is_memory(cause) else RuntimeError(problem)

    def reset_peak_memory(self) -> None:
        """See `Backend.reset_peak_memory`; nothing to do."""

    def peak_memory_bytes(self) -> int | None:
        """None: an engine takes all the memory it is given for its cache before the first request."""
        return None

    def close(self) -> None:
        """See `Backend.close`."""
        engine, self._engine, self._table = self._engine, None, None
        if engine is not None:
            engine.stop()


def _dead_engine() -> type[Exception]:
    from vllm.v1.engine.exceptions import EngineDeadError

    error: type[Exception] = EngineDeadError
    return error


def is_answered(output: Any) -> bool:
    """Whether a finished request came to its own end; an engine that is going down hands out what it has."""
    return output.outputs[0].finish_reason in ("stop", "length")


def log_likelihoods(output: Any, tokens_S: Tokens) -> list[float]:
    """Log-probabilities of the last S tokens of a prompt, nats: the first candidate that vLLM lists at each place.

    Args:
        output: A RequestOutput with flat prompt log-probabilities. What the engine took from its prefix cache has none,
            and may be missing from the list altogether (vLLM's second model runner), so it is counted from the end.
        tokens_S: The prompt's last S tokens.
    """
    flat = output.prompt_logprobs
    starts = _starts(flat, len(tokens_S))
    assert [flat.token_ids[start] for start in starts] == tokens_S.tolist(), "log-probabilities of other tokens"
    return [flat.logprobs[start] for start in starts]


def choice_score(output: Any, tokens_S: Tokens) -> ChoiceScore:
    """The sum, and whether each token was the most probable one, which vLLM lists after the prompt's own."""
    found = log_likelihoods(output, tokens_S)
    flat = output.prompt_logprobs
    greedy = all(flat.token_ids[start] == flat.token_ids[start + 1] for start in _starts(flat, len(tokens_S)))
    return ChoiceScore(math.fsum(found), greedy)


def _starts(flat: Any, size: int) -> list[int]:
    """Where the candidates of the last `size` places begin; the first place of all has none."""
    assert 1 <= size < len(flat.start_indices), "log-probabilities of too few tokens"
    starts: list[int] = flat.start_indices[-size:]
    return starts
