"""A model and data small enough to train in a moment, for the tests of this folder."""

from __future__ import annotations

from longeval.rope.base import Geometry
from longeval.rope.build import build_table
from longeval.studies.posgen.cells import ModelConfig
from longeval.studies.posgen.data import DataSetting, generate
from longeval.studies.posgen.request import PosGenRequest
from longeval.studies.posgen.train import train

SIZES = DataSetting(task="cot", modulus=5, length=12, test_length=20, num_train=40, num_valid=6, num_test=7)
DATA = generate(SIZES)


def config(**changes):
    sizes = {"modulus": 5, "d_model": 12, "d_ff": 20, "heads": 2, "head_dim": 8}
    return ModelConfig(**(sizes | changes))


def setting(**changes):
    # 40 sequences in batches of 16: the last batch of an epoch has 8.
    return PosGenRequest(**({"epochs": 4, "batch_size": 16, "lr": 1e-2, "validate_every": 2} | changes))


def table(name="none", *, factor=20 / 12):
    return build_table(name, Geometry(head_dim=8, theta=100.0, native_length=12, factor=factor))


SEEDS = (4, 0, 9)
SETTING = setting()


def trained(config, seeds=SEEDS, *, setting=SETTING, data=None, device="cpu", **arguments):
    return train(config, setting, data or [DATA] * len(seeds), seeds, table(), device=device, **arguments)


def distance(first, second):
    """Largest difference of any weight."""
    return max(float((first.weights[name] - second.weights[name]).abs().max()) for name in first.weights)
