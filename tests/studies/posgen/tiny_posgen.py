"""A model and data small enough to train in a moment, for the tests of this folder."""

from __future__ import annotations

from longeval.rope.base import Geometry
from longeval.rope.build import build_table
from longeval.studies.posgen.cells import ModelConfig
from longeval.studies.posgen.data import DataSetting, generate
from longeval.studies.posgen.request import PosGenRequest
from longeval.studies.posgen.state import from_bytes, initial_state, to_bytes
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


SETTING = setting()


def trained(config, seed=4, *, setting=SETTING, data=DATA, state=None, device="cpu", **arguments):
    """A training from the beginning, or from a state."""
    state = initial_state(config, seed, "cpu") if state is None else state
    return train(state, setting, data, table(), device=device, **arguments)


def stored_states(config, **arguments):
    """The states after each epoch of a training, as they come back from their files."""
    states = []
    trained(config, on_epoch=lambda state: states.append(from_bytes(to_bytes(state))), **arguments)
    return states


def distance(first, second):
    """Largest difference of any weight."""
    pairs = ((first.weights[name].cpu(), second.weights[name].cpu()) for name in first.weights)
    return max(float((one - other).abs().max()) for one, other in pairs)
