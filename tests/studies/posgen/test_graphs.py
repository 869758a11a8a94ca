"""Steps captured as a CUDA graph: the course of a capture on any machine, the graph itself on a GPU."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import tiny_posgen as tiny
from tiny_posgen import distance, trained

from longeval.studies.posgen.checkpoint import from_bytes, to_bytes
from longeval.studies.posgen.evaluate import evaluate
from longeval.studies.posgen.state import stack
from longeval.studies.posgen.steps import Stepper


def test_where_a_graph_cannot_be_captured_it_trains_without(monkeypatch, caplog):
    captures: list[object] = []

    class AsOnAGpu(Stepper):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            self._capturable, self._eager_steps = True, 3

    @contextlib.contextmanager
    def capture(graph, stream):
        captures.append(graph)
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        yield

    monkeypatch.setattr("torch.cuda.CUDAGraph", object)
    monkeypatch.setattr("torch.cuda.graph", capture)
    plain = trained(tiny.config())
    monkeypatch.setattr("longeval.studies.posgen.train.Stepper", AsOnAGpu)
    assert distance(plain, trained(tiny.config())) == 0
    assert len(captures) == 1
    (message,) = caplog.messages
    assert message.endswith("not permitted when stream is capturing") and "without a CUDA graph" in message


@pytest.mark.parametrize("eager", [0, 3])
def test_a_captured_step_is_replayed_once_for_each_step(monkeypatch, eager):
    """The course of a capture, which runs nothing itself; what a graph is on a GPU is stood in for."""
    graphs = []

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

    class Graph:
        capturing = False

        def __init__(self):
            graphs.append(self)

    @contextlib.contextmanager
    def capture(graph, stream):
        graph.capturing = True
        yield
        graph.capturing = False

    plain = trained(tiny.config())
    monkeypatch.setattr("torch.cuda.CUDAGraph", Graph)
    monkeypatch.setattr("torch.cuda.graph", capture)
    monkeypatch.setattr("longeval.studies.posgen.steps._EAGER_STEPS", eager)
    monkeypatch.setattr("longeval.studies.posgen.train.Stepper", AsOnAGpu)
    assert distance(plain, trained(tiny.config())) == 0
    assert len(graphs) == 1


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
