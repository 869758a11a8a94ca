"""The schedule that bench/scale.py simulates, against schedules written by hand and every schedule of small cases."""

from __future__ import annotations

import itertools
import random

import pytest

from bench import scale
from bench.scale import Unit, against_rule, check_schedule, least_makespan, makespan, most_makespan, simulate


def units(*named):
    return [Unit(model=model, seconds=seconds) for model, seconds in named]


def test_a_worker_keeps_its_model_and_else_takes_the_costliest():
    work = units(("a", 3.0), ("b", 5.0), ("a", 1.0), ("b", 2.0))
    ran = simulate(work, 2, load_s={"a": 10.0, "b": 10.0}, overhead_s=0.5)
    assert [(one.unit, one.worker, one.start, one.stop) for one in ran] == [
        (1, 0, 0.0, 15.0),
        (0, 1, 0.0, 13.0),
        (2, 1, 13.5, 14.5),  # of its model, though another unit costs more
        (3, 1, 15.0, 27.0),
    ]


def test_without_loading_makespans_keep_to_the_bounds():
    random_ = random.Random(0)
    for case in range(50):
        work = units(*((random_.choice("ab"), random_.uniform(0.1, 4.0)) for _ in range(7)))
        workers = 1 + case % 3
        found = makespan(simulate(work, workers))
        best = min(
            max(
                sum(unit.seconds for unit, mine in zip(work, chosen, strict=True) if mine == worker)
                for worker in range(workers)
            )
            for chosen in itertools.product(range(workers), repeat=len(work))
        )
        assert least_makespan(work, workers) <= best + 1e-9
        assert best <= found + 1e-9 <= most_makespan(work, workers) + 2e-9


def test_of_one_model_the_longest_go_first():
    """Graham's example of the longest first on two machines: 3, 3, 2, 2, 2 take 7 where 6 is possible."""
    work = units(*(("a", seconds) for seconds in (2.0, 3.0, 2.0, 3.0, 2.0)))
    assert makespan(simulate(work, 2)) == 7.0
    assert makespan(simulate(work, 2, load_s={"a": 1.0}, overhead_s=0.25)) == 8.5


def test_hand_outs_against_the_rule_are_counted():
    work = units(("a", 3.0), ("b", 5.0), ("a", 1.0))
    assert against_rule(work, [(1, "x"), (0, "y"), (2, "y")]) == 0
    assert against_rule(work, [(0, "x"), (1, "x"), (2, "y")]) == 2


def test_a_simulated_schedule_is_one_of_the_rule():
    random_ = random.Random(1)
    work = units(*((random_.choice("abc"), random_.lognormvariate(0, 1)) for _ in range(60)))
    ran = simulate(work, 8, load_s=dict.fromkeys("abc", 0.5))
    assert against_rule(work, [(one.unit, str(one.worker)) for one in ran]) == 0
    assert sorted(one.unit for one in ran) == list(range(60))


def test_models_have_the_sizes_that_their_cards_say():
    assert {name: size.num_parameters for name, size in scale.sizes().items()} == {
        "7B": 6_738_415_616,
        "70B": 70_553_706_496,
    }


def test_the_study_has_ten_thousand_units():
    row = scale.simulate_study(64, start_s=20.0, overhead_s=0.02)
    assert row.units == len(scale.study_units()) == 10_000
    assert row.seconds - 20.0 >= row.least_s == sum(unit.seconds for unit in scale.study_units()) / 64
    assert 10 <= row.loads <= 640


@pytest.mark.ray
@pytest.mark.timeout(280)
def test_rays_executor_keeps_the_rule():
    scale.known_studies()
    request = scale.find_study("sleeps").Request(units=24, models=3, median=0.2, load=0.1)
    row = check_schedule(request, 2)
    assert (row.units, row.against_rule) == (24, 0)
    assert row.least_s < row.simulated_s < row.measured_s
