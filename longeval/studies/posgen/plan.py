"""A request of `posgen train` becomes cells with stable ids, and cells become stacks whose seeds train together.

Everything a request can have wrong is found here, before the first step: rules and methods are looked up, sizes are
checked, tables are built. Nothing is generated or trained.

What decides a training's weights decides its id: methods whose table is the same while training (in the regime
`swapped`, a method and its base) share it, and so do regimes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from longeval.errors import LongEvalError
from longeval.metrics.accuracy import ACCURACY_OOD
from longeval.models.device import resolve_device
from longeval.plain import canonical_json
from longeval.rope.base import Geometry, RopeTable, table_digest
from longeval.rope.build import MethodName, build_table, make_parameters
from longeval.run.cell import ID_DIGITS, cell_id
from longeval.run.host import Host
from longeval.run.overview import CellList, Overview, count, format_duration, format_gib
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
    Stack,
    Training,
    TrainSetting,
)
from longeval.studies.posgen.data import DataSetting
from longeval.studies.posgen.estimate import costs, matmul_rate, memory_bytes
from longeval.studies.posgen.request import PosGenRequest, Regime
from longeval.studies.posgen.work import PosGenWork, Trainer


@dataclass(frozen=True, kw_only=True, slots=True)
class PosGenPlan(Plan):
    """A plan of PosGen's trainings."""

    experiment: Experiment
    stacked: bool
    """Whether seeds train together; a stack is of one seed each if not."""

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """All stacks, in the order in which they train."""
        return tuple(work.stack for work in self.work if isinstance(work, PosGenWork))

    @property
    def trainings(self) -> list[Training]:
        """All trainings, stack by stack."""
        return [training for stack in self.stacks for training in stack.trainings]

    def clear(self, store: Store) -> None:
        """Removes the trainings of an earlier run.

        All at once: whoever goes on with a killed fresh start finds its own weights and checkpoints alone.
        """
        for training in self.trainings:
            for kind in get_args(TrainingFile):
                store.remove_training(kind, training.id)

    def overview(self, host: Host, left: Sequence[Work], stored: Container[str]) -> Overview:
        """See `Plan`."""
        rows: dict[tuple[str, ...], list[str]] = {}
        for cell in self.cells:
            assert isinstance(cell, PosGenCell)
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
        """What is left to do, with a rate that is measured now."""
        request, config, device = self.request, self.experiment.config, self.experiment.device
        trainer = Trainer(experiment=self.experiment, host=host)
        stacks = [work.stack for work in left if isinstance(work, PosGenWork)]
        done = [trainer.epochs_done(stack.trainings) for stack in stacks]
        flops = sum(sum(costs(self.experiment, *one)) for one in zip(stacks, done, strict=True))
        seeds = [sum(epochs is not None for epochs in one.values()) for one in done]
        largest, trainings = max(seeds, default=0) or 1, sum(seeds)
        num_stacks = sum(number > 0 for number in seeds)
        together = f" in {count(num_stacks, 'stack')}" if self.stacked else ", one after another" * (trainings > 1)
        rate = matmul_rate(config, largest, request.batch_size * request.length, request.precision, device)
        memory = memory_bytes(config, largest, request.batch_size, request.length)
        return (
            f"{request.model_name} ({request.dtype}, {device}): "
            f"{count(sum(len(work.cells) for work in left), 'cell')} to compute from "
            f"{count(trainings, 'training')} of {count(request.epochs, 'epoch')}{together}; "
            f"{flops:.2g} operations, estimated {format_duration(flops / rate)} at {rate / 1e9:,.0f} GFLOP/s "
            f"(a matrix product, measured now) and {format_gib(memory)}"
        )


def check_settings(requests: Sequence[PosGenRequest], store: Store) -> None:
    """Refuses to put PosGen cells of two settings into one run folder, where nobody could tell them apart.

    Args:
        requests: Requests that are to go into it.
        store: The folder.

    Raises:
        LongEvalError: They differ, from each other or from a request of the folder, in more than tasks, methods,
            regimes and seeds.
    """
    plain, origin = stored_requests(store), f"{store.path}/spec.yaml"
    there = [request_from_mapping(one, origin=origin) for one in plain if one.get("command") == "posgen"]
    for place, request in enumerate(requests):
        for other in (*there, *requests[:place]):
            assert isinstance(other, PosGenRequest)
            if found := request.differences(other):
                raise LongEvalError(
                    f"--out {store.path}: is a run folder of other settings ({'; '.join(found)})",
                    "Choose another --out, or the settings that are there.",
                )


def plan_posgen(request: PosGenRequest) -> PosGenPlan:
    """Checks a request and lays out its cells; raises LongEvalError for anything that is wrong with it."""
    names = method_names(request)
    _check_native(request, names)
    device = resolve_device(request.device)
    _check_precision(request, device)
    config = model_config(request)
    stacks: list[Stack] = []
    for task in request.tasks:
        data = [data_setting(request, task, seed) for seed in request.seed_values()]
        for regime in request.regimes:
            for name in names:
                _add(stacks, _stack(request, config, name, regime, data, device))
    # On two CPU cores a small stack took longer than its seeds one after another. On a GPU neither was measured: there
    # one small model alone is not expected to fill the device.
    stacked = device != "cpu" if request.stack is None else request.stack
    if not stacked:
        stacks = [alone for stack in stacks for alone in stack.by_seed()]
    experiment = Experiment(request=request, config=config, setting=train_setting(request), device=device)
    return PosGenPlan(
        request=request,
        cells=tuple(_in_order(request, [cell for stack in stacks for cell in stack.cells])),
        work=tuple(PosGenWork(experiment=experiment, stack=stack) for stack in stacks),
        notes=tuple(_notes(request, names)),
        experiment=experiment,
        stacked=stacked,
    )


def _in_order(request: PosGenRequest, cells: Sequence[PosGenCell]) -> list[PosGenCell]:
    """The cells in the order in which they were asked for: task, regime, method, seed."""
    order = [(task, regime, pe) for task in request.tasks for regime in request.regimes for pe in request.pe]
    place = {key: index for index, key in enumerate(order)}
    return sorted(
        cells,
        key=lambda cell: (place[cell.training.data.task, cell.regime, cell.pe.canonical], cell.training.seed),
    )


def data_setting(request: PosGenRequest, task: str, seed: int) -> DataSetting:
    """The data of one seed."""
    named = _named(request, DataSetting) | {
        "task": task,
        "seed": seed if request.data_seed is None else request.data_seed,
    }
    return DataSetting(**named)


def model_config(request: PosGenRequest) -> ModelConfig:
    """The model of a request."""
    return ModelConfig(**_named(request, ModelConfig))


def train_setting(request: PosGenRequest) -> TrainSetting:
    """The schedule of a request."""
    # The run chooses among checkpoints by the clock.
    return TrainSetting(**(_named(request, TrainSetting) | {"checkpoint_every": 1}))


def _named(request: PosGenRequest, kind: type[DataSetting | ModelConfig | TrainSetting]) -> dict[str, Any]:
    """The fields that a request and `kind` have in common."""
    known = [item.name for item in dataclasses.fields(kind) if item.name in PosGenRequest.model_fields]
    return {name: getattr(request, name) for name in known}


def _check_native(request: PosGenRequest, names: list[MethodName]) -> None:
    """Raises LongEvalError for a native length that no method reads, whatever it is."""
    if request.native is not None and not any(_reads_native(request, name) for name in names):
        raise LongEvalError(
            f"--native {request.native}: would be ignored, it changes nothing under --pe {', '.join(request.pe)}"
            f"{'' if request.factor is None else f' with --factor {request.factor:g}'}",
            "Leave it out.",
        )


def _reads_native(request: PosGenRequest, name: MethodName) -> bool:
    """Whether a method's table depends on L, itself or through the factor that follows from it."""
    assert request.native is not None
    own = _widest_table(request, name)
    for native in (2 * request.native, 8 * request.native, max(2, request.native // 2), 2):
        try:
            other = _widest_table(request.replaced(native=native), name)
        except LongEvalError:  # a length that a method refuses is one that it reads
            return True
        if not own.same_as(other):
            return True
    return False


def _widest_table(request: PosGenRequest, name: MethodName) -> RopeTable:
    """A method's table for the window of evaluation."""
    parameters = make_parameters(name.base, request.pe_args.get(name.base, {}))
    return build_table(name.canonical, _geometry(request), parameters, request.test_window)


def _geometry(request: PosGenRequest) -> Geometry:
    """What methods compute their tables from."""
    return Geometry(
        head_dim=request.head_dim,
        theta=request.theta,
        native_length=request.native_length,
        factor=request.scaling_factor,
    )


def _check_precision(request: PosGenRequest, device: str) -> None:
    """Raises LongEvalError for a precision that the device would ignore or can't compute with."""
    if request.precision == "tf32" and not _has_tf32(device):
        raise LongEvalError(
            f"--tf32: would be ignored, {device} has no TF32 units",
            "They are in NVIDIA GPUs since Ampere; leave it out for float32.",
        )


def _has_tf32(device: str) -> bool:
    """Whether matrix products can be taken in TF32: NVIDIA GPUs of compute capability 8 and later."""
    import torch

    return device.startswith("cuda") and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] >= 8


def _trained_as(name: MethodName, regime: Regime) -> MethodName:
    """What is on while training: the method itself, or with its base off (resonance stays)."""
    return name if regime == "trained" else MethodName(base="none", resonance=name.resonance)


def _stack(
    request: PosGenRequest, config: ModelConfig, name: MethodName, regime: Regime, data: list[DataSetting], device: str
) -> Stack:
    """One method and regime on one task, all seeds."""
    parameters = make_parameters(name.base, request.pe_args.get(name.base, {}))
    geometry = _geometry(request)
    trained_with = _trained_as(name, regime)
    own = parameters if trained_with.base == name.base else None
    train_table = build_table(trained_with.canonical, geometry, own, request.train_window)
    factor = geometry.factor if name.method.uses_factor else None
    trainings = tuple(
        _training(request, config, train_table, one, seed, device)
        for one, seed in zip(data, request.seed_values(), strict=True)
    )
    cells = tuple(
        _cell(request, name, regime, factor, training, dataclasses.asdict(parameters), trained_with)
        for training in trainings
    )
    table = _widest_table(request, name)
    digest = table_digest(table.cos_sin(np.arange(request.test_window, dtype=np.int64)))
    evaluation = Evaluation(
        pe=name, regime=regime, table=table, name=f"{name.canonical} {digest[:ID_DIGITS]}", cells=cells
    )
    return Stack(
        task=data[0].task,
        trained_with=(trained_with,),
        table=train_table,
        trainings=trainings,
        evaluations=(evaluation,),
    )


def _training(
    request: PosGenRequest, config: ModelConfig, table: RopeTable, data: DataSetting, seed: int, device: str
) -> Training:
    """One seed's training and its id."""
    positions_T = np.arange(request.train_window, dtype=np.int64)
    schedule = ("epochs", "batch_size", "lr", "weight_decay", "warmup", "precision")
    decides = {
        "kind": "posgen_training",
        "schema": SCHEMA_VERSION,
        "algorithm": ALGORITHM,
        "data": dataclasses.asdict(data),
        "model": dataclasses.asdict(config),
        "schedule": {name: getattr(request, name) for name in schedule},
        "table": table_digest(table.cos_sin(positions_T)),
        "seed": seed,
    }
    if config.dropout:  # its masks come from the device's own generator: other weights, not other rounding
        decides["dropout_on"] = device.partition(":")[0]
    digest = hashlib.sha256(canonical_json(decides).encode()).hexdigest()[:ID_DIGITS]
    return Training(id=digest, seed=seed, data=data)


def _cell(
    request: PosGenRequest,
    name: MethodName,
    regime: Regime,
    factor: float | None,
    training: Training,
    method: dict[str, Any],
    trained_with: MethodName,
) -> PosGenCell:
    """One seed's cell and its id."""
    data = training.data
    params = {
        "regime": regime,
        "seed": training.seed,
        "trained_with": trained_with.canonical,
        "training": training.id,
        "native_length": request.native_length,
        "method": method,
        "modulus": data.modulus,
        "j": data.j,
        "k": data.k,
        "train_length": data.length,
        "test_length": data.test_length,
        "num_train": data.num_train,
        "num_valid": data.num_valid,
        "num_test": data.num_test,
        "data_seed": data.seed,
    }
    model = ("layers", "d_model", "d_ff", "heads", "head_dim", "theta", "tied", "attention_scale", "init")
    schedule = ("epochs", "batch_size", "lr", "weight_decay", "warmup")
    for field in (*model, "start_token", "dropout", "frozen_mlp", *schedule):
        params[field] = getattr(request, field)
    fields: dict[str, Any] = {
        "model": request.model_name,
        "factor": factor,
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


def _add(stacks: list[Stack], new: Stack) -> None:
    """Puts an evaluation to the trainings that it shares, or at the end."""
    for index, stack in enumerate(stacks):
        if stack.trainings == new.trainings:
            names = dict.fromkeys((*stack.trained_with, *new.trained_with))
            stacks[index] = dataclasses.replace(
                stack, trained_with=tuple(names), evaluations=(*stack.evaluations, *new.evaluations)
            )
            return
    stacks.append(new)


def _notes(request: PosGenRequest, names: list[MethodName]) -> Iterator[str]:
    """What a user should know of the settings before anything starts."""
    stretched = [name.canonical for name in names if name.method.uses_factor]
    if stretched and request.scaling_factor == 1:
        yield f"{', '.join(stretched)}: s = 1, nothing is stretched (--factor or a longer --test-length would)"
