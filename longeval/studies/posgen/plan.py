"""A request of `posgen train` becomes cells with stable ids, and cells become stacks whose seeds train together.

Everything a request can have wrong is found here, before the first step: rules and methods are looked up, sizes are
checked, tables are built. Nothing is generated or trained.

What decides a training's weights decides its id: methods whose table is the same while training (in the regime
`swapped`, a method and its base) share it, and so do regimes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from longeval.errors import LongEvalError
from longeval.models.device import resolve_device
from longeval.plain import canonical_json
from longeval.request import PosGenRequest, Regime
from longeval.rope.base import Geometry, RopeTable, table_digest
from longeval.rope.build import MethodName, build_table, make_parameters
from longeval.run.cell import ID_DIGITS, cell_id
from longeval.run.setups import method_names
from longeval.store.plan import PlannedCell, PlannedRequest
from longeval.store.records import SCHEMA_VERSION
from longeval.studies.posgen.cells import PREFIX, Evaluation, PosGenCell, Stack, Training
from longeval.studies.posgen.data import DataSetting
from longeval.studies.posgen.model import ModelConfig
from longeval.studies.posgen.train import ALGORITHM, TrainSetting


@dataclass(frozen=True, kw_only=True, slots=True)
class PosGenPlan:
    """A checked request: what will be computed, in this order."""

    spec: PosGenRequest
    config: ModelConfig
    setting: TrainSetting
    device: str
    stacked: bool
    """Whether seeds train together."""
    stacks: tuple[Stack, ...]
    """Of one seed each if not."""
    notes: tuple[str, ...]
    """What a user should know before it starts."""

    @property
    def trainings(self) -> list[Training]:
        """All trainings, stack by stack."""
        return [training for stack in self.stacks for training in stack.trainings]

    @property
    def cells(self) -> list[PosGenCell]:
        """All cells in the order in which they were asked for: task, regime, method, seed."""
        spec = self.spec
        order = [(task, regime, pe) for task in spec.tasks for regime in spec.regimes for pe in spec.pe]
        place = {key: index for index, key in enumerate(order)}
        cells = [cell for stack in self.stacks for cell in stack.cells]
        return sorted(
            cells,
            key=lambda cell: (place[cell.training.data.task, cell.regime, cell.pe.canonical], cell.training.seed),
        )

    def planned(self) -> PlannedRequest:
        """Its cells as the run folder keeps them."""
        cells = tuple(_planned(self.spec, cell) for cell in self.cells)
        return PlannedRequest(command=self.spec.command, digest=self.spec.digest(), cells=cells)


def _planned(spec: PosGenRequest, cell: PosGenCell) -> PlannedCell:
    """A cell as the run folder's plan keeps it."""
    return PlannedCell(
        cell=cell.id,
        model=spec.model_name,
        pe=cell.pe.canonical,
        factor=cell.factor,
        length=spec.test_length,
        data=cell.data,
        task=None,
        protocol=None,
        backend="posgen",
        params={"regime": cell.regime, "seed": cell.training.seed},
    )


def plan_posgen(spec: PosGenRequest) -> PosGenPlan:
    """Checks a request and lays out its cells; raises LongEvalError for anything that is wrong with it."""
    names = method_names(spec)
    _check_native(spec, names)
    device = resolve_device(spec.device)
    _check_precision(spec, device)
    config = model_config(spec)
    stacks: list[Stack] = []
    for task in spec.tasks:
        data = [data_setting(spec, task, seed) for seed in spec.seed_values()]
        for regime in spec.regimes:
            for name in names:
                _add(stacks, _stack(spec, config, name, regime, data, device))
    # On two CPU cores a small stack took longer than its seeds one after another. On a GPU neither was measured: there
    # one small model alone is not expected to fill the device.
    stacked = device != "cpu" if spec.stack is None else spec.stack
    if not stacked:
        stacks = [alone for stack in stacks for alone in stack.by_seed()]
    return PosGenPlan(
        spec=spec,
        config=config,
        setting=train_setting(spec),
        device=device,
        stacked=stacked,
        stacks=tuple(stacks),
        notes=tuple(_notes(spec, names)),
    )


def data_setting(spec: PosGenRequest, task: str, seed: int) -> DataSetting:
    """The data of one seed."""
    named = _named(spec, DataSetting) | {"task": task, "seed": seed if spec.data_seed is None else spec.data_seed}
    return DataSetting(**named)


def model_config(spec: PosGenRequest) -> ModelConfig:
    """The model of a request."""
    return ModelConfig(**_named(spec, ModelConfig))


def train_setting(spec: PosGenRequest) -> TrainSetting:
    """The schedule of a request."""
    # The run chooses among checkpoints by the clock.
    return TrainSetting(**(_named(spec, TrainSetting) | {"checkpoint_every": 1}))


def _named(spec: PosGenRequest, kind: type[DataSetting | ModelConfig | TrainSetting]) -> dict[str, Any]:
    """The fields that a request and `kind` have in common."""
    known = [item.name for item in dataclasses.fields(kind) if item.name in PosGenRequest.model_fields]
    return {name: getattr(spec, name) for name in known}


def _check_native(spec: PosGenRequest, names: list[MethodName]) -> None:
    """Raises LongEvalError for a native length that no method reads, whatever it is."""
    if spec.native is not None and not any(_reads_native(spec, name) for name in names):
        raise LongEvalError(
            f"--native {spec.native}: would be ignored, it changes nothing under --pe {', '.join(spec.pe)}"
            f"{'' if spec.factor is None else f' with --factor {spec.factor:g}'}",
            "Leave it out.",
        )


def _reads_native(spec: PosGenRequest, name: MethodName) -> bool:
    """Whether a method's table depends on L, itself or through the factor that follows from it."""
    assert spec.native is not None
    own = _widest_table(spec, name)
    for native in (2 * spec.native, 8 * spec.native, max(2, spec.native // 2), 2):
        try:
            other = _widest_table(spec.replaced(native=native), name)
        except LongEvalError:  # a length that a method refuses is one that it reads
            return True
        if not own.same_as(other):
            return True
    return False


def _widest_table(spec: PosGenRequest, name: MethodName) -> RopeTable:
    """A method's table for the window of evaluation."""
    parameters = make_parameters(name.base, spec.pe_args.get(name.base, {}))
    return build_table(name.canonical, _geometry(spec), parameters, spec.test_window)


def _geometry(spec: PosGenRequest) -> Geometry:
    """What methods compute their tables from."""
    return Geometry(
        head_dim=spec.head_dim, theta=spec.theta, native_length=spec.native_length, factor=spec.scaling_factor
    )


def _check_precision(spec: PosGenRequest, device: str) -> None:
    """Raises LongEvalError for a precision that the device would ignore or can't compute with."""
    if spec.precision == "tf32" and not _has_tf32(device):
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
    spec: PosGenRequest, config: ModelConfig, name: MethodName, regime: Regime, data: list[DataSetting], device: str
) -> Stack:
    """One method and regime on one task, all seeds."""
    parameters = make_parameters(name.base, spec.pe_args.get(name.base, {}))
    geometry = _geometry(spec)
    trained_with = _trained_as(name, regime)
    own = parameters if trained_with.base == name.base else None
    train_table = build_table(trained_with.canonical, geometry, own, spec.train_window)
    factor = geometry.factor if name.method.uses_factor else None
    trainings = tuple(
        _training(spec, config, train_table, one, seed, device)
        for one, seed in zip(data, spec.seed_values(), strict=True)
    )
    cells = tuple(
        _cell(spec, name, regime, factor, training, dataclasses.asdict(parameters), trained_with)
        for training in trainings
    )
    table = _widest_table(spec, name)
    digest = table_digest(table.cos_sin(np.arange(spec.test_window, dtype=np.int64)))
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
    spec: PosGenRequest, config: ModelConfig, table: RopeTable, data: DataSetting, seed: int, device: str
) -> Training:
    """One seed's training and its id."""
    positions_T = np.arange(spec.train_window, dtype=np.int64)
    schedule = ("epochs", "batch_size", "lr", "weight_decay", "warmup", "precision")
    decides = {
        "kind": "posgen_training",
        "schema": SCHEMA_VERSION,
        "algorithm": ALGORITHM,
        "data": dataclasses.asdict(data),
        "model": dataclasses.asdict(config),
        "schedule": {name: getattr(spec, name) for name in schedule},
        "table": table_digest(table.cos_sin(positions_T)),
        "seed": seed,
    }
    if config.dropout:  # its masks come from the device's own generator: other weights, not other rounding
        decides["dropout_on"] = device.partition(":")[0]
    digest = hashlib.sha256(canonical_json(decides).encode()).hexdigest()[:ID_DIGITS]
    return Training(id=digest, seed=seed, data=data)


def _cell(
    spec: PosGenRequest,
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
        "native_length": spec.native_length,
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
        params[field] = getattr(spec, field)
    decides = {
        "model": spec.model_name,
        "pe": name.canonical,
        "factor": factor,
        "length": spec.test_length,
        "data": PREFIX + data.task,
        "backend": "posgen",
        "dtype": spec.dtype,
    }
    return PosGenCell(
        id=cell_id("posgen", decides, params), training=training, pe=name, regime=regime, factor=factor, params=params
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


def _notes(spec: PosGenRequest, names: list[MethodName]) -> Iterator[str]:
    """What a user should know of the settings before anything starts."""
    stretched = [name.canonical for name in names if name.method.uses_factor]
    if stretched and spec.scaling_factor == 1:
        yield f"{', '.join(stretched)}: s = 1, nothing is stretched (--factor or a longer --test-length would)"
