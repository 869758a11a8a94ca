"""PosGen's sequences: every token by an independent check, starts that are never shared, the same bytes for a seed."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from posgen_reference import wrong_tokens

from longeval.errors import LongEvalError
from longeval.studies.posgen.data import (
    DataSetting,
    draw_starts,
    extend,
    generate,
    json_lines,
    summed_indices,
)

TASKS = ("recursive", "cot", "semi_recursive")

LINES = {
    "recursive": "964ed59436614a9b1ae8624541e6d9c9fc66de635e367056588c5133d48f631c",
    "cot": "114c50cb359a7884c91f0d89601bc1f23b79bbe71c9d78218995ef5a85f52919",
    "semi_recursive": "69ebf1c2c512dc71d12daf194aa8c35c6f4df62671aa24a29294fe33956ff4ac",
}
"""SHA-256 of the lines of `small(task)`: a change makes other data of every seed."""


def small(task="cot", **changes):
    return DataSetting(task=task, **({"num_train": 60, "num_valid": 20, "num_test": 30} | changes))


def every_sequence(data):
    return [tokens for tokens_NT in data.splits.values() for tokens in tokens_NT.tolist()]


@pytest.mark.parametrize("task", TASKS)
def test_every_token_of_the_papers_setting_follows_from_the_rule(task):
    data = generate(DataSetting(task=task, num_train=2000, num_valid=200, num_test=200))
    assert data.train_NT.shape == (2000, 64)
    assert data.valid_NT.shape == data.test_NT.shape == (200, 256)
    assert all(tokens_NT.dtype == np.int64 and tokens_NT.flags.c_contiguous for tokens_NT in data.splits.values())
    for tokens in every_sequence(data):
        assert wrong_tokens(tokens, task, modulus=17, j=1, k=3) == []


@given(
    task=st.sampled_from(TASKS),
    modulus=st.integers(2, 1000),
    j=st.integers(1, 5),
    k=st.integers(1, 5),
    more=st.integers(1, 40),
    longer=st.integers(0, 60),
    seed=st.integers(0, 2**80),
)
@settings(max_examples=60, deadline=None)
def test_every_token_of_any_setting_follows_from_the_rule(task, modulus, j, k, more, longer, seed):
    length = j + k + more
    num = min(modulus ** (j + k), 40)
    setting = DataSetting(
        task=task, modulus=modulus, j=j, k=k, length=length, test_length=length + longer, seed=seed,
        num_train=num - num // 2, num_valid=num // 4, num_test=num // 2 - num // 4,
    )  # fmt: skip
    data = generate(setting)
    sequences = every_sequence(data)
    assert len({tuple(tokens[: j + k]) for tokens in sequences}) == len(sequences) == num
    assert [tokens_NT.shape for tokens_NT in data.splits.values()] == [
        (setting.num_train, length), (setting.num_valid, length + longer), (setting.num_test, length + longer),
    ]  # fmt: skip
    for tokens in sequences:
        assert all(0 <= token < modulus for token in tokens)
        assert wrong_tokens(tokens, task, modulus=modulus, j=j, k=k) == []


def test_the_check_sees_a_wrong_token():
    tokens = generate(small("semi_recursive")).test_NT[0].tolist()
    tokens[200] = (tokens[200] + 1) % 17
    # It is wrong itself, and so are those that were summed from it as it was.
    assert wrong_tokens(tokens, "semi_recursive", modulus=17, j=1, k=3) == [200, 201, 202, 203]
    assert wrong_tokens(tokens, "cot", modulus=17, j=1, k=3)[0] in range(4, 20)


@pytest.mark.parametrize(("modulus", "num"), [(17, 500), (3, 81), (2, 15)])
def test_starts_are_the_streams_numbers_one_after_the_other(modulus, num):
    bits, starts = np.random.PCG64(7), []
    while len(starts) < num:
        start = [int(bits.random_raw()) % modulus for _ in range(4)]
        if start not in starts:
            starts.append(start)
    assert draw_starts(modulus=modulus, width=4, num=num, seed=7).tolist() == starts


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_means_the_same_bytes_on_every_machine(task):
    text = "".join(f"{line}\n" for line in json_lines(generate(small(task))))
    assert hashlib.sha256(text.encode()).hexdigest() == LINES[task]


@pytest.mark.parametrize("more", [{"num_train": 3000}, {"num_test": 50}, {"test_length": 300}], ids=str)
def test_what_is_asked_for_besides_leaves_the_first_test_sequences_as_they_were(more):
    few, many = generate(small()), generate(small(**more))
    assert (few.test_NT == many.test_NT[:30, :256]).all()
    if "num_test" not in more:
        assert (few.valid_NT == many.valid_NT[:, :256]).all()
        assert (few.train_NT == many.train_NT[:60]).all()


def test_tasks_of_a_seed_differ_in_their_rules_only():
    made = [generate(small(task)) for task in TASKS]
    for other in made[1:]:
        assert (other.train_NT[:, :5] == made[0].train_NT[:, :5]).all(), "the first sum is the same in all three"
        assert (other.train_NT != made[0].train_NT).any()


def test_sums_do_not_overflow():
    starts_NK = np.array([[199, 198, 197]], dtype=np.uint8)
    tokens_NT = extend(starts_NK, summed_indices("recursive", j=1, k=2, length=5), modulus=200)
    assert tokens_NT.dtype == np.uint8, "the type of the starts is kept"
    assert tokens_NT.tolist() == [[199, 198, 197, 194, 189]]
    largest = {"modulus": 2**31, "j": 4, "k": 4}
    (tokens,) = generate(small(**largest, num_train=0, num_valid=0, num_test=1)).test_NT.tolist()
    assert max(tokens) > 2**30
    assert wrong_tokens(tokens, "cot", **largest) == []


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"task": "cott"}, "--task cott"),
        ({"modulus": 2**31 + 1}, "--modulus 2147483649"),
        ({"j": 0}, "--j 0: --task cot"),
        ({"k": 0}, "--k 0: --task cot"),
        ({"j": 0, "k": 0}, "--j 0, --k 0"),
        ({"num_train": 0, "num_valid": 0, "num_test": 0}, "--num-train 0, --num-valid 0, --num-test 0"),
        ({"length": 4}, "--length 4"),
        ({"test_length": 63}, "--test-length 63"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes, flag):
    with pytest.raises(LongEvalError, match=f"^{flag}") as caught:
        small(**changes)
    assert caught.value.remedy


@pytest.mark.parametrize(("wanted", "modulus"), [(10**4, 10), (10**4 + 1, 11), (83521, 17)])
def test_more_sequences_than_starts_are_refused_with_the_least_modulus_that_does(wanted, modulus):
    sizes = {"num_train": wanted - 5, "num_valid": 2, "num_test": 3}
    with pytest.raises(LongEvalError, match=f"--num-train {wanted - 5}, ") as caught:
        small(modulus=2, **sizes)
    assert f"--modulus {modulus} or more" in caught.value.remedy
    assert small(modulus=modulus, **sizes)
    with pytest.raises(LongEvalError, match=f"--modulus {modulus - 1}"):
        small(modulus=modulus - 1, **sizes)


def test_lines_hold_the_sequences_in_the_order_of_the_splits():
    data = generate(small(num_valid=0))
    lines = [json.loads(line) for line in json_lines(data)]
    assert all(list(line) == ["split", "tokens"] for line in lines)
    assert [line["split"] for line in lines] == ["train"] * 60 + ["test"] * 30
    assert [line["tokens"] for line in lines] == every_sequence(data)
