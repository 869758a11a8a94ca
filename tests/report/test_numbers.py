import math

import pytest

from longeval.report.numbers import format_percent, format_perplexity


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
