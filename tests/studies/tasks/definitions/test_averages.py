"""Group averages equal lm-eval's own, and are no number where a member is missing."""

import random

import pytest
from lm_eval.api.group import Group
from lm_eval.config.group import AggMetricConfig

from longeval.studies.tasks.definitions.entries import GroupAverage, average

NAMES = ("a", "b", "c", "d", "e")


class Leaf:
    def __init__(self, name):
        self.task_name = name


def spec(*, weighted, members=NAMES):
    return GroupAverage(group="g", metric="acc", filters=("none",), weight_by_size=weighted, members=members)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_averages_are_lm_evals(weighted, seed, monkeypatch):
    rng = random.Random(seed)
    values = {name: rng.random() for name in NAMES}
    sizes = {name: rng.randint(1, 500) for name in NAMES}
    stderrs = {name: rng.random() / 10 for name in NAMES}
    group = Group("g", aggregate_metric_list=[AggMetricConfig(metric="acc", weight_by_size=weighted)])
    monkeypatch.setattr(group, "get_all_tasks", lambda recursive=True: [Leaf(name) for name in NAMES])
    theirs = group.aggregate(
        {
            name: {"acc,none": values[name], "acc_stderr,none": stderrs[name], "sample_len": sizes[name]}
            for name in NAMES
        }
    )
    ours = average(spec(weighted=weighted), values, sizes=sizes, stderrs=stderrs)
    assert ours.value == pytest.approx(theirs["acc,none"], rel=1e-12)
    if not weighted:  # lm-eval pools where it weights
        assert ours.stderr == pytest.approx(theirs["acc_stderr,none"], rel=1e-12)


def test_standard_error_of_a_weighted_mean():
    ours = average(
        spec(weighted=True, members=("a", "b")),
        {"a": 0.0, "b": 1.0},
        sizes={"a": 30, "b": 10},
        stderrs={"a": 0.2, "b": 0.4},
    )
    assert ours.value == pytest.approx(0.25)
    assert ours.stderr == pytest.approx((0.15**2 + 0.1**2) ** 0.5)


def test_a_missing_member_leaves_no_average():
    sizes = dict.fromkeys(NAMES, 1)
    full = dict.fromkeys(NAMES, 0.5)
    for values in (full | {"c": None}, {name: 0.5 for name in NAMES if name != "c"}):
        missing = average(spec(weighted=True), values, sizes=sizes)
        assert (missing.value, missing.stderr, missing.missing) == (None, None, ("c",))
    assert average(spec(weighted=False), full, stderrs=full | {"d": None}).stderr is None
    assert average(spec(weighted=False), full | {"a": 0.0}).value == pytest.approx(0.4)
