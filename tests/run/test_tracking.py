"""`--track`: what trackers are told, with a real tensorboard, and what becomes of a run whose tracker fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from accelerate.tracking import GeneralTracker
from posgen_requests import tiny_request
from records import make_nll, make_records

import longeval
from longeval.cli.app import run_app
from longeval.errors import LongEvalError
from longeval.run import tracking
from longeval.run.engine import run
from longeval.run.host import Silent
from longeval.run.study import Outcome, find_study
from longeval.store.folder import Store


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All curves in a folder of tensorboard: name → (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for path in folder.rglob("*tfevents*"):
        events = EventAccumulator(str(path))
        events.Reload()
        found |= {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    return found


class Recorder(GeneralTracker):
    """A tracker in memory; `fails_at` calls of `log`, it raises."""

    name = "recorder"
    requires_logging_directory = False
    main_process_only = False
    tracker = None

    def __init__(self, fails_at: int | None = None):
        super().__init__()
        self.logged: list[tuple[dict, int | None]] = []
        self.fails_at = fails_at
        self.finished = False

    def store_init_configuration(self, values):
        sys.stdout.write("trackers talk\n")

    def log(self, values, step=None, **_):
        self.logged.append((values, step))
        if len(self.logged) == self.fails_at:
            raise ConnectionError("the network is gone")

    def finish(self):
        self.finished = True


@pytest.fixture
def recorder(monkeypatch):
    """Stands in for wandb."""

    def start(**options) -> Recorder:
        made = Recorder(**options)
        monkeypatch.setattr(tracking, "check_trackers", lambda names: None)
        monkeypatch.setattr(tracking, "_started", lambda name, folder: made)
        return made

    return start


def outcome(pe="yarn", length=64) -> Outcome:
    nll = make_nll([[2.0, 1.0 + length / 64]])
    return Outcome(records=tuple(make_records(pe, length, nll, model="my model!", factor=2.0)))


def test_values_stand_at_their_lengths_in_a_real_tensorboard(tmp_path):
    with tracking.Tracking(["tensorboard"], folder=str(tmp_path), settings={"pe": ["yarn"]}) as tracked:
        told = [outcome(length=128), outcome(length=64)]
        for one in told:
            tracked.tell(one)
    values = {name: dict(points) for name, points in scalars(tmp_path / "tensorboard").items()}
    series = f"{told[0].records[0].data}/my model_/yarn/s:2"  # mlflow refuses other signs
    assert set(values) == {f"perplexity/{series}", f"bits_per_byte/{series}"}
    expected = {one.records[0].length: one.records[0].value for one in told}
    assert values[f"perplexity/{series}"] == pytest.approx(expected)


def test_losses_of_a_training_stand_at_their_epochs(recorder, tmp_path):
    heard = recorder()
    request = tiny_request(pe=("none",), seeds=1)
    plan = find_study("posgen").plan(request, Silent())
    store = Store(str(tmp_path / "run"))
    with tracking.Tracking(["mlflow"], folder=str(tmp_path), settings={}) as tracked:
        run(plan, store, Silent(), told=tracked.tell)
    curves = store.curves(plan.cells[0].id)
    losses = {step: values for values, step in heard.logged if any("valid_loss_ood" in name for name in values)}
    assert tuple(losses) == curves.epochs
    assert [next(v for name, v in one.items() if "ood" in name) for one in losses.values()] == pytest.approx(
        curves.valid_loss_ood
    )
    assert heard.finished


def test_the_length_is_a_value_where_steps_can_only_grow(recorder):
    heard = recorder()
    with tracking.Tracking(["wandb"], folder=".", settings={}) as tracked:
        tracked.tell(outcome(length=128))
        tracked.tell(outcome(length=64))
    assert {(values["length"], step) for values, step in heard.logged} == {(128, None), (64, None)}


def test_a_tracker_that_fails_ends_no_run_and_is_not_asked_again(recorder, caplog):
    heard = recorder(fails_at=1)
    with tracking.Tracking(["wandb"], folder=".", settings={}) as tracked:
        tracked.tell(outcome(length=128))
        tracked.tell(outcome(length=64))
    assert len(heard.logged) == 1 and not heard.finished
    assert ["wandb" in record.message for record in caplog.records] == [True]


def test_stdout_is_for_results(recorder, capsys):
    recorder()
    with tracking.Tracking(["wandb"], folder=".", settings={}):
        pass
    out = capsys.readouterr()
    assert (out.out, out.err) == ("", "trackers talk\n")


@pytest.mark.parametrize("name", ["nonsense", "trackio"])
def test_a_tracker_that_is_not_there_is_refused(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LongEvalError, match=f"--track {name}"):
        tracking.check_trackers([name])


def test_python_tracks_too(recorder, tmp_path):
    heard = recorder()
    settings = tiny_request(pe=("none",), seeds=1).to_mapping()
    settings.pop("command")
    results = longeval.posgen(out=str(tmp_path / "run"), quiet=True, track="wandb", **settings)
    sent = {name.partition("/")[0] for values, _ in heard.logged for name in values}
    assert {record.metric for record in results.records} <= sent


def test_the_flag_makes_tensorboard_beside_the_records_and_only_the_flag(tmp_path, capsys):
    request = ["posgen", "train", "--preset", "smoke-test", "--pe", "none", "--regime", "trained", "--num-train", "64"]
    request += ["--num-valid", "4", "--num-test", "4", "--epochs", "2", "--batch-size", "32", "--d-model", "32"]
    request += ["--d-ff", "32", "--head-dim", "16", "--json", "-"]
    for name, more in (("with", ["--track", "tensorboard"]), ("without", [])):
        assert run_app([*request, "--out", str(tmp_path / name), *more]) == 0
        records = json.loads(capsys.readouterr().out)
        curves = scalars(tmp_path / name / "tensorboard")
        expected = {record["metric"]: record["value"] for record in records} if more else {}
        found = {name.split("/")[0]: points[0][1] for name, points in curves.items() if name.startswith("accuracy")}
        assert found == pytest.approx(expected)
