"""What is read from vLLM's outputs, made by hand: log-probabilities, ends of answers, reasons of failed engines."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tiny import save_tiny_llama

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


@pytest.mark.parametrize("num_cached", [0, 1, 4])  # with cached tokens: vLLM's second model runner leaves them out
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


def test_what_an_engine_gave_up_is_no_answer():
    def ended(reason):
        return SimpleNamespace(outputs=[SimpleNamespace(finish_reason=reason)])

    assert is_answered(ended("stop")) and is_answered(ended("length"))
    assert not is_answered(ended("abort")) and not is_answered(ended(None))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(save_tiny_llama(tmp_path_factory.mktemp("model") / "tiny"))


def test_an_answer_that_was_ended_too_early_is_told(tokenizer):
    tokens = tokenizer(" a long report of the model and more").input_ids
    request = GenerateRequest(prompt_T=np.array([1], dtype=np.int32), max_new_tokens=len(tokens), stop=("the",))
    ending = Ending(tokenizer, frozenset(), request)
    text = tokenizer.decode(tokens)
    answer = ending.within(tokens)
    assert (answer.text, answer.finish) == (text[: text.index("the")], "stop")
    assert ending.of_whole(tokens[: answer.num_tokens]) == answer
    assert ending.of_whole(tokens[:1]) is None and ending.within(tokens[:1]) is None
    # An engine's own decoding may see a stop text one token late; what it says then ends where the text does.
    assert ending.of_whole(tokens[: answer.num_tokens + 1]) == answer
    other = Ending(tokenizer, frozenset(), GenerateRequest(prompt_T=request.prompt_T, max_new_tokens=2, stop=("zzz",)))
    assert other.of_whole(tokens[:2]).finish == other.within(tokens[:2]).finish == "length"


def test_an_answer_may_end_with_its_first_token(tokenizer):
    tokens = tokenizer("the report").input_ids
    request = GenerateRequest(prompt_T=np.array([1], dtype=np.int32), max_new_tokens=len(tokens), stop=())
    found = Ending(tokenizer, frozenset({tokens[0]}), request).within(tokens)
    assert (found.text, found.num_tokens, found.finish) == ("", 1, "eos")


@pytest.mark.parametrize(
    ("problem", "lower", "is_over"),
    [
        (
            "ValueError: Free memory on device (3.1/79 GiB) on startup is less than desired GPU memory utilization",
            0.8,
            True,
        ),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", 0.8, True),
        (
            "ValueError: Available memory on node 0 (9/12 GiB): decrease `--gpu-memory-utilization` (e.g. 0.5)",
            0.8,
            False,
        ),
        (
            "ValueError: To serve at least one request (1.2 GiB KV cache is needed, more than 0.5 available)",
            0.95,
            False,
        ),
        ("ValueError: No available memory for the cache blocks.", 0.95, False),
    ],
)
def test_the_remedy_for_memory_goes_the_right_way(problem, lower, is_over):
    assert is_memory(problem) is is_over
    assert f"gpu_memory_utilization={lower}" in remedy_of(problem)
    assert "gpu_memory_utilization" not in remedy_of("KeyError: 'x'")


def test_a_family_that_vllm_runs_otherwise_is_named_before_anything_else():
    assert "transformers' code" in remedy_of("KeyError: 'longeval_table'")
    assert "plugin" in remedy_of("ValueError: Unknown RoPE scaling type longeval_table")


def test_a_value_that_no_option_may_have_is_no_want_of_memory():
    log = (
        "ERROR pydantic_core.ValidationError: 1 validation error for CacheConfig gpu_memory_utilization Input should "
        "be less than or equal to 1 [type=less_than_equal, input_value=2.0, input_type=float] For further information "
        "visit https://errors.pydantic.dev/2.12/v/less_than_equal\n"
    )
    problem = cause_of(RuntimeError("see above"), log)
    assert problem.endswith("gpu_memory_utilization Input should be less than or equal to 1")
    assert remedy_of(problem) == "-v shows vLLM's log. Change --vllm-arg, or use --backend hf."


def test_the_cause_is_the_first_exception_of_its_own():
    log = "INFO x\nERROR RuntimeError: Worker proc failed\nERROR torch.OutOfMemoryError: CUDA out of memory.\n"
    assert cause_of(RuntimeError("see above"), log) == "OutOfMemoryError: CUDA out of memory."
    assert cause_of(RuntimeError("see\nabove"), "nothing") == "RuntimeError: see above"
