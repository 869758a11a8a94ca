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
    as_datasets,
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


def text_of(data):
    return "".join(f"{line}\n" for line in json_lines(data))


@pytest.mark.parametrize("task", TASKS)
def test_every_token_of_the_papers_setting_follows_from_the_rule(task):
    data = generate(DataSetting(task=task, num_train=2000, num_valid=200, num_test=200))
    assert data.train_NT.shape == (2000, 64)
    assert data.valid_NT.shape == data.test_NT.shape == (200, 256)
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


def test_no_two_sequences_of_the_papers_sizes_start_alike():
    data = generate(DataSetting(task="cot"))
    assert (len(data.train_NT), len(data.valid_NT), len(data.test_NT)) == (10000, 1000, 1000)
    starts = [tuple(tokens[:4]) for tokens in every_sequence(data)]
    assert len(set(starts)) == len(starts) == 12000
    assert all(tokens_NT.dtype == np.int64 and tokens_NT.flags.c_contiguous for tokens_NT in data.splits.values())


def test_all_starts_there_are_can_be_asked_for():
    data = generate(DataSetting(task="recursive", modulus=3, num_train=27, num_valid=27, num_test=27))
    assert len({tuple(tokens[:4]) for tokens in every_sequence(data)}) == 3**4


@pytest.mark.parametrize(("modulus", "num"), [(17, 500), (3, 81), (2, 15)])
def test_starts_are_the_streams_numbers_one_after_the_other(modulus, num):
    bits, starts = np.random.PCG64(7), []
    while len(starts) < num:
        start = [int(bits.random_raw()) % modulus for _ in range(4)]
        if start not in starts:
            starts.append(start)
    assert draw_starts(modulus=modulus, width=4, num=num, seed=7).tolist() == starts


def test_starts_are_drawn_evenly():
    starts_NK = draw_starts(modulus=17, width=4, num=20000, seed=3)
    counts = np.array([np.bincount(tokens_N, minlength=17) for tokens_N in starts_NK.T])
    expected = 20000 / 17
    # 16 degrees of freedom in each place: 39 is passed once in a thousand times.
    assert ((counts - expected) ** 2 / expected).sum(axis=1).max() < 39
    assert abs(np.corrcoef(starts_NK.T) - np.eye(4)).max() < 0.03


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_means_the_same_bytes_on_every_machine(task):
    text = text_of(generate(small(task)))
    assert hashlib.sha256(text.encode()).hexdigest() == LINES[task]
    assert text == text_of(generate(small(task)))
    assert text != text_of(generate(small(task, seed=1)))


def test_test_and_validation_data_stay_when_there_is_more_to_train_on():
    few, many = generate(small()), generate(small(num_train=3000))
    assert (few.test_NT == many.test_NT).all()
    assert (few.valid_NT == many.valid_NT).all()
    assert (few.train_NT == many.train_NT[:60]).all()
    more_tests = generate(small(num_test=50))
    assert (few.test_NT == more_tests.test_NT[:30]).all()


def test_tasks_of_a_seed_differ_in_their_rules_only():
    made = [generate(small(task)) for task in TASKS]
    for other in made[1:]:
        assert (other.train_NT[:, :5] == made[0].train_NT[:, :5]).all(), "the first sum is the same in all three"
        assert (other.train_NT != made[0].train_NT).any()


def test_longer_sequences_begin_with_the_shorter():
    short, long = generate(small(test_length=100)), generate(small(test_length=300))
    assert (short.test_NT == long.test_NT[:, :100]).all()
    assert (short.train_NT == long.train_NT).all()


def test_tokens_keep_the_type_of_the_starts_and_sums_do_not_overflow():
    starts_NK = np.array([[199, 198, 197]], dtype=np.uint8)
    tokens_NT = extend(starts_NK, summed_indices("recursive", j=1, k=2, length=5), modulus=200)
    assert tokens_NT.dtype == np.uint8
    assert tokens_NT.tolist() == [[199, 198, 197, 194, 189]]


def test_the_largest_modulus_does_not_overflow():
    modulus = 2**31
    (tokens,) = generate(
        DataSetting(task="cot", modulus=modulus, j=4, k=4, num_train=0, num_valid=0, num_test=1)
    ).test_NT.tolist()
    assert max(tokens) > 2**30
    assert wrong_tokens(tokens, "cot", modulus=modulus, j=4, k=4) == []


@pytest.mark.parametrize(
    ("changes", "problem", "remedy"),
    [
        ({"task": "cott"}, "--task cott: unknown", "Did you mean cot?"),
        ({"modulus": 1}, "--modulus 1: must be at least 2", "2 or more"),
        ({"modulus": 2**31 + 1}, "--modulus 2147483649: must be at most 2147483648", "17"),
        ({"j": 0}, "--j 0: --task cot sums", "--j 1"),
        ({"k": 0}, "--k 0: --task cot sums", "--k 1"),
        ({"j": 0, "k": 0}, "--j 0, --k 0: no token", "at least 1"),
        ({"j": -1}, "--j -1: must be at least 0", "0 or more"),
        ({"seed": -1}, "--seed -1: must be at least 0", "0 or more"),
        ({"num_valid": -1}, "--num-valid -1: must be at least 0", "0 or more"),
        ({"num_train": 0, "num_valid": 0, "num_test": 0}, "no sequence is asked for", "some"),
        ({"length": 4}, "--length 4: the first 4 tokens", "--length 5"),
        ({"test_length": 63}, "--test-length 63: is shorter than the training length 64", "--length"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes, problem, remedy):
    with pytest.raises(LongEvalError) as caught:
        small(**changes)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


def test_more_sequences_than_starts_are_refused_with_the_numbers():
    assert small("recursive", modulus=3, num_train=31, num_valid=20, num_test=30)
    with pytest.raises(LongEvalError) as caught:
        small("recursive", modulus=3, num_train=32, num_valid=20, num_test=30)
    assert "there are 81 ways to start (3^4), and 82 sequences need one each" in caught.value.problem
    assert "--num-train 32, --num-valid 20, --num-test 30" in caught.value.problem
    assert "at most 81 sequences in all, or give --modulus 4 or more" in caught.value.remedy


@pytest.mark.parametrize(("wanted", "modulus"), [(10**4, 10), (10**4 + 1, 11), (83521, 17), (83522, 18), (12000, 11)])
def test_the_modulus_that_the_remedy_names_is_the_least_that_does(wanted, modulus):
    with pytest.raises(LongEvalError, match=f"give --modulus {modulus} or more"):
        small(modulus=2, num_train=wanted, num_valid=0, num_test=0)
    assert small(modulus=modulus, num_train=wanted, num_valid=0, num_test=0)
    with pytest.raises(LongEvalError, match="ways to start"):
        small(modulus=modulus - 1, num_train=wanted, num_valid=0, num_test=0)


def test_lines_are_the_sequences_in_the_order_of_the_splits():
    data = generate(small(num_valid=0))
    lines = [json.loads(line) for line in json_lines(data)]
    assert all(list(line) == ["split", "tokens"] for line in lines)
    assert [line["split"] for line in lines] == ["train"] * 60 + ["test"] * 30
    assert [line["tokens"] for line in lines] == every_sequence(data)


def test_datasets_hold_the_same_sequences():
    data = generate(small(num_valid=0))
    made = as_datasets(data)
    assert list(made) == ["train", "valid", "test"]
    for split, tokens_NT in data.splits.items():
        assert made[split].column_names == ["tokens"]
        assert made[split]["tokens"][:] == tokens_NT.tolist()
    made["test"].set_format("numpy")
    assert (made["test"][:]["tokens"] == data.test_NT).all()
