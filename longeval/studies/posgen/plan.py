"""Turns a request of `posgen train` into cells with stable ids, and into work: one training each.

Everything that can be wrong with a request is found here, before the first step: rules and methods are looked up, sizes
are checked, tables are built. Nothing is generated or trained.

A training's id digests what decides its weights. So methods whose table is the same while training (in the regime
`swapped`, a method and its base) share a training, and so do regimes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from longeval.errors import LongEvalError
from longeval.metrics.accuracy import ACCURACY_OOD
from longeval.models.device import resolve_device
from longeval.plain import canonical_json
from longeval.rope.base import Geometry, RopeTable
from longeval.rope.build import ALL, MethodName, build_table, read_arguments, usable
from longeval.run.cell import ID_DIGITS, cell_id
from longeval.run.host import Host
from longeval.run.overview import CellList, Overview, count, format_gib
from longeval.run.setups import method_names
from longeval.run.study import Plan, Work, request_from_mapping
from longeval.store.folder import Store, TrainingFile
from longeval.store.plan import stored_requests
from longeval.store.records import SCHEMA_VERSION
from longeval.studies.posgen.cells import (
    ALGORITHM,
    PREFIX,
    Evaluation,
    Experiment,
    ModelConfig,
    PosGenCell,
    Training,
)
from longeval.studies.posgen.data import DataSetting
from longeval.studies.posgen.estimate import matmul_rate, memory_bytes
from longeval.studies.posgen.request import FEW_SEEDS, PosGenRequest, Regime
from longeval.studies.posgen.work import PosGenWork
from longeval.values import format_duration

_SCHEDULE = ("epochs", "batch_size", "lr", "weight_decay", "warmup")
"""Fields of the request that determine how a model trains, besides its precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PosGenPlan(Plan):
    """A plan of PosGen's trainings."""

    cells: tuple[PosGenCell, ...]
    work: tuple[PosGenWork, ...]
    experiment: Experiment

    @property
    def trainings(self) -> list[Training]:
        """All trainings, in the order in which they are made."""
        return [work.training for work in self.work]

    def clear(self, store: Store, busy: Container[str]) -> None:
        """Removes all weights and checkpoints of an earlier run.

        It removes all of them at once, so that a fresh start that is killed goes on from its own files alone.
        """
        for work in self.work:
            if not any(cell.id in busy for cell in work.cells):
                for kind in get_args(TrainingFile):
                    store.remove_training(kind, work.training.id)

    def overview(self, host: Host, left: Sequence[Work], stored: Container[str]) -> Overview:
        """See `Plan`."""
        rows: dict[tuple[str, ...], list[str]] = {}
        for cell in self.cells:
            factor = "–" if cell.factor is None else f"{cell.factor:g}"
            place = (cell.training.data.task, cell.regime, cell.pe.canonical, cell.params["trained_with"], factor)
            rows.setdefault(place, []).append(cell.id)
        told = [
            (*row, str(len(ids)), f"{sum(cell in stored for cell in ids)} of {len(ids)}") for row, ids in rows.items()
        ]
        return Overview(
            columns=("task", "regime", "method", "trained with", "s", "seeds", "stored"),
            words=frozenset({"task", "regime", "method", "trained with"}),
            sections=(CellList(title=None, rows=tuple(told)),),
            costs=(self._cost(host, left),),
        )

    def _cost(self, host: Host, left: Sequence[Work]) -> str:
        """The line that says what is left to do, with a rate that is measured now."""
        request, config, device = self.request, self.experiment.config, self.experiment.device
        flops = sum(sum(work.costs(host)) for work in left)
        trainings = sum(isinstance(work, PosGenWork) and work.needs_training(host) for work in left)
        rate = matmul_rate(config, request.batch_size * request.length, request.precision, device)
        memory = memory_bytes(config, request.batch_size, request.length)
        return (
            f"{request.model_name} ({request.dtype}, {device}): "
            f"{count(sum(len(work.cells) for work in left), 'cell')} to compute from "
            f"{count(trainings, 'training')} of {count(request.epochs, 'epoch')}"
            f"{', one after another' if trainings > 1 else ''}; "
            f"{flops:.2g} operations, estimated {format_duration(flops / rate)} at {rate / 1e9:,.0f} GFLOP/s "
            f"(a matrix product, measured now) and {format_gib(memory)}"
        )


def check_settings(requests: Sequence[PosGenRequest], store: Store) -> None:
    """Checks that all PosGen cells of a run folder have the same settings, because reports could not separate them.

    Raises:
        LongEvalError: The requests differ from each other or from a stored one in more than tasks, methods, regimes
            and seeds.
    """
    plain, origin = stored_requests(store), f"{store.path}/spec.yaml"
    there = [request_from_mapping(one, origin=origin) for one in plain if one.get("command") == "posgen"]
    for place, request in enumerate(requests):
        for other in (*there, *requests[:place]):
            assert isinstance(other, PosGenRequest)
            if found := request.differences(other):
                raise LongEvalError(
                    f"--out {store.path}: this run folder has other settings ({'; '.join(found)})",
                    "Choose another --out, or use the folder's settings.",
                )


def plan_posgen(request: PosGenRequest) -> PosGenPlan:
    """Checks a request and makes its cells and work; raises LongEvalError if anything in it is wrong."""
    names = method_names(request.pe, request.pe_args, request.factor)
    notes: list[str] = []
    if ALL in request.pe:
        names, left_out = usable(request.pe, request.pe_args, lambda name: _test_table(request, name))
        request, notes = request.replaced(pe=[name.canonical for name in names]), [left_out] if left_out else []
    _check_native(request, names)
    device = resolve_device(request.device)
    _check_precision(request, device)
    experiment = Experiment(request=request, config=model_config(request), device=device)
    cells: list[PosGenCell] = []
    by_training: dict[str, PosGenWork] = {}
    for task in request.tasks:
        for regime in request.regimes:
            for name in names:
                for new in _work(experiment, task, regime, name):
                    cells += new.cells
                    old = by_training.get(new.training.id)
                    if old is not None:
                        new = dataclasses.replace(old, evaluations=(*old.evaluations, *new.evaluations))
                    by_training[new.training.id] = new
    return PosGenPlan(
        request=request,
        cells=tuple(cells),
        work=tuple(by_training.values()),
        notes=(*notes, *_notes(request, names)),
        experiment=experiment,
    )


def data_setting(request: PosGenRequest, task: str, seed: int) -> DataSetting:
    """The data settings of one seed."""
    data_seed = seed if request.data_seed is None else request.data_seed
    return DataSetting(task=task, seed=data_seed, **_common(request, DataSetting))


def model_config(request: PosGenRequest) -> ModelConfig:
    """The model configuration of a request."""
    return ModelConfig(**_common(request, ModelConfig))


def _common(request: PosGenRequest, kind: type[DataSetting | ModelConfig]) -> dict[str, Any]:
    """The values of the request's fields that `kind` also has."""
    names = [item.name for item in dataclasses.fields(kind) if item.name in PosGenRequest.model_fields]
    return {name: getattr(request, name) for name in names}


def _check_native(request: PosGenRequest, names: Sequence[MethodName]) -> None:
    """Raises LongEvalError for a `--native` that no method uses: a short and a long one give the same tables."""
    if request.native is None:
        return
    own = [_test_table(request, name) for name in names]
    for native in (2, 2**20):
        try:
            others = [_test_table(request.replaced(native=native), name) for name in names]
        except LongEvalError:  # a method that refuses the length also uses it
            return
        if not all(one.same_as(other) for one, other in zip(own, others, strict=True)):
            return
    raise LongEvalError(
        f"--native {request.native}: would be ignored, it changes nothing under --pe {', '.join(request.pe)}"
        f"{'' if request.factor is None else f' with --factor {request.factor:g}'}",
        "Leave it out.",
    )


def _check_precision(request: PosGenRequest, device: str) -> None:
    """Raises LongEvalError for TF32 on anything but an NVIDIA GPU of compute capability 8 or later."""
    if request.precision != "tf32":
        return
    import torch

    nvidia = device.startswith("cuda") and torch.version.hip is None
    if not nvidia or torch.cuda.get_device_capability(device)[0] < 8:
        raise LongEvalError(
            f"--tf32: would be ignored, {device} has no TF32 units",
            "NVIDIA GPUs have them since Ampere; leave it out for float32.",
        )


def _test_table(request: PosGenRequest, name: MethodName) -> RopeTable:
    """A method's table for the evaluation window."""
    return _table(request, name, request.test_window)


def _table(request: PosGenRequest, name: MethodName, length: int) -> RopeTable:
    """A method's table for a window of `length` tokens."""
    geometry = Geometry(
        head_dim=request.head_dim,
        theta=request.theta,
        native_length=request.native_length,
        factor=request.scaling_factor,
    )
    parameters, resonance = read_arguments(name, name.arguments(request.pe_args))
    return build_table(name.canonical, geometry, parameters, length, resonance=resonance)


def _work(experiment: Experiment, task: str, regime: Regime, name: MethodName) -> Iterator[PosGenWork]:
    """Yields the training and the cell of each seed, for one method in one regime on one task."""
    request = experiment.request
    # In regime `swapped` the base is off in training; resonance stays on.
    trained_with = name if regime == "trained" else MethodName(base="none", resonance=name.resonance)
    train_table = _table(request, trained_with, request.train_window)
    table = _test_table(request, name)
    digest = table.digest(request.test_window)
    for seed in request.seed_values():
        training = _training(experiment, train_table, data_setting(request, task, seed), seed)
        evaluation = Evaluation(
            pe=name,
            regime=regime,
            table=table,
            name=f"{name.canonical} {digest[:ID_DIGITS]}",
            cell=_cell(request, name, regime, training, trained_with),
        )
        yield PosGenWork(
            experiment=experiment, task=task, table=train_table, training=training, evaluations=(evaluation,)
        )


def _training(experiment: Experiment, table: RopeTable, data: DataSetting, seed: int) -> Training:
    """The training of one seed, with its id."""
    request, config = experiment.request, experiment.config
    decides = {
        "kind": "posgen_training",
        "schema": SCHEMA_VERSION,
        "algorithm": ALGORITHM,
        "data": dataclasses.asdict(data),
        "model": dataclasses.asdict(config),
        "schedule": {name: getattr(request, name) for name in (*_SCHEDULE, "precision")},
        "table": table.digest(request.train_window),
        "seed": seed,
    }
    if config.dropout:  # dropout masks depend on the device's generator, so weights differ by more than rounding
        decides["dropout_on"] = experiment.device.partition(":")[0]
    digest = hashlib.sha256(canonical_json(decides).encode()).hexdigest()[:ID_DIGITS]
    return Training(id=digest, seed=seed, data=data)


def _cell(
    request: PosGenRequest, name: MethodName, regime: Regime, training: Training, trained_with: MethodName
) -> PosGenCell:
    """The cell of one seed, with its id."""
    data = training.data
    params = {
        "regime": regime,
        "seed": training.seed,
        "trained_with": trained_with.canonical,
        "training": training.id,
        "native_length": request.native_length,
        "method": read_arguments(name, name.arguments(request.pe_args)).to_mapping(),
    }
    named = {"length": "train_length", "seed": "data_seed"}
    params |= {named.get(field, field): value for field, value in dataclasses.asdict(data).items() if field != "task"}
    model = [item.name for item in dataclasses.fields(ModelConfig) if item.name != "modulus"]
    params |= {field: getattr(request, field) for field in (*model, *_SCHEDULE)}
    fields: dict[str, Any] = {
        "model": request.model_name,
        "factor": request.scaling_factor if name.method.uses_factor else None,
        "length": request.test_length,
        "data": PREFIX + data.task,
        "backend": "posgen",
        "dtype": request.dtype,
    }
    return PosGenCell(
        id=cell_id("posgen", fields | {"pe": name.canonical}, params),
        pe=name,
        params=params,
        metric=ACCURACY_OOD.name,
        training=training,
        regime=regime,
        **fields,
    )


def _notes(request: PosGenRequest, names: Sequence[MethodName]) -> tuple[str, ...]:
    """Notes for the user about the settings."""
    notes = []
    stretched = ", ".join(name.canonical for name in names if name.method.uses_factor)
    if stretched and request.scaling_factor == 1:
        notes.append(f"{stretched}: s = 1, nothing is stretched (--factor or a longer --test-length would)")
    if request.seeds < FEW_SEEDS and len(names) > 1:
        notes.append(
            f"{count(request.seeds, 'seed')}: this checks that everything works, the order of the methods will mean "
            "nothing (--preset small, or --seeds 5, is for that)"
        )
    return tuple(notes)
