"""Exact periodicity: cos and sin of a rounded pre-critical feature at m and m+λ are the same bits, in every dtype.

Over 1,048,576 positions, through the table itself and through the module that takes the place of a model's own. The
same statement about the product of position and frequency in float32 is false, so that it says something.
"""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from longeval.backends.hf.parts import TableRotaryEmbedding
from longeval.rope.analysis.description import pre_critical
from longeval.rope.base import Geometry, table_digest
from longeval.rope.build import build_table, parse_method_name
from longeval.rope.resonance import ResonanceParameters

POSITIONS = 2**20
METHODS = ("resonance", "resonance_yarn", "resonance native", "resonance_yarn 500")
"""Methods, some with a longest period of features that turn several times."""
# Six and five of its eight features are pre-critical; a million positions of them fit into little memory.
SMALL = Geometry(head_dim=16, theta=10000.0, native_length=4096, factor=8.0)
LLAMA2 = Geometry(head_dim=128, theta=10000.0, native_length=4096, factor=8.0)


def table_of(name, geometry):
    """The table of an entry of METHODS."""
    method, _, longest = name.partition(" ")
    resonance = ResonanceParameters(max_period=int(longest) if longest.isdigit() else longest or "rounded")
    return build_table(method, geometry, resonance=resonance)


def critical_periods(name, geometry):
    """Feature and period of every pre-critical feature."""
    critical_F = pre_critical(build_table(parse_method_name(name.split()[0]).base, geometry), geometry)
    table = table_of(name, geometry)
    return [(int(j), int(table.period_F[j])) for j in np.flatnonzero(critical_F)]


def bits(values):
    return values.view({2: np.int16, 4: np.int32, 8: np.int64}[values.dtype.itemsize])


def repeats(columns, period):
    """The statement: m and m+λ have the same bits, for every m."""
    return all(np.array_equal(bits(column[:-period]), bits(column[period:])) for column in columns)


@pytest.mark.parametrize("name", METHODS)
def test_angles_in_float64_and_the_float32_table(name):
    table = table_of(name, SMALL)
    assert len(critical_periods(name, SMALL)) == {"resonance": 6, "resonance_yarn": 5}[name.split()[0]]
    assert (table.turns_F is None) == (" " not in name)
    angles_TF = table.angles(np.arange(POSITIONS))
    exact = [np.ascontiguousarray(part_TF.T) for part_TF in (np.cos(angles_TF), np.sin(angles_TF))]
    single = [np.ascontiguousarray(part_TF.T) for part_TF in table.cos_sin(np.arange(POSITIONS))]
    for parts, dtype in ((exact, np.float64), (single, np.float32)):
        for j, period in critical_periods(name, SMALL):
            columns = [part_FT[j] for part_FT in parts]
            assert columns[0].dtype == dtype and len(columns[0]) == POSITIONS
            assert repeats(columns, period), (dtype, j)
            assert not repeats(columns, period - 1), "a statement that holds for any number is none"


@pytest.fixture(scope="module", params=METHODS)
def served(request):
    """A method, and a module that serves its table for all positions."""
    module = TableRotaryEmbedding(nn.Identity(), "halves")
    module.serve(table_of(request.param, SMALL), POSITIONS)
    return request.param, module


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_a_model_is_given(served, dtype):
    name, module = served
    parts = module(torch.zeros(1, dtype=dtype), torch.arange(POSITIONS)[None])
    for j, period in critical_periods(name, SMALL):
        for part_BTD in parts:
            assert part_BTD.dtype == dtype and part_BTD.shape == (1, POSITIONS, 16)
            for column in (part_BTD[0, :, j], part_BTD[0, :, j + 8]):
                size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[column.element_size()]
                values = column.contiguous().view(size)
                assert torch.equal(values[:-period], values[period:]), j


@pytest.mark.parametrize("name", METHODS)
def test_the_float32_product_of_stock_engines_does_not_repeat(name):
    table = table_of(name, SMALL)
    positions_T = np.arange(POSITIONS).astype(np.float32)
    for j, period in critical_periods(name, SMALL):
        angle_T = positions_T * np.float32(table.inv_freq_F[j])
        assert not repeats([np.cos(angle_T), np.sin(angle_T)], period)
        # Nor does the exact frequency in float64, without the modulo.
        angle_T = np.arange(POSITIONS) * table.inv_freq_F[j]
        assert not repeats([np.cos(angle_T), np.sin(angle_T)], period)


@pytest.mark.parametrize("name", METHODS)
def test_every_pre_critical_feature_of_llama2_anywhere_in_a_million(name):
    table = table_of(name, LLAMA2)
    critical = critical_periods(name, LLAMA2)
    assert len(critical) == {"resonance": 46, "resonance_yarn": 39}[name.split()[0]]
    rng = np.random.default_rng(0)
    far_T = np.concatenate((rng.integers(0, POSITIONS - 4096, 2000), np.arange(POSITIONS - 4196, POSITIONS - 4096)))
    here = table.cos_sin(far_T)
    for j, period in critical:
        there, first = table.cos_sin(far_T + period), table.cos_sin(far_T % period)
        for part in range(2):
            np.testing.assert_array_equal(bits(here[part][:, j]), bits(there[part][:, j]))
            np.testing.assert_array_equal(bits(here[part][:, j]), bits(first[part][:, j]))


def test_the_digest_of_a_table_covers_its_rows_and_those_of_local_layers():
    geometry = Geometry(head_dim=8, theta=10000.0, native_length=16)
    one, local = build_table("none", geometry), build_table("resonance", geometry)
    both = dataclasses.replace(one, local=local)
    positions_T = np.arange(20)
    assert one.digest(20) == table_digest(one.cos_sin(positions_T))
    assert both.digest(20) == table_digest(one.cos_sin(positions_T), local.cos_sin(positions_T))
    assert len({one.digest(20), one.digest(19), both.digest(20), local.digest(20)}) == 4
