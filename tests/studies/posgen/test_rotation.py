"""The PosGen model reads the same float32 rows as every backend."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_posgen as tiny
import torch

from longeval.backends.hf.parts import TableRotaryEmbedding
from longeval.rope.base import Geometry
from longeval.rope.build import build_table
from longeval.studies.posgen.model import cos_sin, digest


@pytest.mark.parametrize("pe", ["none", "resonance", "yarn", "resonance_yarn"])
def test_rows_and_digest_are_those_that_a_backend_serves(pe):
    served = TableRotaryEmbedding(torch.nn.Identity(), "halves")
    served.serve(tiny.table(pe), 20)
    cos_TD, sin_TD = served(torch.zeros(1), torch.arange(20)[None])
    held = cos_sin(tiny.table(pe), 20)
    assert held.cos_TF.dtype == held.sin_TF.dtype == torch.float32
    assert torch.equal(torch.cat([held.cos_TF] * 2, dim=-1), cos_TD[0])
    assert torch.equal(torch.cat([held.sin_TF] * 2, dim=-1), sin_TD[0])
    assert digest(tiny.table(pe), 20) == served.digest(20) != digest(tiny.table(pe), 19)


def test_angles_by_hand():
    table = tiny.table("yarn")
    cos_TF, sin_TF = cos_sin(table, 3)
    np.testing.assert_allclose(cos_TF[2], table.attention_factor * np.cos(2 * table.inv_freq_F), rtol=1e-6)
    np.testing.assert_allclose(sin_TF[2], table.attention_factor * np.sin(2 * table.inv_freq_F), rtol=1e-6)
    assert table.attention_factor > 1


def test_rounded_features_repeat_bit_for_bit():
    table = tiny.table("resonance")
    period = int(table.period_F[0])
    cos_TF, sin_TF = cos_sin(table, 50 * period + 3)
    assert torch.equal(cos_TF[: period + 3, 0], cos_TF[-period - 3 :, 0])
    assert torch.equal(sin_TF[: period + 3, 0], sin_TF[-period - 3 :, 0])


def test_a_method_that_depends_on_length_has_the_table_of_the_windows_own():
    geometry = Geometry(head_dim=8, theta=100.0, native_length=12, factor=2)
    rows = {length: cos_sin(build_table("dynamic_ntk", geometry, seq_len=length), 12) for length in (12, 20)}
    assert torch.equal(rows[12].cos_TF, cos_sin(tiny.table("none"), 12).cos_TF)
    assert not torch.equal(rows[12].cos_TF, rows[20].cos_TF)
