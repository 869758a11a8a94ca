"""The one-cycle schedule against torch's, and steps captured as a CUDA graph (the graph itself on a GPU)."""

from __future__ import annotations

import contextlib
import itertools
import math

import numpy as np
import pytest
import tiny_posgen as tiny
import torch
from tiny_posgen import distance, trained

from longeval.studies.posgen.evaluate import evaluate
from longeval.studies.posgen.state import from_bytes, stack, to_bytes
from longeval.studies.posgen.train import Stepper, one_cycle


# 100 steps have their peak at a whole step, 37 between two; 5 have it before the first.
@pytest.mark.parametrize(
    ("total", "warmup"),
    [(100, 0.1), (37, 0.1), (237, 0.33), (5, 0.1), (8, 1.0), (1, 0.1), (1, 0.9), (2, 0.1), (2, 0.9), (9, 0.0)],
)
def test_every_step_is_torchs(total, warmup):
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-4, total_steps=total, pct_start=warmup)
    for step in range(total):
        (group,) = optimiser.param_groups
        rate = one_cycle(step, total, peak=2e-4, warmup=warmup)
        assert rate.learning_rate == pytest.approx(group["lr"], rel=1e-12)
        assert rate.beta1 == pytest.approx(group["betas"][0], rel=1e-12)
        optimiser.step()
        if step + 1 < total:
            scheduler.step()


@pytest.mark.parametrize(("total", "warmup"), [(10, 0.1), (1, 1.0), (2, 0.5)])
def test_where_torch_divides_by_zero_the_first_rate_is_the_peak(total, warmup):
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ZeroDivisionError):
        torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1.0, total_steps=total, pct_start=warmup)
    rates = [one_cycle(step, total, peak=1.0, warmup=warmup) for step in range(total)]
    assert rates[0] == (1.0, 0.85)
    assert all(a.learning_rate > b.learning_rate for a, b in itertools.pairwise(rates))
    assert total == 1 or math.isclose(rates[-1].learning_rate, 1 / 250_000)


class Graph:
    """Stands in for a CUDA graph: while it captures, a step is remembered and not made."""

    def __init__(self):
        self.capturing = False
        self.replay = None


@pytest.fixture
def captured(monkeypatch):
    """Training on the CPU captures steps, as on a GPU, after `eager_steps`; gives the graphs there were."""
    graphs: list[Graph] = []

    class AsOnAGpu(Stepper):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            self._capturable = True

        def _on_side_stream(self):
            self._step()

        def _step(self):
            if graphs and graphs[-1].capturing:
                graphs[-1].replay = super()._step
            else:
                super()._step()

    def new_graph():
        graphs.append(Graph())
        return graphs[-1]

    @contextlib.contextmanager
    def capture(graph, stream):
        graph.capturing = True
        yield
        graph.capturing = False

    monkeypatch.setattr("torch.cuda.CUDAGraph", new_graph)
    monkeypatch.setattr("torch.cuda.graph", capture)
    monkeypatch.setattr("longeval.studies.posgen.train.Stepper", AsOnAGpu)
    return graphs


@pytest.mark.parametrize("eager", [0, 3])
def test_a_captured_step_is_replayed_once_for_each_step(captured, monkeypatch, eager):
    monkeypatch.setattr("longeval.studies.posgen.train._EAGER_STEPS", eager)
    state = trained(tiny.config())
    assert len(captured) == 1
    monkeypatch.setattr("longeval.studies.posgen.train.Stepper", Stepper)
    assert distance(trained(tiny.config()), state) == 0


def test_where_a_graph_cannot_be_captured_it_trains_without(captured, monkeypatch, caplog):
    @contextlib.contextmanager
    def capture(graph, stream):
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        yield

    monkeypatch.setattr("torch.cuda.graph", capture)
    state = trained(tiny.config())
    assert len(captured) == 1
    (message,) = caplog.messages
    assert message.endswith("not permitted when stream is capturing")
    monkeypatch.setattr("longeval.studies.posgen.train.Stepper", Stepper)
    assert distance(trained(tiny.config()), state) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_a_graph_on_the_gpu_trains_as_the_cpu(precision, caplog):
    setting = tiny.setting(precision=precision)
    expected = trained(tiny.config())
    state = trained(tiny.config(), setting=setting, device="cuda:0", valid_tables={"none": tiny.table()})
    assert "without a CUDA graph" not in caplog.text
    for one, other in zip(expected.history, state.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-3 if precision == "float32" else 0.03)
    half = stack(
        [from_bytes(to_bytes(trained(tiny.config(), setting=setting, device="cuda:0", until=2), i)) for i in range(3)]
    )
    resumed = trained(tiny.config(), setting=setting, device="cuda:0", state=half)
    assert distance(state, resumed) < 1e-2
    found = evaluate(
        tiny.config(), state.weights, np.stack([tiny.DATA.test_NT] * 3), tiny.table(), first=4, device="cuda:0"
    )
    assert np.isfinite(found[0].loss_P).all()
