import math

import pytest
from fabricated_runs import make_nll, make_records

from longeval.report.numbers import format_interval, format_outcome, format_percent, format_perplexity


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8.6164, "8.616"),
        (11.178, "11.18"),
        (1.0, "1.000"),
        (0.85234, "0.8523"),
        (271.23, "271.2"),
        (999.94, "999.9"),
        (999.96, "1000"),
        (1234.4, "1234"),
        (99_999.0, "99999"),
        (99_999.6, "1.000e5"),
        (3e15, "3.000e15"),
        (math.inf, "∞"),
    ],
)
def test_perplexity(value, text):
    assert format_perplexity(value) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(-0.0007, "−0.07%"), (0.1234, "+12.3%"), (0.0, "0%"), (-0.00004, "−0.004%"), (50.0, "+5000%"), (math.inf, "∞")],
)
def test_percent(ratio, text):
    assert format_percent(ratio) == text


def test_outcomes():
    ok = make_records(nll=make_nll([[1.0] * 4] * 10))[0]
    assert format_outcome(ok) == "2.718"
    assert format_interval(ok) == "[2.718, 2.718]"
    assert format_outcome(make_records(status="failed", error="x")[0]) == "failed"
    assert format_outcome(make_records(status="skipped", error="x")[0]) == "skipped"
    assert format_outcome(None) == "–"
    assert format_interval(None) == ""
