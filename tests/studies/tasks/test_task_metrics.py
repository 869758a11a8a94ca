"""Names of metrics, which of them are means, and aggregates against lm-eval's own."""

from __future__ import annotations

import math

import pytest

from longeval.studies.tasks.answers import absent, aggregate, is_mean, metric_name


@pytest.mark.parametrize(
    ("lm_eval_name", "name"),
    [
        ("acc", "accuracy"),
        ("acc_norm", "accuracy_norm"),
        ("accordance", "accordance"),
        ("F1", "f1"),
        ("rougeL", "rouge_l"),
        ("rougeLsum", "rouge_lsum"),
        ("qa_f1_score", "qa_f1_score"),
        ("4096", "recall"),
    ],
)
def test_names(lm_eval_name, name):
    assert metric_name(lm_eval_name, "none", only_filter=True) == name
    assert metric_name(lm_eval_name, "none", only_filter=False) == name
    assert metric_name(lm_eval_name, "strict-match", only_filter=True) == name
    assert metric_name(lm_eval_name, "strict-match", only_filter=False) == f"{name}_strict_match"


def test_means_are_told_from_the_rest():
    from lm_eval.api import metrics
    from lm_eval.tasks.ruler.common_utils import aggregate_metrics

    for mean in (None, metrics.mean, metrics.nanmean, aggregate_metrics, lambda values: sum(values) / len(values)):
        assert is_mean(mean)
    own = (
        lambda values: 100 * sum(values) / len(values),
        lambda pairs: sum(first for first, _ in pairs),
        lambda values: sum(values) / max(1, len([value for value in values if value])),
    )
    for other in (metrics.median, metrics.perplexity, metrics.f1_score, metrics.brier_score, max, *own):
        assert not is_mean(other)


def test_absent_values():
    from lm_eval.api import metrics

    assert absent("8192", -1.0, None) and not absent("8192", 0.0, None)
    assert not absent("acc", -1.0, metrics.mean)
    assert absent("acc", math.nan, metrics.nanmean) and not absent("acc", math.nan, metrics.mean)


def test_aggregates_and_their_errors_are_lm_evals(monkeypatch, capsys):
    from lm_eval.api import metrics

    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    monkeypatch.setattr("longeval.studies.tasks.answers.RESAMPLES", 30)
    pairs = [(seed % 2, (seed // 2) % 2) for seed in range(24)] + [(1, 1)] * 8
    likelihoods = [-0.1 * seed for seed in range(1, 20)]
    for function, items in ((metrics.f1_score, pairs), (metrics.perplexity, likelihoods)):
        found = aggregate(function, items)
        assert capsys.readouterr() == ("", "")
        assert (found.value, found.n) == (pytest.approx(function(items)), len(items))
        assert found.stderr == pytest.approx(metrics.bootstrap_stderr(function, items, 30))
        capsys.readouterr()


def test_weighted_perplexity_has_an_error_too():
    """Equal rates in every text: no spread; else the delta method says about what the bootstrap says."""
    from lm_eval.api import metrics

    assert aggregate(metrics.weighted_perplexity, [(-2.0, 2), (-5.0, 5)]).stderr == pytest.approx(0.0, abs=1e-12)
    texts = [(-100.0 - 10 * (place % 5), 100) for place in range(50)]
    found = aggregate(metrics.weighted_perplexity, texts)
    rates = [-likelihood / words for likelihood, words in texts]
    spread = math.sqrt(sum((rate - 1.2) ** 2 for rate in rates) / 50) / math.sqrt(50)
    assert found.value == pytest.approx(math.exp(1.2))
    assert found.stderr == pytest.approx(math.exp(1.2) * spread, rel=0.15)


def test_one_sample_has_no_error_and_unknown_aggregations_none():
    from lm_eval.api import metrics

    assert aggregate(metrics.perplexity, [-1.0]).stderr is None
    found = aggregate(lambda items: 7.0, [1, 2, 3])
    assert (found.value, found.stderr) == (7.0, None)
    for function, items in ((metrics.perplexity, [-1e4, -1e4]), (lambda items: math.nan, [1])):
        with pytest.raises(ValueError, match=f"over {len(items)} samples is (inf|nan)"):
            aggregate(function, items)
