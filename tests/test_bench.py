"""The bench's arithmetic, and that what it compares is the same, on a tiny random model; no time is asserted."""

from __future__ import annotations

import io
import json
import os
import signal

import numpy as np
import pytest
from rich.console import Console

import longeval.studies
from bench.batches import measure_batches, random_backend, usual_sizes
from bench.engines import measure_engines
from bench.measure import Curve, carry_out, measure_curve, measure_sliding, measure_throughput
from bench.peak import Peak, peak_in_own_process, peak_of
from bench.posgen import Stepping, measure_stepping, stepping
from bench.run import check_json_path, make_request, measure, raw_numbers
from bench.scale import Overhead
from bench.sharing import NUM_CHOICES, NUM_QUESTIONS, measure_sharing
from bench.show import Results, curve_verdict, show
from bench.subject import Request, open_ours, open_plain, open_text, serve_shipped
from bench.timing import Side, Timed, alternate
from longeval.backends.base import OutOfMemoryError
from longeval.backends.hf.backend import HFBackend
from longeval.errors import LongEvalError

LENGTHS = (32, 96)


@pytest.fixture(scope="module")
def request_(tiny_llama):
    return Request(model=str(tiny_llama), lengths=LENGTHS, dtypes=("float32",), repeats=2, device="cpu")


@pytest.fixture(autouse=True)
def no_vllm(monkeypatch):
    """Its engine doesn't take heads as small as these, and would take half a minute to start."""
    monkeypatch.setattr("bench.engines.vllm_installed", lambda: False)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """`test_scale.py` starts it."""
    monkeypatch.setattr("bench.scale.installed", lambda: False)


@pytest.fixture(autouse=True)
def no_study_is_left(monkeypatch):
    """The bench adds one to the studies."""
    monkeypatch.setattr(longeval.studies, "__path__", [*longeval.studies.__path__])


@pytest.fixture(scope="module")
def text(request_):
    return open_text(request_, "float32")


@pytest.fixture(scope="module")
def backend(text):
    return open_ours(text)


def timed(first, second):
    return Timed(Side(seconds=tuple(first)), Side(seconds=tuple(second)))


def test_alternate_takes_turns_and_leaves_the_warm_up_out():
    calls: list[str] = []
    result = alternate(lambda: calls.append("a"), lambda: calls.append("b"), repeats=3, warm_up=True)
    assert "".join(calls) == "abababab"
    assert [len(side.seconds) for side in result] == [3, 3]
    alternate(lambda: calls.append("c"), lambda: calls.append("d"), repeats=1, warm_up=False)
    assert "".join(calls[8:]) == "cd"
    assert timed([1.0, 9.0, 3.0], [2.0, 2.0, 50.0]).ratio == 1.5  # of medians


def test_alternate_goes_on_without_the_side_that_has_no_memory():
    tried: list[int] = []

    def too_long():
        tried.append(len(tried))
        if len(tried) == 2:
            raise OutOfMemoryError("9 GiB")

    result = alternate(lambda: None, too_long, repeats=4, warm_up=False)
    assert (len(result.first.seconds), len(tried)) == (4, 2)
    assert result.second == Side(seconds=(), error="out of memory: 9 GiB")
    assert result.ratio is None


def test_both_sides_score_the_same_tokens(request_, text, backend):
    rows = measure_throughput(request_, "float32", text, backend, open_plain(text))
    assert [row.length for row in rows] == list(LENGTHS)
    for row in rows:
        assert row.mean_nll == pytest.approx(row.plain_mean_nll, rel=1e-5)
        assert len(row.timed.first.seconds) == len(row.timed.second.seconds) == 2
        assert row.tokens_per_s == row.length / row.timed.first.median_s
        assert row.speedup == pytest.approx(row.tokens_per_s / row.plain_tokens_per_s)
    assert rows[0].mean_nll != pytest.approx(rows[1].mean_nll, rel=1e-3)


def test_tail_only_values_equal_the_full_ones(request_, text, backend):
    sliding = measure_sliding(request_, "float32", text, backend)
    assert (sliding.length, sliding.stride) == (96, 24)
    assert sliding.largest_difference < 1e-5
    full_S = backend.score(text.tokens_T, 1)
    tail_S = backend.score(text.tokens_T, 96 - sliding.stride)
    assert len(tail_S) == sliding.stride
    np.testing.assert_allclose(tail_S, full_S[-sliding.stride :], atol=1e-5)
    assert np.ptp(full_S) > 0.1  # else any tail would equal any other


def test_curve_runs_every_length_in_one_pass(request_, backend, monkeypatch):
    windows: list[int] = []
    score = backend.score
    monkeypatch.setattr(
        backend, "score", lambda tokens_T, first: windows.append(len(tokens_T)) or score(tokens_T, first)
    )
    curve = measure_curve(request_, "float32", backend)
    assert curve.lengths == (24, 48, 72, 96)
    assert windows == [24, 96, 96, 96, 96]  # the first use, then curve and longest in turn, one pass each
    assert [len(side.seconds) for side in curve.timed] == [2, 2]


def test_sharing_scores_the_same_choices_with_less_work(request_, text, backend):
    passes: list[int] = []
    handle = backend.model.get_input_embeddings().register_forward_pre_hook(
        lambda module, arguments: passes.append(arguments[0].numel())
    )
    rows = measure_sharing(request_, "float32", text, backend)
    handle.remove()
    assert [(row.questions, row.length) for row in rows] == [(1, 96), (NUM_QUESTIONS, 96)]
    assert all(row.largest_difference < 1e-4 for row in rows)
    alone = [*[96 - 1] * NUM_CHOICES, 88, 4 * 7, *[88, 4 * 7] * NUM_QUESTIONS]
    assert passes[: len(alone)] == alone
    assert sum(passes[len(alone) :]) < 64 + NUM_QUESTIONS * (24 + 4 * 7) + 1


def batches_of(backend, lengths, sizes):
    return measure_batches(backend, "tiny", vocab_size=300, lengths=lengths, device="cpu", sizes=sizes, repeats=2)


def test_batches_score_the_same_windows_in_fewer_passes(text, backend):
    serve_shipped(backend, text)
    passes: list[tuple[int, ...]] = []
    handle = backend.model.get_input_embeddings().register_forward_pre_hook(
        lambda module, arguments: passes.append(tuple(arguments[0].shape))
    )
    rows = batches_of(backend, (32, 96), (2, 5))
    handle.remove()
    assert [(row.length, row.batch_size) for row in rows] == [(32, 2), (32, 5), (96, 2), (96, 5)]
    expected = [[*[(1, length - 1)] * size, (size, length - 1)] * 2 for length in (32, 96) for size in (2, 5)]
    assert passes == [one for row in expected for one in row]
    assert all(row.largest_difference < 1e-4 for row in rows)
    assert rows[0].tokens_per_s == 64 / rows[0].timed.second.median_s
    assert [usual_sizes(length, "cpu") for length in (256, 2048)] == [(8,), (2,)]
    assert [usual_sizes(length, "cuda") for length in (256, 2048, 65536)] == [(32,), (4,), (2,)]


def test_random_models_are_scored():
    backend = random_backend("tiny", "float32", "cpu", 64)
    (row,) = batches_of(backend, (64,), (3,))
    assert row.largest_difference < 1e-4
    # Random weights know nothing: they are a little worse than giving each of 1,024 tokens the same probability.
    assert np.log(1024) < float(backend.score(np.arange(64, dtype=np.int32), 1).mean()) < np.log(1024) + 3


def test_failed_cell_stops_the_curve(request_, backend, monkeypatch, tmp_path):
    from bench.subject import request_spec
    from longeval.studies.ppl.plan import plan_ppl

    plan = plan_ppl(request_spec(request_, "float32", pe="none", lengths=(32,)))
    monkeypatch.setattr(backend, "score", lambda tokens_T, first: np.full(len(tokens_T) - first, np.nan, np.float32))
    with pytest.raises(RuntimeError, match=r"none at 32 tokens failed: .*not finite"):
        carry_out(plan, backend, str(tmp_path))


@pytest.mark.parametrize(("curve_s", "verdict"), [(1.29, "holds"), (1.31, "BROKEN")])
def test_verdict(curve_s, verdict):
    said = curve_verdict(Curve(dtype="float32", lengths=(1, 2, 3, 4), pe="yarn", timed=timed([curve_s], [1.0])))
    assert f"{curve_s:.2f} times" in said and verdict in said


@pytest.mark.parametrize("which", ["ours", "plain"])
def test_peak_of_a_pass(request_, which):
    peak = peak_of(which, request_, "float32")
    assert (peak.which, peak.dtype, peak.length, peak.error) == (which, "float32", 96, None)
    # Here in a process of many tests, which may give back a few pages after the model is loaded.
    assert peak.peak_bytes + 2**20 >= peak.loaded_bytes > 10 * 2**20
    assert peak.extra_bytes == peak.peak_bytes - peak.loaded_bytes
    assert min(peak.import_s, peak.plan_s, peak.load_s) > 0


@pytest.mark.slow
def test_whole_bench_as_tables_and_json(request_):
    results, device = measure(request_)
    assert device.startswith("cpu")
    assert [peak.which for peak in results.peaks] == ["ours", "plain"]
    numbers = json.loads(json.dumps(raw_numbers(request_, results, device, 1.0), allow_nan=False))
    assert numbers["curve"]["ratio"] == results.curve.timed.ratio


def die(*_):
    """Ends its process as the system's out-of-memory killer does."""
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_process_that_is_killed_is_reported(request_, monkeypatch):
    monkeypatch.setattr("bench.peak.peak_of", die)
    peak = peak_in_own_process("plain", request_, "float32")
    assert (peak.which, peak.length, peak.peak_bytes, peak.extra_bytes) == ("plain", 96, None, None)
    assert "killed" in peak.error


def test_tables_and_raw_numbers(request_, text, backend, monkeypatch):
    assert measure_engines(request_, "float32", text, backend) == [], "without vLLM there is nothing to compare"
    # The place of vLLM is taken by the same model on transformers: the two must agree.
    monkeypatch.setattr("bench.engines.vllm_installed", lambda: True)
    monkeypatch.setattr("longeval.backends.vllm.backend.VLLMBackend", lambda model, **_: HFBackend(model.load()))
    throughputs = measure_throughput(request_, "float32", text, backend, open_plain(text))
    peak = {"dtype": "float32", "length": 96, "import_s": 1.5, "plan_s": 2.0, "load_s": 0.25}
    results = Results(
        throughputs=throughputs,
        curve=Curve(dtype="float32", lengths=(24, 48, 72, 96), pe="yarn", timed=timed([1.1, 1.1], [1.0, 1.0])),
        sliding=measure_sliding(request_, "float32", text, backend),
        sharing=measure_sharing(request_, "float32", text, backend),
        batches=batches_of(backend, (96,), (2,)),
        engines=measure_engines(request_, "float32", text, backend),
        peaks=[
            Peak(which="ours", loaded_bytes=100 * 2**20, peak_bytes=150 * 2**20, **peak),
            Peak(which="plain", loaded_bytes=100 * 2**20, peak_bytes=300 * 2**20, **peak),
        ],
        stepping=[steps_of_a_seed()],
        overheads=[Overhead(units=200, workers=2, local_s=0.004, ray_s=0.01, start_s=12.0)],
    )
    console = Console(width=110, file=io.StringIO(), record=True)
    show(results, console)
    shown = console.export_text()
    for part in (
        "pass takes 4.0 times",
        "take 1.10 times the longest alone",
        "200 MiB",
        "4 questions on a document of 96",
        "batch / single",
        f"{throughputs[1].tokens_per_s:,.0f}",
        "0.25 s",
        "2.00",
        "40 %",
        "3.0 GFLOP a step",
        "with Ray 0.0100 s; the limit of 0.2 s holds",
        "8 of 8 answers are equal",
        "log-probabilities differ by 0.0e+00",
    ):
        assert part in shown

    numbers = json.loads(json.dumps(raw_numbers(request_, results, "cpu", 1.0), allow_nan=False))
    assert [row["length"] for row in numbers["throughput"]] == list(LENGTHS)
    assert numbers["throughput"][0]["longeval_s"] == list(throughputs[0].timed.first.seconds)
    assert numbers["throughput"][0]["plain_s"] == list(throughputs[0].timed.second.seconds)
    assert (numbers["curve"]["curve_s"], numbers["curve"]["longest_s"]) == ([1.1, 1.1], [1.0, 1.0])
    assert numbers["curve"]["within_limit"] is True
    assert [row["questions"] for row in numbers["sharing"]] == [1, 4]
    assert [(row["batch_size"], len(row["batch_s"]), len(row["single_s"])) for row in numbers["batches"]] == [(2, 2, 2)]
    engines = [(row["what"], row["length"], len(row["vllm_s"])) for row in numbers["engines"]]
    assert engines == [("ppl", 96, 2), ("tasks", 24, 2)]
    (steps,) = numbers["stepping"]
    assert (steps["steps_per_s"], steps["of_floor"], steps["side"]["seconds"]) == (2.0, 0.4, [5.0, 5.0])
    assert [(row["workers"], row["ratio"]) for row in numbers["overheads"]] == [(2, 2.5)]
    assert numbers["peak"][1]["extra_bytes"] == 200 * 2**20
    assert "torch" in numbers["provenance"]["versions"]


def steps_of_a_seed():
    """Ten steps in 5 s; 3 GFLOP a step, and a product of 15 GFLOP/s."""
    side = Side(seconds=(5.0, 5.0))
    sizes = {"model": "2×16", "batch_size": 128, "num_steps": 10}
    return Stepping(precision="float32", graph=False, side=side, flops=3e9, rate=15e9, **sizes)


@pytest.fixture
def small_steps(monkeypatch):
    """Batches of 8, and a model to go with them."""
    from longeval.studies.posgen.cells import ModelConfig

    monkeypatch.setattr("bench.posgen.BATCH_SIZE", 8)
    return ModelConfig(d_model=16, d_ff=32, heads=2, head_dim=8)


def test_steps_are_measured_on_this_device_in_turn(small_steps, monkeypatch):
    made: list[tuple[bool, int]] = []

    def counting(config, precision, device, *, graph):
        make = stepping(config, precision, device, graph=graph)
        return lambda num_steps: made.append((graph, num_steps)) or make(2)

    monkeypatch.setattr("bench.posgen.stepping", counting)
    (row,) = measure_stepping("cpu", 2, small_steps)
    assert made == [(False, 10)] * 3  # a warm-up and two repeats
    assert (row.precision, row.graph, row.batch_size, row.num_steps) == ("float32", False, 8, 10)
    assert row.rate > 0 and len(row.side.seconds) == 2
    products, attention = 2 * (4 * 16 * 16 + 2 * 16 * 32) + 16 * 17, 2 * 16 * 64
    assert row.flops == 3 * 8 * 64 * 2 * (products + attention)


@pytest.mark.gpu
def test_on_a_gpu_steps_are_measured_with_and_without_a_graph(small_steps):
    rows = list(measure_stepping("cuda:0", 1, small_steps))
    assert [(row.precision, row.graph) for row in rows] == [
        (precision, graph) for precision in ("float32", "tf32", "bf16") for graph in (True, False)
    ]
    assert all(row.side.error is None and row.steps_per_s > 0 < row.of_floor for row in rows)


def test_the_steps_that_are_timed_are_training(small_steps):
    make = stepping(small_steps, "float32", "cpu")
    first = make(1)
    assert make(30) < first - 0.1


def test_flags():
    made = make_request("m", "cpu", lengths=None, dtypes=None, repeats=None, quick=True)
    assert (made.lengths, len(made.dtypes), made.repeats) == ((256, 512), 1, 1)
    made = make_request("m", "cpu", lengths="1k,64", dtypes="float32,float32", repeats=2, quick=True)
    assert (made.lengths, made.dtypes, made.repeats) == ((64, 1024), ("float32",), 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"lengths": "8"}, "--lengths 8"),
        ({"lengths": "1k,x"}, "--lengths 'x'"),
        ({"dtypes": "float64"}, "--dtype float64"),
        ({"repeats": 0}, "--repeats 0"),
    ],
)
def test_bad_flags(flags, message):
    with pytest.raises(LongEvalError, match=message):
        make_request("m", "cpu", **{"lengths": None, "dtypes": None, "repeats": None, "quick": False} | flags)


def test_json_path_is_checked_first(tmp_path):
    for path in ("-", tmp_path / "new.json"):
        check_json_path(str(path))
    for path in (tmp_path / "no" / "new.json", tmp_path):
        with pytest.raises(LongEvalError, match="--json"):
            check_json_path(str(path))
