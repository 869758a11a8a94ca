"""What is read from vLLM's outputs, made by hand: log-probabilities, ends of answers, reasons of failed engines."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from transformers import AutoTokenizer

from longeval.backends.answering import Ending
from longeval.backends.base import GenerateRequest
from longeval.backends.vllm.backend import choice_score, is_answered, log_likelihoods
from longeval.backends.vllm.engine import cause_of, is_memory, remedy_of

PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)


def output(num_cached=0, best=None):
    """A prompt's log-probabilities −0.1 × place; the most probable token is the prompt's own unless `best` says."""
    flat = SimpleNamespace(start_indices=[0], token_ids=[], logprobs=[])
    for place in range(num_cached + 1, len(PROMPT)):
        flat.start_indices.append(len(flat.token_ids))
        flat.token_ids += [PROMPT[place], (best or {}).get(place, PROMPT[place])]
        flat.logprobs += [-0.1 * place, -0.01]
    return SimpleNamespace(prompt_logprobs=flat)


@pytest.mark.parametrize("num_cached", [0, 4])  # with cached tokens: vLLM's second model runner leaves them out
def test_the_last_tokens_are_scored_wherever_the_list_begins(num_cached):
    tokens_S = np.array(PROMPT[5:], dtype=np.int32)
    found = output(num_cached, best={3: 7})
    assert log_likelihoods(found, tokens_S) == pytest.approx([-0.5, -0.6, -0.7])
    assert choice_score(found, tokens_S) == (pytest.approx(-1.8), True)
    assert choice_score(output(num_cached, best={6: 7}), tokens_S) == (pytest.approx(-1.8), False)


def test_log_probabilities_of_other_tokens_are_no_answer():
    with pytest.raises(AssertionError, match="other tokens"):
        log_likelihoods(output(), np.array([9, 6, 2], dtype=np.int32))
    with pytest.raises(AssertionError, match="too few"):
        log_likelihoods(output(num_cached=5), np.array(PROMPT[5:], dtype=np.int32))


@pytest.mark.parametrize(("reason", "expected"), [("stop", True), ("length", True), ("abort", False), (None, False)])
def test_what_an_engine_gave_up_is_no_answer(reason, expected):
    assert is_answered(SimpleNamespace(outputs=[SimpleNamespace(finish_reason=reason)])) is expected


def ending(tokenizer, *, ends=(), **settings):
    return Ending(tokenizer, frozenset(ends), GenerateRequest(prompt_T=np.array([1], dtype=np.int32), **settings))


def test_an_answer_that_was_ended_too_early_is_told(tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokens = tokenizer(" a long report of the model and more").input_ids
    text = tokenizer.decode(tokens)
    stopped = ending(tokenizer, max_new_tokens=len(tokens), stop=("the",))
    answer = stopped.within(tokens)
    assert (answer.text, answer.finish) == (text[: text.index("the")], "stop")
    assert stopped.of_whole(tokens[: answer.num_tokens]) == answer
    assert stopped.of_whole(tokens[:1]) is None and stopped.within(tokens[:1]) is None
    # An engine's own decoding may see a stop text one token late; what it says then ends where the text does.
    assert stopped.of_whole(tokens[: answer.num_tokens + 1]) == answer
    other = ending(tokenizer, max_new_tokens=2, stop=("zzz",))
    assert other.of_whole(tokens[:2]).finish == other.within(tokens[:2]).finish == "length"
    at_once = ending(tokenizer, ends=tokens[:1], max_new_tokens=len(tokens), stop=())
    assert at_once.within(tokens) == ("", 1, "eos")


@pytest.mark.parametrize(
    ("problem", "remedy", "is_over"),
    [
        ("ValueError: Free memory on device (3.1/79 GiB) is less than desired", "gpu_memory_utilization=0.8", True),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "gpu_memory_utilization=0.8", True),
        ("ValueError: Available memory: decrease `--gpu-memory-utilization`", "gpu_memory_utilization=0.8", False),
        (
            "ValueError: To serve at least one request (1.2 GiB KV cache is needed)",
            "gpu_memory_utilization=0.95",
            False,
        ),
        ("ValueError: No available memory for the cache blocks.", "gpu_memory_utilization=0.95", False),
        ("KeyError: 'x'", "-v shows vLLM's log", False),
        ("KeyError: 'longeval_table'", "transformers' code", False),
        ("ValueError: Unknown RoPE scaling type longeval_table", "plugin", False),
        ("ValueError: longeval_table without inv_freq", "-v shows vLLM's log", False),
        ("gpu_memory_utilization Input should be less than or equal to 1", "-v shows vLLM's log", False),
    ],
)
def test_the_remedy_goes_the_right_way(problem, remedy, is_over):
    assert is_memory(problem) is is_over
    assert remedy in remedy_of(problem)


@pytest.mark.parametrize(
    ("error", "log", "expected"),
    [
        (
            "see above",
            "INFO x\nERROR RuntimeError: Worker proc failed\nERROR torch.OutOfMemoryError: CUDA out of memory.\n",
            "OutOfMemoryError: CUDA out of memory.",
        ),
        ("see\nabove", "nothing", "RuntimeError: see above"),
        (
            "see above",
            "ERROR pydantic_core.ValidationError: 1 validation error Input should be less than or equal to 1 "
            "[type=less_than_equal, input_value=2.0, input_type=float] For further information visit https://x\n",
            "ValidationError: 1 validation error Input should be less than or equal to 1",
        ),
    ],
)
def test_the_cause_is_the_first_exception_of_its_own(error, log, expected):
    assert cause_of(RuntimeError(error), log) == expected
