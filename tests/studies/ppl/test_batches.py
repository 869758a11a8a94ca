"""Windows of equal length that share a pass: equal values, memory that runs out, and how many they are."""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest
from fake import FakeBackend
from known import carry_out, log_position, values
from tiny import make_text

from longeval.backends.base import capabilities
from longeval.errors import LongEvalError
from longeval.run import cost
from longeval.run.cost import batch_size, memory_bytes, model_size
from longeval.run.host import Host, Silent, backend_of
from longeval.store.folder import Store
from longeval.studies.ppl.plan import plan_ppl
from longeval.studies.ppl.work import PplWork

REQUESTS = {
    "prefix": {"pe": ("none", "yarn", "dynamic_ntk"), "lengths": (32, 64, 128), "min_tokens": 40},
    "sliding": {"pe": ("yarn", "dynamic_ntk"), "lengths": (48, 96), "protocol": "sliding", "stride": 32},
    "stream": {"pe": ("resonance_yarn",), "lengths": (96,), "protocol": "stream", "stride": 96},
}


@pytest.fixture
def documents(tmp_path):
    """Eight documents, one of them shorter than 128 tokens."""
    path = tmp_path / "documents.jsonl"
    sizes = (120, 150, 130, 40, 140, 125, 160, 135)
    path.write_text("".join(json.dumps({"text": make_text(size, seed)}) + "\n" for seed, size in enumerate(sizes)))
    return path


class Spy(FakeBackend):
    """Remembers the shape of every batch, the tokens of all windows, and the length whose table was served."""

    def __init__(self, nll=log_position, **options):
        super().__init__(nll, **options)
        self.shapes = []
        self.heard = []
        self.tables = []

    def score_batch(self, tokens_BT, first_scored_B):
        self.shapes.append(tokens_BT.shape)
        return super().score_batch(tokens_BT, first_scored_B)

    def score(self, tokens_T, first_scored):
        self.heard.append((tokens_T.tolist(), first_scored))
        self.tables.append(self.served[-1][1])
        return super().score(tokens_T, first_scored)


@pytest.mark.parametrize("protocol", REQUESTS)
def test_a_batch_gives_the_values_of_its_windows_alone(request_spec, tmp_path, protocol):
    found = {}
    for size in (1, 4):
        store = Store(str(tmp_path / f"run{size}"))
        result = carry_out(request_spec(**REQUESTS[protocol], batch_size=size), store)
        found[size] = [(record, store.nll(record.cell)) for record in result.records]
    for (alone, alone_nll), (record, nll) in zip(found[1], found[4], strict=True):
        assert (record.cell, record.metric, record.rope_digest) == (alone.cell, alone.metric, alone.rope_digest)
        assert record.value == pytest.approx(alone.value, rel=1e-6)
        assert record.params == alone.params | {"batch_size": 4} and "batch_size" not in alone.params
        for name in ("tokens_W", "context_W", "document_W", "start_W", "bytes_W"):
            np.testing.assert_array_equal(getattr(nll, name), getattr(alone_nll, name))
        np.testing.assert_allclose(nll.nll_S, alone_nll.nll_S, atol=1e-5)
        assert np.ptp(nll.nll_S) > 0.1, "else any order of windows would do"


@pytest.mark.parametrize("protocol", REQUESTS)
def test_the_same_windows_are_scored_and_no_batch_mixes_lengths(request_spec, tmp_path, protocol):
    heard = {}
    for size in (1, 3):
        backend = Spy()
        result = carry_out(
            request_spec(**REQUESTS[protocol], batch_size=size), Store(str(tmp_path / f"run{size}")), backend
        )
        heard[size] = sorted(backend.heard)
        assert result.failed == 0
        assert all(num_windows <= size for num_windows, _ in backend.shapes)
        assert bool(backend.shapes) == (size > 1)
    assert heard[3] == heard[1]


def test_every_pass_has_the_table_of_its_length(request_spec, store):
    backend = Spy()
    spec = request_spec(pe=("dynamic_ntk",), lengths=(96,), protocol="sliding", stride=64, batch_size=3)
    carry_out(spec, store, backend)
    lengths = [length for length, _ in backend.windows]
    assert len(set(lengths)) > 2 and any(num_windows > 1 for num_windows, _ in backend.shapes)
    assert backend.tables == lengths


def test_windows_alone_keep_their_order_and_batches_take_equal_ones_from_anywhere(request_spec):
    sliding = request_spec(lengths=(64,), protocol="sliding", stride=48)
    (alone,) = plan_ppl(sliding).work
    windows = [window for one in alone.passes() for window in one]
    assert windows == list(alone.cells[0].windows)
    (together,) = plan_ppl(sliding.replaced(batch_size=5)).work
    sizes = [len(one) for one in together.passes()]
    assert all(len({window.length for window in one}) == 1 for one in together.passes())
    full = sum(window.length == 64 for window in windows)
    # The full windows of all documents share passes, the shorter last ones only with those that are as short.
    assert [len(one) for one in together.passes() if one[0].length == 64] == [5] * (full // 5) + [full % 5]
    assert full % 5 and sum(sizes) == len(windows) > full


def test_a_batch_that_mixes_lengths_is_refused(request_spec, store, monkeypatch):
    monkeypatch.setattr(PplWork, "_batches", lambda work, shared: [list(shared)])
    backend = Spy()
    result = carry_out(request_spec(lengths=(64,), protocol="sliding", stride=48), store, backend)
    assert [record.status for record in result.records] == ["failed"]
    assert "same shape" in result.records[0].error and not backend.windows


def test_one_cell_that_is_lost_is_computed_again_in_batches(request_spec, store):
    spec = request_spec(batch_size=4)
    before = carry_out(spec, store)
    lost = next(record for record in before.records if record.length == 64)
    os.unlink(f"{store.path}/cells/{lost.cell}.json")
    backend = Spy()
    again = carry_out(spec, store, backend)
    assert (again.computed, again.reused) == (1, 2)
    assert backend.shapes == [(4, 64), (3, 64)] and [r.cell for r in again.records] == [r.cell for r in before.records]
    # How windows are batched is no other request: nothing is missing then, and the folder keeps one request.
    other = carry_out(request_spec(batch_size=2), store, Spy())
    assert (other.computed, other.reused) == (0, 3)
    assert store.read_text("spec.yaml").count("command: ppl") == 1


def test_a_window_that_is_not_finite_fails_only_the_cells_that_hold_it(request_spec, store):
    def broken(tokens_S, positions_S, table):
        return np.where(positions_S == 70, np.nan, np.log(positions_S + 1.0))

    result = carry_out(request_spec(batch_size=8), store, FakeBackend(broken))
    assert {r.length: r.status for r in result.records} == {32: "ok", 64: "ok", 128: "failed"}


@pytest.mark.parametrize(
    ("max_tokens", "batches", "named"), [(128 * 7, [7], 7), (128 * 6, [3, 3], 3), (128 * 2, [], None)]
)
def test_after_out_of_memory_a_batch_is_halved(request_spec, store, max_tokens, batches, named):
    backend = FakeBackend(log_position, max_tokens=max_tokens)
    result = carry_out(request_spec(batch_size=8), store, backend)
    assert {record.status for record in result.records} == {"ok"}
    assert (backend.batches, len(backend.windows)) == (batches, 7)
    assert {record.params.get("batch_size") for record in result.records} == {named}


def test_where_a_window_alone_has_no_room_the_shorter_lengths_go_on(request_spec, store):
    result = carry_out(request_spec(batch_size=8), store, FakeBackend(log_position, max_tokens=100))
    assert {r.length: r.status for r in result.records} == {32: "ok", 64: "ok", 128: "failed"}
    assert "128 tokens" in next(record.error for record in result.records if record.status == "failed")
    alone = carry_out(request_spec(), Store(f"{store.path}-alone"), FakeBackend(log_position))
    assert values(result) == values(alone) | {("none", 128): None}


def test_memory_grows_with_the_windows_of_a_pass(request_spec, store):
    def told(size):
        plan = plan_ppl(request_spec(batch_size=size))
        host = Host(store=store, progress=Silent(), load=backend_of(plan.request))
        return plan.overview(host, plan.left(()), ()).costs[0]

    assert f"3 cells in 7 forward passes, {7 * 128} tokens" in told(1)
    assert f"3 cells in 2 forward passes of up to 4 windows, {7 * 128} tokens" in told(4)
    model = plan_ppl(request_spec()).work[0].model
    size = model_size(model)
    one, two, four = (memory_bytes(model, size, 128, batch=batch) for batch in (1, 2, 4))
    assert four - two == 2 * (two - one) == 2 * (memory_bytes(model, size, 256) - memory_bytes(model, size, 128)) > 0
    eager = dataclasses.replace(model, attn="eager")
    # Four windows of 128 hold fewer scores of attention than one of 512.
    assert four < memory_bytes(eager, size, 128, batch=4) < memory_bytes(eager, size, 512)


def test_what_an_engine_batches_by_itself_is_counted_in_windows(request_spec, store, monkeypatch):
    own = capabilities("hf")
    engine = dataclasses.replace(own, heeds=own.heeds - {"batch_size"}, windows_at_once=4)
    monkeypatch.setattr("longeval.studies.ppl.plan.capabilities", lambda name: engine)
    monkeypatch.setattr("longeval.studies.ppl.work.capabilities", lambda name: engine)
    plan = plan_ppl(request_spec())
    host = Host(store=store, progress=Silent(), load=backend_of(plan.request))
    assert f"3 cells in 7 windows, {7 * 128} tokens" in plan.overview(host, plan.left(()), ()).costs[0]
    backend = Spy()
    result = carry_out(request_spec(), store, backend)
    assert max(num_windows for num_windows, _ in backend.shapes) == 4
    assert all("batch_size" not in record.params for record in result.records)  # nobody knows what shared a pass


def test_auto_takes_single_windows_on_a_cpu_and_full_passes_that_fit_elsewhere(request_spec, monkeypatch):
    model = plan_ppl(request_spec()).work[0].model
    assert model.device == "cpu" and [batch_size(model, length) for length in (32, 128)] == [1, 1]
    gpu = dataclasses.replace(model, device="cuda")
    there = [2**40]
    monkeypatch.setattr(cost, "total_memory", lambda model: there[0])
    lengths = (256, 2048, 3000, 4096, 4097, 2**20)
    assert [batch_size(gpu, length) for length in lengths] == [32, 4, 2, 2, 1, 1]
    there[0] = memory_bytes(gpu, model_size(gpu), 256, batch=9)
    assert batch_size(gpu, 256) == 8
    there[0] = 1
    assert batch_size(gpu, 256) == 1


def test_backends_that_batch_by_themselves_refuse_a_number(request_spec):
    for backend, more in (("vllm", {}), ("openai", {"base_url": "http://127.0.0.1:9/v1"})):
        with pytest.raises(LongEvalError, match=rf"--batch-size: .*--backend {backend}"):
            plan_ppl(request_spec(backend=backend, batch_size=2, **more))


def test_how_windows_are_batched_decides_no_id_and_no_digest(request_spec):
    plain, batched = request_spec(), request_spec(batch_size=4)
    assert plain.digest() == batched.digest() and "batch_size" not in plain.to_mapping()
    assert request_spec(batch_size="auto") == plain
    assert [cell.id for cell in plan_ppl(plain).cells] == [cell.id for cell in plan_ppl(batched).cells]
    with pytest.raises(LongEvalError, match="--batch-size 0"):
        request_spec(batch_size=0)
