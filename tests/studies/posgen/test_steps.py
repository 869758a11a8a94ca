"""The one-cycle schedule against torch's, and steps captured as a CUDA graph (the graph itself on a GPU)."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import weakref

import numpy as np
import pytest
import tiny_posgen as tiny
import torch
from tiny_posgen import distance, stored_states, trained

from longeval.studies.posgen.evaluate import evaluate
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

        def _capture(self):
            with monkeypatch.context() as here:
                here.setattr("longeval.studies.posgen.train._side_stream", lambda device: None)
                super()._capture()

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


def test_a_stepper_is_freed_when_its_training_ends(monkeypatch):
    """Its graph holds memory of the GPU, which must not wait for the collector of cyclic garbage."""
    made = []

    class Remembered(Stepper):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            made.append(weakref.ref(self))

    monkeypatch.setattr("longeval.studies.posgen.train.Stepper", Remembered)
    gc.disable()
    try:
        state = trained(tiny.config(dropout=0.1))
        assert state.epoch == 4 and [one() for one in made] == [None]
    finally:
        gc.enable()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_a_graph_on_the_gpu_trains_as_the_cpu(precision, caplog):
    on_gpu = {"setting": tiny.setting(precision=precision), "device": "cuda:0"}
    expected = trained(tiny.config())
    state = trained(tiny.config(), valid_tables={"none": tiny.table()}, **on_gpu)
    assert "without a CUDA graph" not in caplog.text
    tolerance = 1e-3 if precision == "float32" else 0.03
    assert state.history.train_loss == pytest.approx(expected.history.train_loss, abs=tolerance)
    half = stored_states(tiny.config(), **on_gpu)[1]
    assert half.epoch == 2
    assert distance(state, trained(tiny.config(), state=half, **on_gpu)) < 1e-2
    found = evaluate(tiny.config(), state.weights, tiny.DATA.test_NT, tiny.table(), first=4, device="cuda:0")
    assert np.isfinite(found.loss_P).all()


@pytest.mark.gpu
def test_on_the_gpu_a_graph_trains_as_eager_steps_do(monkeypatch):
    captured = trained(tiny.config(), device="cuda:0")
    monkeypatch.setattr("longeval.studies.posgen.train._EAGER_STEPS", 10**9)
    eager = trained(tiny.config(), device="cuda:0")
    assert distance(captured, eager) < 2e-3
    assert captured.history.train_loss == pytest.approx(eager.history.train_loss, abs=1e-4)


@pytest.mark.gpu
def test_seeds_one_after_another_train_as_the_cpu_and_free_their_graphs_and_memory(caplog):
    """The allocator holds as much after the third and fourth training as after the second.

    The first ones make what stays in the process: the stream of captures, and work space of libraries on each stream.
    """
    held = []
    for seed in (4, 0, 9, 4):
        state = trained(tiny.config(), seed, device="cuda:0", valid_tables={"none": tiny.table()})
        expected = trained(tiny.config(), seed)
        assert state.history.train_loss == pytest.approx(expected.history.train_loss, abs=1e-3)
        del state
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert "without a CUDA graph" not in caplog.text
    assert held[1] == held[2] == held[3]
