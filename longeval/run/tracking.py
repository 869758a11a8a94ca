"""`--track`: sends records and validation losses to experiment trackers, through accelerate's classes for them.

Off by default: nothing leaves the machine without the flag. A tracker that fails ends no run: a warning says so once,
and the records are in the run folder all the same.
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
"""Names of trackers, which are also the names of their packages."""

_PROJECT = "longeval"
"""The project or experiment under which trackers show runs."""

_ONE_STEP_AXIS = ("wandb", "trackio")
"""Trackers whose steps may only grow. Cells are not computed by length, so there the length is a value of its own."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises LongEvalError for a tracker that longeval does not know, or whose package is missing."""
    for name in names:
        if name not in TRACKERS:
            raise LongEvalError(f"--track {name}: unknown", f"Known: {', '.join(TRACKERS)}.")
        if importlib.util.find_spec(name) is None:
            raise LongEvalError(f"--track {name}: the Python package {name} is missing", f"pip install {name}")


class Tracking:
    """Trackers that are told of each cell as soon as it is stored. Use it in a `with` block.

    Args:
        names: Of `TRACKERS`; none: nothing is tracked.
        folder: The run folder. The tracker's run is named after it; tensorboard writes into it, or into the current
            folder where it is a URL.
        settings: The request, as spec.yaml has it.

    Raises:
        LongEvalError: A tracker can't be started, for example without a login.
    """

    def __init__(self, names: Sequence[str], *, folder: str, settings: Mapping[str, Any]) -> None:
        check_trackers(names)
        self._trackers: dict[str, GeneralTracker] = {}
        for name in names:
            try:
                with contextlib.redirect_stdout(sys.stderr):  # trackers talk, and stdout is for results
                    self._trackers[name] = _started(name, folder)
                    plain = {key: _simple(value) for key, value in settings.items()}
                    self._trackers[name].store_init_configuration(plain)
            except Exception as error:  # a service's own: no login, no network, a wrong address
                self.close()
                raise LongEvalError(
                    f"--track {name}: can't start ({reason(error)})", "Log in to it, or leave the flag out."
                ) from error

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell(self, outcome: Outcome) -> None:
        """Sends a cell's values, at its length, and what its training left, at its epochs."""
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
        """Lets a tracker do something; one that fails is not asked again."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                action(self._trackers[name])
        except Exception as error:
            logger.warning("--track %s: stopped (%s); records go on into the run folder", name, reason(error))
            del self._trackers[name]


def _started(name: str, folder: str) -> GeneralTracker:
    """A tracker with a new run."""
    run = os.path.basename(folder.rstrip("/"))
    from accelerate import PartialState
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

    PartialState(cpu=True)  # what these classes ask which process they are in; it changes nothing else
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
    """What one curve shows: `gov_report/llama2-7b/yarn/s:4`, with regime and seed where there are any."""
    parts = [record.task or record.data or "", record.model, record.pe]
    parts += [f"s:{record.factor:g}"] if record.factor is not None else []
    parts += [f"{name}:{record.params[name]}" for name in ("regime", "seed") if "regime" in record.params]
    return re.sub(r"[^\w\-. :/]", "_", "/".join(filter(None, parts)))  # what mlflow allows in a name


def _simple(value: Any) -> str | int | float | bool:
    """A setting as trackers take them."""
    return value if isinstance(value, str | int | float | bool) else str(value)
