import math

import pytest

from longeval.report.numbers import format_percent, format_perplexity


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8.6164, "8.616"),
        (11.178, "11.18"),
        (0.85234, "0.8523"),
        (999.96, "1000"),
        (99_999.0, "99999"),
        (99_999.6, "1.000e5"),
        (math.inf, "∞"),
    ],
)
def test_perplexity(value, text):
    assert format_perplexity(value) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (-0.0007, "−0.07%"),
        (0.1234, "+12.3%"),
        (0.0, "0%"),
        (-0.00004, "−0.004%"),
        (5e-7, "+0.00005%"),
        (3e-11, "≈0%"),
        (50.0, "+5000%"),
        (math.inf, "∞"),
    ],
)
def test_percent(ratio, text):
    assert format_percent(ratio) == text
