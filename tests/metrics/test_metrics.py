"""The registry of metrics: shipped ones in closed form, and one more that is registered in one place."""

from __future__ import annotations

import csv
import dataclasses
import math

import numpy as np
import pytest
from fake import FakeBackend
from finetune_records import make_losses
from known import carry_out, log_position
from records import make_nll, make_records, make_samples, make_task_records, write_report

from longeval.metrics import Metric, Value, derived, higher_is_better, metric_of, metrics_of, register
from longeval.metrics.base import METRICS
from longeval.store.curves import CURVES, Curves
from longeval.store.folder import Store
from longeval.store.losses import LOSSES
from longeval.store.nll import NLL
from longeval.store.samples import SAMPLES

NLLS = make_nll([[2.0, 1.0, 0.5, 0.5]] * 12)


def values(artefact, found, protocol=None, **params):
    return {metric.name: value for metric, value in derived(artefact, found, protocol, params)}


def test_records_list_the_main_metric_of_token_values_first():
    assert [metric.name for metric in metrics_of(NLL)] == ["perplexity", "bits_per_byte"]
    accuracies = ["accuracy_in_distribution", "accuracy_ood", "accuracy_generated"]
    assert [metric.name for metric in metrics_of(CURVES)] == accuracies
    assert [metric.name for metric in metrics_of(LOSSES)] == ["loss"]
    assert metrics_of(SAMPLES) == []


def test_perplexity_is_exp_of_the_mean_with_its_interval():
    found = values(NLL, NLLS, "prefix", seed=3)["perplexity"]
    assert found.value == pytest.approx(math.e)
    assert (found.low, found.high) == (pytest.approx(math.e), pytest.approx(math.e))
    assert found.how == {"kind": "document", "units": 12, "level": 0.95, "resamples": 2000, "seed": 3}
    few = values(NLL, make_nll([[2.0]]), "prefix", seed=0)["perplexity"]
    assert (few.low, few.high, few.how) == (None, None, None)
    assert values(NLL, make_nll([[1000.0]]), "prefix", seed=0)["perplexity"].value == math.inf


def test_bits_per_byte_needs_bytes():
    assert values(NLL, NLLS, "prefix", seed=0)["bits_per_byte"].value == pytest.approx(1 / math.log(2) / 4)
    assert "bits_per_byte" not in values(NLL, make_nll([[1.0]], num_bytes=-1), "prefix", seed=0)


def test_accuracies_are_means_below_and_beyond_the_training_length():
    curves = Curves(
        positions=(2, 3, 4, 5, 6),
        accuracy=(1.0, 0.5, 0.25, 0.5, 0.0),
        loss=(0.5, 1.5, 1.0, 2.0, 3.0),
        generated=(1.0, 1.0, 0.5, 0.25, 0.0),
        epochs=(),
        valid_loss_in_distribution=(),
        valid_loss_ood=(),
    )
    found = values(CURVES, curves, train_length=4, num_test=10)
    assert {name: value.value for name, value in found.items()} == {
        "accuracy_in_distribution": 0.75,
        "accuracy_ood": 0.25,
        "accuracy_generated": 0.25,
    }
    assert found["accuracy_in_distribution"].fields == {"protocol": "teacher_forced", "tokens": 20, "nll_sum": 20.0}
    assert found["accuracy_ood"].fields == {"protocol": "teacher_forced", "tokens": 30, "nll_sum": 60.0}
    assert found["accuracy_generated"].fields == {"protocol": "free_running", "tokens": 30}


def test_loss_is_the_mean_of_the_last_tenth_of_the_steps_without_weights():
    many = values(LOSSES, make_losses([9.0] * 27 + [3.0, 2.0, 1.0], tokens=7))["loss"]
    assert (many.value, many.fields, many.params) == (2.0, {"tokens": 210}, {"first_loss": 9.0})
    falling = values(LOSSES, make_losses([8.0, 6.0] + [1.0] * 18))["loss"]
    assert (falling.value, falling.params) == (1.0, {"first_loss": 7.0})
    assert values(LOSSES, make_losses([9.0] * 18 + [4.0]))["loss"].value == 4.0
    assert values(LOSSES, make_losses([3.0]))["loss"].value == 3.0
    weighted = make_losses([9.0] * 9 + [5.0], plain=(2.0,) * 9 + (1.5,))
    assert values(LOSSES, weighted)["loss"].value == 1.5
    uneven = dataclasses.replace(make_losses([9.0] * 18 + [2.0, 1.0]), tokens=(1,) * 18 + (3, 1))
    assert values(LOSSES, uneven)["loss"].value == pytest.approx((3 * 2.0 + 1.0) / 4)


def test_a_tasks_metric_has_the_tasks_direction_also_under_a_registered_name():
    perplexity, bits = make_records("none", 64, NLLS)
    (accuracy,) = make_task_records("none", 64, "passkey", make_samples([1, 0, 1]))
    assert metric_of(perplexity).name == "perplexity" and metric_of(accuracy) is None
    assert (higher_is_better(bits), higher_is_better(accuracy)) == (False, True)
    (wikitext,) = make_task_records("none", 64, "wikitext", make_samples([1, 0, 1], scores={"bits_per_byte": 1.0}))
    assert metric_of(wikitext) is None and higher_is_better(wikitext) is True


@pytest.fixture
def median():
    """All that a new metric is."""
    yield register(
        Metric(
            name="median_nll",
            artefact=NLL,
            higher_is_better=False,
            number="significant",
            definition="Median negative log-likelihood of the scored tokens, nats.",
            function=lambda nll, protocol, params: Value(value=float(np.median(nll.nll_S))),
        )
    )
    del METRICS._things["median_nll"], NLL.values["median_nll"]


def test_a_metric_is_one_file(median, request_spec, store, tmp_path):
    result = carry_out(request_spec(lengths=(32, 64)), store, FakeBackend(log_position))
    found = [record for record in result.records if record.metric == "median_nll"]
    assert [record.metric for record in result.records[:3]] == ["perplexity", "bits_per_byte", "median_nll"]
    # Medians of log 2 … log n: n even, the middle of an odd number of tokens.
    assert [record.value for record in found] == [pytest.approx(math.log(17)), pytest.approx(math.log(33))]
    assert metric_of(found[0]) is median and higher_is_better(found[0]) is False
    again = carry_out(request_spec(lengths=(32, 64)), Store(store.path), FakeBackend(log_position))
    assert (again.computed, again.reused) == (0, 2)
    write_report([store.path], out=str(tmp_path / "report.md"))
    (path,) = tmp_path.glob("report.csv")
    lines = list(csv.DictReader(path.read_text().splitlines()))
    assert {line["value"] for line in lines if line["metric"] == "median_nll"} == {str(r.value) for r in found}


def test_a_name_is_taken_once(median):
    with pytest.raises(ValueError, match="median_nll"):
        register(median)
