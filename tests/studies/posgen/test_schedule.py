"""The closed form of the one-cycle schedule against torch's scheduler."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from longeval.studies.posgen.schedule import one_cycle


# 100 steps have their peak at a whole step, 37 between two; 5 have it before the first.
@pytest.mark.parametrize(
    ("total", "warmup"),
    [(100, 0.1), (37, 0.1), (237, 0.33), (5, 0.1), (8, 1.0), (1, 0.1), (1, 0.9), (2, 0.1), (2, 0.9), (9, 0.0)],
)
def test_every_step_is_torchs(total, warmup):
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-4, total_steps=total, pct_start=warmup)
    for step in range(total):
        (group,) = optimiser.param_groups
        rate = one_cycle(step, total, peak=2e-4, warmup=warmup)
        assert rate.learning_rate == pytest.approx(group["lr"], rel=1e-12)
        assert rate.beta1 == pytest.approx(group["betas"][0], rel=1e-12)
        optimiser.step()
        if step + 1 < total:
            scheduler.step()


@pytest.mark.parametrize(("total", "warmup"), [(10, 0.1), (1, 1.0), (2, 0.5)])
def test_where_torch_divides_by_zero_the_first_rate_is_the_peak(total, warmup):
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ZeroDivisionError):
        torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1.0, total_steps=total, pct_start=warmup)
    assert one_cycle(0, total, peak=1.0, warmup=warmup) == (1.0, 0.85)


def test_ends_and_peak():
    first, peak, last = (one_cycle(step, 100, peak=1.0, warmup=0.1) for step in (0, 9, 99))
    assert first == pytest.approx((1 / 25, 0.95))
    assert peak == pytest.approx((1.0, 0.85))
    assert last == pytest.approx((1 / 250_000, 0.95))


def test_a_warm_up_of_one_step_starts_at_the_peak():
    rates = [one_cycle(step, 10, peak=1.0, warmup=0.1) for step in range(10)]
    assert rates[0] == (1.0, 0.85)
    assert all(a.learning_rate > b.learning_rate for a, b in itertools.pairwise(rates))
    assert math.isclose(rates[-1].learning_rate, 1 / 250_000)
