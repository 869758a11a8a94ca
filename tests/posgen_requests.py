"""Requests of `posgen train` that take a moment, and a progress that remembers what it was told."""

from __future__ import annotations

import io
import json

import numpy as np
import torch

from longeval.run.engine import run
from longeval.run.host import Silent
from longeval.studies.posgen.plan import plan_posgen
from longeval.studies.posgen.request import PosGenRequest
from longeval.studies.posgen.state import from_bytes

ALL = ("none", "resonance", "yarn", "resonance_yarn")
BOTH = ("trained", "swapped")

TINY = {
    "tasks": ("cot",),
    "pe": ("none", "yarn"),
    "seeds": 2,
    "num_train": 40,
    "num_valid": 6,
    "num_test": 7,
    "modulus": 5,
    "length": 12,
    "test_length": 20,
    "layers": 1,
    "d_model": 12,
    "d_ff": 20,
    "heads": 2,
    "head_dim": 8,
    "theta": 100.0,
    "epochs": 4,
    "batch_size": 16,
    "lr": 1e-2,
    "validate_every": 2,
    "device": "cpu",
}
"""40 sequences in batches of 16: 3 steps an epoch, the last of 8 sequences."""


def tiny_request(**changes):
    return PosGenRequest(**(TINY | changes))


def carry_out(spec, store, told=None, **options):
    return run(plan_posgen(spec), store, told or Told(), **options)


class Told(Silent):
    """Remembers; `interrupt` is the number of the pass after which Ctrl-C comes."""

    def __init__(self, interrupt=None):
        self.interrupt = interrupt
        self.costs, self.advanced, self.stages, self.records = [], [], [], []

    def begin(self, costs):
        self.costs = list(costs)

    def stage(self, what, num_passes, noun, *, details=False):
        self.stages.append((what, num_passes, noun))

    def advance(self, tokens, cost, detail):
        self.advanced.append((detail, tokens, cost))
        if len(self.advanced) == self.interrupt:
            raise KeyboardInterrupt

    def finished(self, record):
        self.records.append(record)

    def steps(self):
        return sum(detail == "step" for detail, _, _ in self.advanced)


def weights_of(store, training):
    return from_bytes(store.training("weights", training)).weights


def rewritten(content, **changes):
    """A training's file with some arrays changed (None: left out)."""
    with np.load(io.BytesIO(content)) as arrays:
        held = {name: arrays[name] for name in arrays.files} | changes
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in held.items() if array is not None})
    return buffer.getvalue()


def about(content, **changes):
    """A training's file that says something else of itself."""
    with np.load(io.BytesIO(content)) as arrays:
        plain = json.loads(arrays["about"].tobytes()) | changes
    return rewritten(content, about=np.frombuffer(json.dumps(plain).encode(), dtype=np.uint8))


def with_seed_axis(content):
    """A training's file as version 2 wrote it: arrays are (1, …), and the history counts seeds that were stacked."""
    with np.load(io.BytesIO(content)) as arrays:
        plain = json.loads(arrays["about"].tobytes())
        longer = {name: arrays[name][None] for name in arrays.files if name != "about"}
    return about(rewritten(content, **longer), format=2, history=plain["history"] | {"stacked": 5})


def same_weights(one, other, **tolerance):
    return all(torch.allclose(one[name], other[name], **tolerance) for name in one)


def value(result, pe, metric, regime="trained", seed=0):
    (record,) = (
        r
        for r in result.records
        if (r.pe, r.metric, r.params["regime"], r.params["seed"]) == (pe, metric, regime, seed)
    )
    return record
