"""The `vllm` backend: vLLM's engine with our table in it, one engine for each table.

Prompts are given as token ids and scored by vLLM's prompt log-probabilities; answers are decoded by us, so that they
end where those of the `hf` backend end. Prefix caching is left to vLLM for tasks; log-probabilities are only taken from
places that were computed for the request itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.backends.base import BackendError, ChoiceScore, ChoicesRequest, GenerateRequest, Generation
from longeval.backends.ending import Ending, end_tokens
from longeval.backends.prompt_order import order_prompts
from longeval.backends.vllm_engine import start_engine, stop_engine
from longeval.backends.vllm_options import check_installed, check_known, engine_arguments
from longeval.rope.base import CosSin, RopeTable, table_digest

if TYPE_CHECKING:
    from longeval.models.prepare import PreparedModel

Tokens = npt.NDArray[np.int32]


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
        LongEvalError: vLLM isn't installed, or has no such option.
    """

    name = "vllm"

    def __init__(
        self, model: PreparedModel, *, length: int, args: Mapping[str, Any] | None = None, share_prefixes: bool = False
    ) -> None:
        check_installed()
        self._args = dict(args or {})
        check_known(self._args)
        self.dtype = model.dtype
        self.device = f"{model.device} (vLLM)"
        self._model = model
        self._length = length
        self._share_prefixes = share_prefixes
        self._engine: Any = None
        self._table: RopeTable | None = None
        self._runs = 0

    def serve(self, table: RopeTable, length: int) -> None:
        """See `Backend.serve`; another table is another engine.

        Raises:
            BackendError: The engine doesn't start, or doesn't hold the table.
        """
        assert length <= self._length, "the engine was asked for shorter windows"
        if self._engine is not None and self._table is not None and self._table.same_as(table):
            return
        self.close()
        # A window is scored as a prompt, and vLLM generates at least one token after it.
        engine_length = self._length + 1
        arguments = engine_arguments(self._model, table, engine_length, self._args, share_prefixes=self._share_prefixes)
        self._engine = start_engine(self._model.name, arguments)
        self._table = table
        try:
            self.rope_digest(length)
        except BaseException:
            self.close()
            raise

    def rope_digest(self, length: int) -> str:
        """See `Backend.rope_digest`: every worker's tables are read and compared with the one that was asked for.

        Raises:
            BackendError: A worker holds anything else.
        """
        assert self._engine is not None and self._table is not None, "nothing is served"
        table = self._table
        parts = [table] if table.local is None else [table, table.local]
        held = [part.cos_sin(np.arange(length, dtype=np.int64)) for part in parts]
        expected = {table_digest(part) for part in held}
        found: set[str] = set()
        for worker in self._engine.collective_rpc("longeval_held_tables", args=(length,)):
            if worker["error"]:
                raise self._wrong_table(worker["error"])
            # Layers that keep their own settings have vLLM's own module; where all are to be ours, none may.
            if worker["others"] and not (self._model.rope.config.by_layer_type and table.local is None):
                raise self._wrong_table(f"it rotates by {', '.join(worker['others'])}")
            found |= set(worker["digests"])
        if found != expected:
            raise self._wrong_table("no rotary module has it" if not found else "another one is there")
        return table_digest(*(CosSin(*part) for part in held))

    def _wrong_table(self, reason: str) -> BackendError:
        return BackendError(
            f"--backend vllm: {self._model.name}: the engine doesn't hold the table that it was given: {reason}",
            "This model's code in vLLM doesn't take it; use --backend hf.",
        )

    def score(self, tokens_T: Tokens, first_scored: int) -> npt.NDArray[np.float32]:
        """See `Backend.score`."""
        assert 1 <= first_scored <= len(tokens_T)
        params = self._params(prompt_logprobs=0, max_tokens=1, skip_reading_prefix_cache=True)
        ((_, output),) = self._run([_Asked(tokens_T.tolist(), params)])
        return -np.array(_chosen(output, tokens_T, first_scored), dtype=np.float32)

    def choices(self, requests: Sequence[ChoicesRequest]) -> Iterator[tuple[int, tuple[ChoiceScore, ...]]]:
        """See `Backend.choices`."""
        # Contexts that begin alike stand together, so that the engine finds the beginning in its cache.
        pairs: dict[tuple[bytes, bytes], tuple[Tokens, Tokens]] = {}
        waiting: dict[tuple[bytes, bytes], list[int]] = {}
        for index in order_prompts([request.context_T for request in requests]).indices:
            for tokens_S in requests[index].continuations:
                key = (requests[index].context_T.tobytes(), tokens_S.tobytes())
                pairs[key] = (requests[index].context_T, tokens_S)
                waiting.setdefault(key, []).append(index)
        keys: dict[int, list[tuple[bytes, bytes]]] = {}
        for index, request in enumerate(requests):
            keys[index] = [(request.context_T.tobytes(), tokens_S.tobytes()) for tokens_S in request.continuations]
            if not keys[index]:
                yield index, ()
        scores: dict[tuple[bytes, bytes], ChoiceScore] = {}
        for key, score in self._score_pairs(pairs):
            scores[key] = score
            for index in dict.fromkeys(waiting[key]):
                if all(of in scores for of in keys[index]):
                    yield index, tuple(scores[of] for of in keys[index])

    def _score_pairs(
        self, pairs: Mapping[tuple[bytes, bytes], tuple[Tokens, Tokens]]
    ) -> Iterator[tuple[tuple[bytes, bytes], ChoiceScore]]:
        """Scores continuations of contexts; yields them as they are done."""
        for from_cache in (True, False):
            params = self._params(prompt_logprobs=1, max_tokens=1, skip_reading_prefix_cache=not from_cache)
            keys = list(pairs)
            again = {}
            for place, output in self._run([_Asked(np.concatenate(pairs[key]).tolist(), params) for key in keys]):
                context_T, tokens_S = pairs[keys[place]]
                # Of what came from the cache there are no log-probabilities, only memory that was never written.
                if (output.num_cached_tokens or 0) >= len(context_T):
                    assert from_cache, "the engine took a prompt from its cache that it was to compute"
                    again[keys[place]] = pairs[keys[place]]
                else:
                    yield keys[place], _choice(output, context_T, tokens_S)
            pairs = again

    def generate(self, requests: Sequence[GenerateRequest], tokenizer: Any) -> Iterator[tuple[int, Generation]]:
        """See `Backend.generate`."""
        ends = end_tokens(self._model.generation_settings(), tokenizer)
        endings = [Ending(tokenizer, ends, request) for request in requests]
        asked = [
            _Asked(
                request.prompt_T.tolist(),
                self._params(
                    max_tokens=request.max_new_tokens,
                    stop=list(request.stop) or None,
                    stop_token_ids=sorted(ending.ids),
                    ignore_eos=True,  # what ends an answer is in stop_token_ids, as for every backend
                    detokenize=True,
                ),
            )
            for request, ending in zip(requests, endings, strict=True)
        ]
        for index, output in self._run(asked):
            yield index, endings[index].of_whole(list(output.outputs[0].token_ids))

    def _params(self, **settings: Any) -> Any:
        """Greedy SamplingParams."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        settings = {"detokenize": False, "flat_logprobs": True} | settings
        return SamplingParams(temperature=0.0, output_kind=RequestOutputKind.FINAL_ONLY, **settings)

    def _run(self, asked: Sequence[_Asked]) -> Iterator[tuple[int, Any]]:
        """Hands all requests to the engine at once; yields (index, vLLM's RequestOutput) as they are done."""
        assert self._engine is not None, "nothing is served"
        engine = self._engine.llm_engine
        self._runs += 1
        names = {f"{self._runs}-{index}": index for index in range(len(asked))}
        left = set(names)
        try:
            for name, index in names.items():
                engine.add_request(name, {"prompt_token_ids": asked[index].tokens}, asked[index].params)
            while engine.has_unfinished_requests():
                for output in engine.step():
                    if output.finished:
                        left.discard(output.request_id)
                        yield names[output.request_id], output
        except _dead_engine() as error:
            self.close()  # the next cell gets a new one
            raise RuntimeError(f"vLLM's engine died: {error}") from error
        finally:
            if left and self._engine is not None:
                engine.abort_request(list(left))
        assert not left, "the engine left requests unanswered"

    def reset_peak_memory(self) -> None:
        """See `Backend.reset_peak_memory`; nothing to do."""

    def peak_memory_bytes(self) -> int | None:
        """None: an engine takes all the memory it is given for its cache before the first request."""
        return None

    def close(self) -> None:
        """See `Backend.close`."""
        engine, self._engine, self._table = self._engine, None, None
        if engine is not None:
            stop_engine(engine)


def _dead_engine() -> type[Exception]:
    from vllm.v1.engine.exceptions import EngineDeadError

    error: type[Exception] = EngineDeadError
    return error


def _chosen(output: Any, tokens_T: Tokens, first: int) -> list[float]:
    """Log-probabilities of tokens `first` … T−1 of a prompt: the first candidate that vLLM lists at each place."""
    flat = output.prompt_logprobs
    starts = flat.start_indices[first : len(tokens_T)]
    assert [flat.token_ids[start] for start in starts] == tokens_T[first:].tolist(), "log-probabilities of other tokens"
    return [flat.logprobs[start] for start in starts]


def _choice(output: Any, context_T: Tokens, tokens_S: Tokens) -> ChoiceScore:
    """The sum, and whether each token was the most probable one, which vLLM lists after the prompt's own."""
    flat, first = output.prompt_logprobs, len(context_T)
    found = _chosen(output, np.concatenate((context_T, tokens_S)), first)
    starts = flat.start_indices[first : first + len(tokens_S)]
    greedy = all(flat.token_ids[start] == flat.token_ids[start + 1] for start in starts)
    return ChoiceScore(math.fsum(found), greedy)
