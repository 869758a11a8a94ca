"""The `vllm` backend: vLLM's engine with our table, one engine for each table.

Prompts are token ids, scored by vLLM's prompt log-probabilities. Answers are decoded here, so that they end where those
of the `hf` backend end. For tasks, vLLM's prefix caching is on; log-probabilities are only taken from positions that
were computed for the request itself.
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


class _EngineRequest(NamedTuple):
    """One request to the engine."""

    tokens: list[int]
    params: Any
    """vLLM's SamplingParams."""


class VLLMBackend:
    """A model in vLLM, see `Backend`. An engine starts when a table is served; it ends with the next table or `close`.

    Args:
        model: The model; its weights are loaded by vLLM.
        length: The longest window of the run, tokens; engines are built for it.
        args: Engine options of the user, from `parse_vllm_args`.
        share_prefixes: Whether prompts with a common prefix share that part of the key/value cache.

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
        """See `Backend.serve`. Another table needs another engine.

        Raises:
            BackendError: The engine doesn't start, or doesn't hold the table.
        """
        assert length <= self._length, "the engine was asked for shorter windows"
        if self._engine is not None and self._table is not None and self._table.same_as(table):
            return
        for refused, error in self._refused:
            if refused.same_as(table):
                raise error  # starting again would take a minute and fail in the same way
        self.close()
        # A scored window is a prompt, after which vLLM generates at least one token.
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
        """See `Backend.rope_digest`. The tables of all workers are read and compared with the served one.

        Raises:
            BackendError: A worker holds another table.
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
            # vLLM's own rotary modules may only be in layers that keep their settings.
            if worker["others"] and not (self._model.rope.config.by_layer_type and table.local is None):
                problems.append(f"it uses vLLM's {', '.join(worker['others'])}")
            if not worker["digests"]:
                problems.append("no rotary module has it")
            found |= set(worker["digests"])
        if not problems and found != {table_digest(part) for part in held}:
            problems.append("it holds another table")
        if problems:
            raise BackendError(
                f"--backend vllm: {self._model.name}: the engine doesn't hold the table that it was given: "
                f"{problems[0]}",
                "vLLM's code for this model doesn't use the table; use --backend hf.",
            )
        return table_digest(*held)

    def score(self, tokens_T: Tokens, first_scored: int) -> npt.NDArray[np.float32]:
        """See `Backend.score`."""
        return self.score_batch(tokens_T[None], [first_scored])[0]

    def score_batch(self, tokens_BT: Tokens, first_scored_B: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """See `Backend.score_batch`; the engine batches them as it likes."""
        assert all(1 <= first <= tokens_BT.shape[1] for first in first_scored_B)
        params = self._params(prompt_logprobs=0, max_tokens=1, skip_reading_prefix_cache=True)
        found = dict(self._run(_EngineRequest(tokens_T.tolist(), params) for tokens_T in tokens_BT))
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
        """Scores pairs; yields (index, score) as they finish."""
        numbers: Sequence[int] = range(len(pairs))
        for from_cache in (True, False):
            params = self._params(prompt_logprobs=1, max_tokens=1, skip_reading_prefix_cache=not from_cache)
            asked = (_EngineRequest(np.concatenate(pairs[number]).tolist(), params) for number in numbers)
            again = []
            for place, output in self._run(asked):
                number = numbers[place]
                # For tokens from the cache vLLM computes no log-probabilities; their values are uninitialised memory.
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
        # The engine decodes piece by piece, so its text may begin with a space that the whole text doesn't have. A stop
        # text that it finds at the very beginning may therefore not be one.
        whole = (self._answer_to(requests[index], endings[index], with_stop=False) for index in again)
        for place, output in self._run(whole):
            found = endings[again[place]].within(output.outputs[0].token_ids)
            assert found is not None, "an answer without an end"
            yield again[place], found

    def _answer_to(self, request: GenerateRequest, ending: Ending, *, with_stop: bool = True) -> _EngineRequest:
        params = self._params(
            max_tokens=request.max_new_tokens,
            stop=(list(request.stop) or None) if with_stop else None,
            stop_token_ids=sorted(ending.ids),
            ignore_eos=True,  # stop_token_ids holds all end tokens, as for every backend
            detokenize=True,
        )
        return _EngineRequest(request.prompt_T.tolist(), params)

    def _params(self, **settings: Any) -> Any:
        """Greedy SamplingParams."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        settings = {"detokenize": False, "flat_logprobs": True} | settings
        return SamplingParams(temperature=0.0, output_kind=RequestOutputKind.FINAL_ONLY, **settings)

    def _run(self, asked: Iterable[_EngineRequest]) -> Iterator[tuple[int, Any]]:
        """Sends requests to the engine together; yields (index, vLLM's RequestOutput) as they finish.

        Raises:
            RuntimeError: The engine died. The next served table starts a new one.
            OutOfMemoryError: It died because memory ran out.
        """
        assert self._engine is not None, "nothing is served"
        engine = self._engine.llm.llm_engine
        self._runs += 1
        sizes: dict[str, int] = {}
        """Tokens of each unfinished request, by name."""
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
                with contextlib.suppress(Exception):  # an error here must not hide an interrupt
                    engine.abort_request(list(sizes))

    def _died(self) -> Exception:
        """Closes a dead engine and returns the error to raise."""
        assert self._engine is not None
        cause = self._engine.cause_of_death()
        self.close()
        problem = f"vLLM's engine died: {cause}"
        return OutOfMemoryError(problem) if is_memory(cause) else RuntimeError(problem)

    def reset_peak_memory(self) -> None:
        """See `Backend.reset_peak_memory`. Does nothing."""

    def peak_memory_bytes(self) -> int | None:
        """None, because an engine allocates all its memory before the first request."""
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
    """Whether a finished request is complete; an engine that is shutting down returns incomplete ones."""
    return output.outputs[0].finish_reason in ("stop", "length")


def log_likelihoods(output: Any, tokens_S: Tokens) -> list[float]:
    """Log-probabilities of the last S tokens of a prompt, nats: the first candidate that vLLM lists at each position.

    Args:
        output: A RequestOutput with flat prompt log-probabilities. Tokens from the prefix cache have none and may be
            missing from the list (vLLM's second model runner), so positions are counted from the end.
        tokens_S: The prompt's last S tokens.
    """
    flat = output.prompt_logprobs
    starts = _starts(flat, len(tokens_S))
    assert [flat.token_ids[start] for start in starts] == tokens_S.tolist(), "log-probabilities of other tokens"
    return [flat.logprobs[start] for start in starts]


def choice_score(output: Any, tokens_S: Tokens) -> ChoiceScore:
    """The score of a continuation. vLLM lists the most probable token after the prompt's own at each position."""
    found = log_likelihoods(output, tokens_S)
    flat = output.prompt_logprobs
    greedy = all(flat.token_ids[start] == flat.token_ids[start + 1] for start in _starts(flat, len(tokens_S)))
    return ChoiceScore(math.fsum(found), greedy)


def _starts(flat: Any, size: int) -> list[int]:
    """Start indices of the candidates at the last `size` positions; the first position of a prompt has none."""
    assert 1 <= size < len(flat.start_indices), "log-probabilities of too few tokens"
    starts: list[int] = flat.start_indices[-size:]
    return starts
