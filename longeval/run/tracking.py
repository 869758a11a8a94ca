"""`--track`: sends records and validation losses to experiment trackers, with accelerate's tracker classes.

Without the flag nothing leaves the machine. A tracker that fails doesn't end the run; a warning is shown once, and the
records still go into the run folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from longeval.errors import LongEvalError, reason
from longeval.run.study import Outcome
from longeval.store.artefact import artefact_of
from longeval.store.records import Record

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

logger = logging.getLogger(__name__)

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""Names of trackers and of their packages."""

_PROJECT = "longeval"
"""The project or experiment of all runs."""

_ONE_STEP_AXIS = ("wandb", "trackio")
"""Trackers whose step may only increase. Cells are not computed in the order of lengths, so these get it as a value."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises LongEvalError for a tracker that longeval does not know, or whose package is missing."""
    for name in names:
        if name not in TRACKERS:
            raise LongEvalError(f"--track {name}: unknown", f"Known: {', '.join(TRACKERS)}.")
        if importlib.util.find_spec(name) is None:
            raise LongEvalError(f"--track {name}: the Python package {name} is missing", f"pip install {name}")


class Tracking:
    """Sends each cell to trackers after it is stored. Use it in a `with` block.

    Args:
        names: Names from `TRACKERS`, possibly none.
        folder: The run folder, after which the tracker's run is named. tensorboard writes into it or, if it is a URL,
            into the current folder.
        settings: The request in the form of spec.yaml.

    Raises:
        LongEvalError: A tracker can't be started, such as without a login.
    """

    def __init__(self, names: Sequence[str], *, folder: str, settings: Mapping[str, Any]) -> None:
        check_trackers(names)
        self._trackers: dict[str, GeneralTracker] = {}
        for name in names:
            try:
                with contextlib.redirect_stdout(sys.stderr):  # trackers print, but stdout is for results
                    self._trackers[name] = _started(name, folder)
                    plain = {key: _simple(value) for key, value in settings.items()}
                    self._trackers[name].store_init_configuration(plain)
            except Exception as error:  # services raise any kind of error (no login, no network, a wrong address)
                self.close()
                raise LongEvalError(
                    f"--track {name}: can't start ({reason(error)})", "Log in to it, or leave the flag out."
                ) from error

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell(self, outcome: Outcome) -> None:
        """Sends a cell's values at its length, and the losses of its training at their epochs."""
        for record in outcome.records:
            if record.value is not None and math.isfinite(record.value):
                self._send({f"{record.metric}/{_series(record)}": record.value}, "length", record.length)
        kind = outcome.artefact or artefact_of(outcome.records[0])
        if outcome.found is not None and kind is not None and kind.by_epoch is not None:
            for name, values in kind.by_epoch(outcome.found).items():
                for epoch, value in values.items():
                    if math.isfinite(value):
                        self._send({f"{name}/{_series(outcome.records[0])}": value}, "epoch", epoch)

    def close(self) -> None:
        """Ends the trackers' runs."""
        for name in list(self._trackers):
            self._try(name, lambda tracker: tracker.finish())
        self._trackers.clear()

    def _send(self, values: Mapping[str, float], axis: str, step: int) -> None:
        for name in list(self._trackers):
            if name in _ONE_STEP_AXIS:
                self._try(name, lambda tracker: tracker.log({axis: step, **values}))
            else:
                self._try(name, lambda tracker: tracker.log(dict(values), step=step))

    def _try(self, name: str, action: Callable[[GeneralTracker], object]) -> None:
        """Calls a tracker; if it fails, warns and stops using it."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                action(self._trackers[name])
        except Exception as error:
            logger.warning("--track %s: stopped (%s); records go on into the run folder", name, reason(error))
            del self._trackers[name]


def _started(name: str, folder: str) -> GeneralTracker:
    """Starts a tracker with a new run."""
    run = os.path.basename(folder.rstrip("/"))
    from accelerate import PartialState
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

    PartialState(cpu=True)  # the tracker classes need it to know their process
    tracker: GeneralTracker
    if name == "tensorboard":
        tracker = TensorBoardTracker(run, "tensorboard" if "://" in folder else os.path.join(folder, "tensorboard"))
    elif name == "wandb":
        tracker = WandBTracker(_PROJECT, name=run)
    elif name == "mlflow":
        tracker = MLflowTracker(experiment_name=_PROJECT, run_name=run)
    else:
        tracker = TrackioTracker(_PROJECT, name=run)
    tracker.start()
    return tracker


def _series(record: Record) -> str:
    """Name of a record's curve, such as `gov_report/llama2-7b/yarn/s:4`, with what else tells trainings apart."""
    parts = [record.task or record.data or "", record.model, record.pe]
    parts += [f"s:{record.factor:g}"] if record.factor is not None else []
    training = [name for name in ("regime", "augment") if name in record.params]
    parts += [f"{name}:{record.params[name]}" for name in (*training, "seed") if training]
    return re.sub(r"[^\w\-. :/]", "_", "/".join(filter(None, parts)))  # mlflow allows only these characters


def _simple(value: Any) -> str | int | float | bool:
    """A setting's value in a form that trackers accept."""
    return value if isinstance(value, str | int | float | bool) else str(value)
