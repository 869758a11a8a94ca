"""Run folders of PosGen with made-up accuracies, as `longeval posgen train` writes them."""

import hashlib
import itertools

from fabricated_runs import make_provenance

from longeval.report.write import write_report
from longeval.request import PosGenRequest, requests_to_yaml
from longeval.store.curves import Curves
from longeval.store.folder import Store
from longeval.store.plan import PlannedCell, PlannedRequest
from longeval.store.records import Record
from longeval.studies.posgen.report.cells import Place, collect_posgen, place_of
from longeval.studies.posgen.report.sections import REPORT, introduced

OF_SPEC = (
    *("modulus", "j", "k", "test_length", "num_train", "num_valid", "num_test", "layers", "d_model", "d_ff", "heads"),
    *("head_dim", "theta", "tied", "attention_scale", "init", "start_token", "dropout", "frozen_mlp", "epochs"),
    *("batch_size", "lr", "weight_decay", "warmup"),
)
METRICS = ("accuracy_in_distribution", "accuracy_ood", "accuracy_generated")


def make_cell(spec, pe, seed, values=None, *, task="cot", regime="trained", error=None, method=None, **changes):
    """Records of one cell: `values` are shares in the order of METRICS; without them it failed with `error`."""
    given = dict(changes)
    provenance = make_provenance(**{"command": "longeval posgen train"} | given.pop("provenance", {}))
    settings = {name: getattr(spec, name) for name in OF_SPEC}
    params = settings | {
        "regime": regime,
        "seed": seed,
        "trained_with": pe if regime == "trained" else pe.replace("_yarn", "").replace("yarn", "none"),
        "training": hashlib.sha256(f"{settings} {pe} {seed} {task}".encode()).hexdigest()[:16],
        "native_length": spec.native_length,
        "method": method if method is not None else {"beta_fast": 32.0, "beta_slow": 1.0} if "yarn" in pe else {},
        "train_length": spec.length,
        "data_seed": seed if spec.data_seed is None else spec.data_seed,
    }
    fields = {
        "model": spec.model_name,
        "pe": pe,
        "factor": spec.scaling_factor if "yarn" in pe else None,
        "length": spec.test_length,
        "data": f"posgen_{task}",
        "task": None,
        "params": params | given.pop("params", {}),
        "backend": "posgen",
        "dtype": spec.dtype,
    } | given
    shared = {"cell": hashlib.sha256(repr(sorted(fields.items())).encode()).hexdigest()[:32]} | fields
    shared |= {"provenance": provenance}
    if values is None:
        return [
            Record(**shared, protocol="teacher_forced", metric="accuracy_ood", value=None, status="failed", error=error)
        ]
    seen, unseen = spec.length - spec.j - spec.k, spec.test_length - spec.length
    return [
        Record(
            **shared,
            protocol="free_running" if metric == "accuracy_generated" else "teacher_forced",
            metric=metric,
            value=value,
            n=spec.num_test,
            tokens=spec.num_test * (seen if metric == "accuracy_in_distribution" else unseen),
            status="ok",
        )
        for metric, value in zip(METRICS, values, strict=True)
    ]


def make_curves(spec, values, epochs=(1, 2, 3), losses=((2.0, 2.5), (1.0, 2.0), (0.5, 1.5))):
    """Flat curves: each accuracy is the same at all of its positions."""
    first, length, end = spec.j + spec.k, spec.length, spec.test_length
    seen, unseen = length - first, end - length
    return Curves(
        positions=tuple(range(first, end)),
        accuracy=(values[0],) * seen + (values[1],) * unseen,
        loss=(0.1,) * seen + (1.0,) * unseen,
        generated=(values[0],) * seen + (values[2],) * unseen,
        epochs=tuple(epochs),
        valid_loss_in_distribution=tuple(pair[0] for pair in losses),
        valid_loss_ood=tuple(pair[1] for pair in losses),
    )


def make_posgen_run(path, spec, cells):
    """Writes a run folder: `cells` are (records, curves or None) pairs."""
    store = Store(str(path))
    store.write_text("spec.yaml", requests_to_yaml([spec.to_mapping()]) if spec else "")
    if spec:
        store.remember_plan(planned(spec, [records[0] for records, _ in cells]))
    for records, curves in cells:
        store.save(records, curves)
    return str(path)


def planned(spec, records):
    """The plan of a request; cells that have a record with its settings have that record's id."""
    ids = {place_of(record): record.cell for record in records if _meets(record, spec)}
    cells = []
    for task, regime, pe, seed in itertools.product(spec.tasks, spec.regimes, spec.pe, spec.seed_values()):
        (record,) = make_cell(spec, pe, seed, task=task, regime=regime)
        known = {name: getattr(record, name) for name in ("model", "pe", "factor", "length", "data", "task", "backend")}
        cell = ids.get(Place(task, regime, pe, seed), record.cell)
        cells.append(PlannedCell(cell=cell, protocol=None, params={"regime": regime, "seed": seed}, **known))
    return PlannedRequest(command="posgen", digest=spec.digest(), cells=tuple(cells))


def _meets(record, spec):
    return record.dtype == spec.dtype and all(record.params[name] == getattr(spec, name) for name in OF_SPEC)


def write_posgen_table(runs, *, out=None, json_path=None, command="longeval posgen table"):
    """The report of PosGen, as `longeval posgen table` writes it."""
    return write_report(
        runs,
        studies=(REPORT,),
        read=collect_posgen,
        name="posgen",
        out=out,
        json_path=json_path,
        command=command,
        preface=introduced("", ""),
    )


def full_run(path, spec=None, ood=None, **kwargs):
    """A run folder with all cells of a request: `ood[task, pe]` are OOD accuracies by seed."""
    spec = spec or PosGenRequest(**kwargs)
    cells = []
    for (task, pe), by_seed in ood.items():
        for seed, value in enumerate(by_seed):
            values = (min(1.0, value + 0.01), value, value / 2)
            cells.append((make_cell(spec, pe, seed, values, task=task), make_curves(spec, values)))
    return make_posgen_run(path, spec, cells)
