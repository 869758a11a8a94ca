"""Numbers as the terminal shows them."""

import pytest

from longeval.rope.text import short_integer


@pytest.mark.parametrize(
    ("digits", "shown"),
    [
        ("1", "1"),
        ("1234567", "1234567"),
        ("7057974406910048702415100928873416964126012399455200", "7.058e51"),
        ("12345678", "1.235e7"),
        ("99999999", "1.000e8"),
        ("1" + "0" * 5000, "1.000e5000"),
    ],
)
def test_long_integers_are_shortened_by_their_digits(digits, shown):
    assert short_integer(digits) == shown
