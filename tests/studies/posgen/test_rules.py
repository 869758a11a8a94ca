"""Which tokens each rule sums, written out by hand; and rules of one's own."""

import itertools

import pytest

from longeval.errors import LongEvalError
from longeval.studies.posgen.data import RULES, DataSetting, generate, summed_indices


@pytest.fixture
def own_rule(monkeypatch):
    """Registers a rule for the length of a test."""

    def register(name, rule):
        monkeypatch.setattr(RULES, "_things", dict(RULES))
        return RULES.register(name, rule)

    return register


@pytest.mark.parametrize(
    ("task", "j", "k", "summed"),
    [
        ("recursive", 1, 3, {4: [0, 1, 2, 3], 5: [1, 2, 3, 4], 10: [6, 7, 8, 9]}),
        ("recursive", 2, 1, {3: [0, 1, 2], 9: [6, 7, 8]}),
        ("recursive", 0, 2, {2: [0, 1], 3: [1, 2]}),
        ("recursive", 2, 0, {2: [0, 1], 3: [1, 2]}),
        ("cot", 1, 3, {4: [0, 1, 2, 3], 5: [0, 2, 3, 4], 255: [0, 252, 253, 254]}),
        ("cot", 2, 1, {3: [0, 1, 2], 7: [0, 1, 6]}),
        ("semi_recursive", 1, 3, {4: [0, 1, 2, 3], 5: [0, 2, 3, 4], 6: [1, 3, 4, 5], 7: [1, 4, 5, 6], 8: [2, 5, 6, 7]}),
        ("semi_recursive", 1, 3, {64: [30, 61, 62, 63], 255: [125, 252, 253, 254]}),
        ("semi_recursive", 2, 1, {3: [0, 1, 2], 4: [0, 1, 3], 5: [1, 2, 4], 9: [3, 4, 8]}),
    ],
)
def test_the_tokens_that_are_summed(task, j, k, summed):
    for index, indices in summed.items():
        assert list(RULES[task](index, j, k)) == indices
    assert summed_indices(task, j=j, k=k, length=300)[next(iter(summed)) - j - k] == next(iter(summed.values()))


def test_a_rule_of_ones_own_is_one_function(own_rule):
    own_rule("double", lambda index, j, k: [index - 1, index - 1])
    tokens = generate(DataSetting(task="double", num_train=0, num_valid=0, num_test=1)).test_NT[0].tolist()
    assert all(after == 2 * before % 17 for before, after in itertools.pairwise(tokens[3:])), "each index counts"
    with pytest.raises(ValueError, match="'cot'"):
        own_rule("cot", lambda index, j, k: [0])


@pytest.mark.parametrize(
    ("indices", "said"), [((4,), "sums 4"), ((0, 9, -1), "sums 9, -1"), ((), "sums no token")], ids=str
)
def test_a_rule_must_name_tokens_that_are_there(own_rule, indices, said):
    own_rule("seer", lambda index, j, k: indices)
    with pytest.raises(LongEvalError, match=f"--task seer: .*{said}"):
        DataSetting(task="seer")


def test_a_rule_that_errs_late_is_found_when_data_are_made(own_rule):
    own_rule("late", lambda index, j, k: [index if index == 2000 else 0])
    with pytest.raises(LongEvalError, match=r"--task late: .*sums 2000"):
        generate(DataSetting(task="late", test_length=2001))
