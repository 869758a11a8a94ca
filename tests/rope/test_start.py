"""Tables row by row, and frequencies that come from no base: where a ramp's ends lie among them."""

from __future__ import annotations

import numpy as np
import pytest

from longeval.rope.base import Geometry
from longeval.rope.build import build_table
from longeval.rope.ntk_by_parts import _index


def test_a_long_table_is_its_rows():
    table = build_table("yarn", Geometry(head_dim=8, theta=10000.0, native_length=64, factor=4.0))
    positions_T = np.arange(5, 20005, dtype=np.int64)
    cos_TF, sin_TF = table.cos_sin(positions_T)
    assert cos_TF.dtype == sin_TF.dtype == np.float32
    for row in (0, 8191, 8192, 8193, 19999):
        angle_F = (row + 5) * table.inv_freq_F
        np.testing.assert_array_equal(cos_TF[row], (np.cos(angle_F) * table.attention_factor).astype(np.float32))
        np.testing.assert_array_equal(sin_TF[row], (np.sin(angle_F) * table.attention_factor).astype(np.float32))


@pytest.mark.parametrize(
    ("frequency", "index"),
    [
        (1.0, 0.0),
        (1e-1, 1.0),
        (10**-0.5, 0.5),
        (1e-3, 2.0),
        (1e-2, 1.5),
        (10**-3.25, 2.25),
        (10**0.5, -0.5),
        (1e-6, 5.0),
    ],
)
def test_the_index_of_a_frequency_is_linear_in_its_logarithm(frequency, index):
    # ln θ falls by 1, 2 and 1 times ln 10 from feature to feature; beyond the ends as at the ends.
    assert _index(np.array([1.0, 1e-1, 1e-3, 1e-4]), np.log(frequency)) == pytest.approx(index, abs=1e-12)
