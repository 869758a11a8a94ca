"""Group averages equal lm-eval's own, and are no number where a member is missing."""

import random
from types import SimpleNamespace

import pytest
from lm_eval.api.group import Group
from lm_eval.config.group import AggMetricConfig

from longeval.studies.tasks.definitions.entries import GroupAverage
from longeval.studies.tasks.work import average

NAMES = ("a", "b", "c", "d", "e")


def spec(*, weighted):
    return GroupAverage(group="g", metric="acc", filters=("none",), weight_by_size=weighted, members=NAMES)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_averages_are_lm_evals(weighted, seed, monkeypatch):
    rng = random.Random(seed)
    values, stderrs = ({name: rng.random() for name in NAMES} for _ in range(2))
    sizes = {name: rng.randint(1, 500) for name in NAMES}
    group = Group("g", aggregate_metric_list=[AggMetricConfig(metric="acc", weight_by_size=weighted)])
    monkeypatch.setattr(group, "get_all_tasks", lambda recursive=True: [SimpleNamespace(task_name=n) for n in NAMES])
    results = {n: {"acc,none": values[n], "acc_stderr,none": stderrs[n], "sample_len": sizes[n]} for n in NAMES}
    theirs = group.aggregate(results)
    ours = average(spec(weighted=weighted), values, sizes=sizes, stderrs=stderrs)
    assert ours.value == pytest.approx(theirs["acc,none"], rel=1e-12)
    if not weighted:  # lm-eval pools where it weights
        assert ours.stderr == pytest.approx(theirs["acc_stderr,none"], rel=1e-12)


def test_a_missing_member_leaves_no_average():
    sizes = dict.fromkeys(NAMES, 1)
    full = dict.fromkeys(NAMES, 0.5)
    for values in (full | {"c": None}, {name: 0.5 for name in NAMES if name != "c"}):
        missing = average(spec(weighted=True), values, sizes=sizes)
        assert (missing.value, missing.stderr, missing.missing) == (None, None, ("c",))
    assert average(spec(weighted=False), full, stderrs=full | {"d": None}).stderr is None
    assert average(spec(weighted=False), full | {"a": 0.0}).value == pytest.approx(0.4)
