"""Made-up records of every study, with artefacts they could come from, and run folders and reports of them."""

import csv
import hashlib
import itertools
import random

import numpy as np

from longeval.cli.report import study_reports
from longeval.report import build, plots
from longeval.report.collect import collect
from longeval.request import requests_to_yaml
from longeval.stats.bootstrap import interval, resampling_units
from longeval.stats.scores import score
from longeval.store.curves import Curves
from longeval.store.folder import Store
from longeval.store.nll import TokenNll
from longeval.store.plan import PlannedCell, PlannedRequest
from longeval.store.records import Provenance, Record
from longeval.store.samples import Sample
from longeval.studies.posgen.report import REPORT as POSGEN_REPORT
from longeval.studies.posgen.report.tables import PosGenPlace, place_of
from longeval.studies.posgen.request import PosGenRequest

SPEC = "model: toy\npe: [none, yarn]\nlengths: [64, 128]\n"


def make_nll(windows, *, documents=None, contexts=None, starts=None, names=None, num_bytes=4):
    """TokenNll from one list of NLLs per window; `num_bytes` a token; by default each window is a document."""
    document_W = list(range(len(windows))) if documents is None else documents
    names = tuple(f"doc{d}" for d in range(max(document_W, default=0) + 1)) if names is None else names
    return TokenNll(
        nll_S=np.concatenate([np.asarray(w, dtype=np.float32) for w in windows])
        if windows
        else np.zeros(0, np.float32),
        tokens_W=np.array([len(w) for w in windows], dtype=np.int32),
        context_W=np.array(contexts or [1] * len(windows), dtype=np.int32),
        document_W=np.array(document_W, dtype=np.int32),
        start_W=np.array(starts or [1] * len(windows), dtype=np.int64),
        bytes_W=np.array([num_bytes * len(w) if num_bytes >= 0 else -1 for w in windows], dtype=np.int64),
        documents=names,
    )


def make_provenance(**changes):
    fields = {
        "versions": {"longeval": "0.1.0", "torch": "2.13.0"},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "command": "longeval ppl --model toy --pe none,yarn --lengths 64,128",
        "date": "2025-01-02T03:04:05+00:00",
        "device": "cpu (test, 2 threads)",
        "platform": "Linux x86_64",
    }
    return Provenance(**(fields | changes))


def make_records(pe="none", length=64, nll=None, *, protocol="prefix", status="ok", error=None, **changes):
    """The records that a run stores for one cell: perplexity and bits per byte, or one without a value."""
    given = dict(changes)
    provenance = make_provenance(**given.pop("provenance", {}))
    params = {
        "native_length": 64,
        "theta": 10000.0,
        "head_dim": 64,
        "method": {},
        "stride": None,
        "bos": False,
        "min_tokens": 64,
        "docs": None,
        "seed": 0,
        "data_digest": "d" * 64,
        "weights": "e" * 64,
        "attn": "sdpa",
    } | given.pop("params", {})
    fields = {
        "model": "toy",
        "pe": pe,
        "factor": 2.0 if "yarn" in pe else None,
        "length": length,
        "data": "texts",
        "task": None,
        "protocol": protocol,
        "backend": "hf",
        "dtype": "float32",
    } | given
    identity = repr((sorted(fields.items()), sorted(params.items(), key=lambda item: item[0])))
    fields = {"cell": hashlib.sha256(identity.encode()).hexdigest()} | fields
    if status != "ok":
        return [
            Record(
                **fields,
                params=params,
                metric="perplexity",
                value=None,
                status=status,
                error=error,
                provenance=provenance,
            )
        ]
    units = resampling_units(nll, protocol)
    found = interval(units, resamples=200)
    if found is not None:
        how = {"kind": found.kind, "units": found.units, "resamples": 200, "level": found.level, "seed": found.seed}
        params = params | {"ci": how}
    value = float(np.exp(nll.mean(protocol)))
    counts = {
        "n": len(nll.tokens_W),
        "tokens": len(nll.nll_S),
        "nll_sum": float(nll.nll_S.sum(dtype=np.float64)),
        "documents": len(set(nll.document_W.tolist())),
        "truncated": 1,
        "skipped": 3,
    }
    shared = fields | {"params": params, "status": "ok", "provenance": provenance} | counts
    ends = {} if found is None else {"ci_low": found.low, "ci_high": found.high}
    return [
        Record(**shared, metric="perplexity", value=value, **ends),
        Record(**shared, metric="bits_per_byte", value=nll.bits_per_byte()),
    ]


def planned(records, **changes):
    """The cells of a plan that these records fulfil."""
    names = ("cell", "model", "pe", "factor", "length", "data", "task", "protocol", "backend")
    found = {}
    for record in records:
        members = record.params.get("members")
        params = {} if members is None else {"members": members}
        found[record.cell] = PlannedCell(params=params, **{name: getattr(record, name) for name in names} | changes)
    return tuple(found.values())


def remember_plan(store, records, command="ppl", digest="0" * 16):
    """Stores a plan that these records fulfil."""
    store.remember_plan(PlannedRequest(command=command, digest=digest, cells=planned(records)))


def make_run(path, cells):
    """Writes a run folder: `cells` are (records, nll) pairs."""
    store = Store(str(path))
    store.write_text("spec.yaml", SPEC)
    remember_plan(store, [record for records, _ in cells for record in records])
    for records, nll in cells:
        store.save(records, nll)
    return str(path)


def write_report(runs, **options):
    """A report with what all studies say, as `longeval report` writes it."""
    return build.write_report(runs, studies=study_reports(), **options)


def without_figures(monkeypatch):
    """Leaves figures out of reports: to draw them takes longest."""
    monkeypatch.setattr(plots, "draw", lambda chart: plots.Picture(png=b"png", svg=b"svg", pdf=b"pdf"))


def table_under(text, heading):
    """Header and rows of the first table of a Markdown text under a heading."""
    rows = []
    for line in text.split(f"{heading}\n", 1)[1].splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif rows:
            break
    return rows[0], rows[2:]


def csv_rows(path):
    """The lines of a CSV file, by column."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Downstream tasks.

CHANCE = {"passkey": 0.0, "quality": 0.25, "topics": 0.0}


def make_sample(index, value, cluster=None, digest=None, **changes):
    fields = {
        "index": index,
        "prompt_digest": f"{index:016x}" if digest is None else digest,
        "tokens": 100,
        "truncated": False,
        "cut_tokens": 0,
        "target": "B",
        "output": "B",
        "scores": {"accuracy": float(value)},
        "cluster": cluster,
    }
    return Sample(**(fields | changes))


def make_samples(values, clusters=None, depths=None, **changes):
    names = [None] * len(values) if clusters is None else clusters
    places = [None] * len(values) if depths is None else depths
    return [
        make_sample(index, v, c, **({"depth": d} | changes))
        for index, (v, c, d) in enumerate(zip(values, names, places, strict=True))
    ]


def task_fields(pe, length, task, **changes):
    given = dict(changes)
    params = {
        "native_length": 64,
        "theta": 10000.0,
        "head_dim": 64,
        "method": {},
        "bos": False,
        "seed": 0,
        "attn": "sdpa",
        "weights": "e" * 64,
        "tokenizer": "f" * 64,
        "chat_template": True,
        "overlong": "middle",
        "limit": 20,
        "same_samples": False,
        "num_fewshot": 0,
        "max_new_tokens": 16,
        "decoding": "greedy",
        "haystack": "noise" if task == "passkey" else None,
        "prompts": hashlib.sha256(f"{task} {length}".encode()).hexdigest(),
        "task_version": "1",
        "task_digest": "a" * 16,
        "own_prompts": True,
        "source": "longeval",
        "chance": CHANCE.get(task),
    } | given.pop("params", {})
    fields = {
        "model": "toy",
        "pe": pe,
        "factor": 2.0 if "yarn" in pe else None,
        "length": length,
        "data": None,
        "task": task,
        "protocol": None,
        "backend": "hf",
        "dtype": "float32",
        "provenance": make_provenance(command="longeval tasks --model toy --tasks passkey"),
    } | given
    identity = repr((sorted((k, v) for k, v in fields.items() if k != "provenance"), sorted(params.items(), key=str)))
    return {"cell": hashlib.sha256(identity.encode()).hexdigest()} | fields | {"params": params}


def make_task_records(pe, length, task, samples, *, skipped=0, metrics=None, **changes):
    """Records of a cell, made from its samples as a run does; the first metric is the main one."""
    fields = task_fields(pe, length, task, **changes)
    clusters = {sample.cluster for sample in samples}
    counts = {
        "documents": None if None in clusters else len(clusters),
        "truncated": sum(sample.truncated for sample in samples),
        "skipped": skipped,
        "status": "ok",
    }
    records = []
    for metric in metrics or list(samples[0].scores):
        got = score(samples, metric, seed=fields["params"]["seed"])
        extra = {"primary": not records, "higher_is_better": True, "filter": None, "stderr": got.stderr, "ci": got.how}
        found = {"value": got.value, "ci_low": got.ci_low, "ci_high": got.ci_high, "n": got.n, "metric": metric}
        records.append(Record(**fields | counts | found | {"params": fields["params"] | extra}))
    return records


def make_failed_task(pe, length, task, *, status="failed", error="out of memory", **changes):
    return [
        Record(**task_fields(pe, length, task, **changes), metric="accuracy", value=None, status=status, error=error)
    ]


def make_group(pe, length, group, members, value, *, error=None, **changes):
    """The record of an average; its params are those of the model and method, and the members."""
    fields = task_fields(pe, length, group, **changes)
    keep = ("native_length", "theta", "head_dim", "method", "bos", "seed", "attn", "weights", "tokenizer")
    params = {key: fields["params"][key] for key in keep} | {"members": list(members), "by_size": False}
    status = "ok" if value is not None else "skipped"
    return [
        Record(**fields | {"params": params, "metric": "accuracy", "value": value, "status": status, "error": error})
    ]


def make_task_run(path, cells):
    """Writes a run folder: `cells` are (records, samples) of tasks, or (records, nll, None) of perplexity."""
    store = Store(str(path))
    store.write_text("spec.yaml", SPEC)
    remember_plan(store, [record for cell in cells for record in cell[0]])
    for cell in cells:
        store.save(cell[0], cell[1])
    return str(path)


SKILL = {"none": 0.9, "resonance": 0.85, "yarn": 0.75, "resonance_yarn": 0.8}


def demo_task_cells(num_samples=20, lengths=(32, 64, 128)):
    """A made-up study: passkey by depth, quality with cut documents, topics graded, an average without a member."""
    cells = []
    for pe in SKILL:
        for length in lengths:
            cells.append(_passkey(pe, length, num_samples))
            quality = _quality(pe, length, num_samples)
            cells.append(quality)
            topics = _topics(pe, length)
            cells.append(topics)
            missing = "no average: books is missing (no data)"
            cells.append((make_group(pe, length, "suite", ["quality", "books"], None, error=missing), None))
            mean = (quality[0][0].value + topics[0][0].value) / 2
            cells.append((make_group(pe, length, "pair", ["quality", "topics"], mean), None))
            nll = make_nll([[2.0 + (length > 64) * (pe == "none")] * (length - 1)] * 12)
            if length < 128:
                cells.append((make_records(pe, length, nll, params={"tokenizer": "f" * 64}), nll, None))
    cells.append((make_failed_task("pi", 64, "passkey", error="out of memory | try\nless", factor=2.0), None))
    skipped = "all 20 samples are longer than the window and were left out"
    cells.append((make_failed_task("pi", 32, "quality", status="skipped", error=skipped, factor=2.0), None))
    return cells


def _passkey(pe, length, num_samples):
    order = (0, 9, 4, 7, 2, 5, 8, 1, 6, 3)
    depths = [order[index % 10] / 9 for index in range(num_samples)]
    dice = random.Random(f"{pe}{length}")
    lost = pe in ("none", "resonance") and length > 64
    values = [0.0 if lost else float(dice.random() < SKILL[pe]) for _ in depths]
    samples = make_samples(values, depths=depths, finish="eos", tokens=length - 20)
    return make_task_records(pe, length, "passkey", samples), samples


def _quality(pe, length, num_samples):
    dice = random.Random(f"quality{pe}{length}")
    cut = length < 128
    left_out = 2 if length == 32 else 0
    samples = [
        make_sample(
            index,
            dice.random() < 0.3 + 0.1 * (length == 128),
            cluster=f"document {index // 2}",
            digest=f"{length}-{index}",
            truncated=cut,
            cut_tokens=100 * cut,
            tokens=length,
        )
        for index in range(num_samples - left_out)
    ]
    return make_task_records(pe, length, "quality", samples, skipped=left_out), samples


def _topics(pe, length):
    dice = random.Random(f"topics{pe}{length}")
    samples = []
    for index in range(40):
        first = float(dice.random() < SKILL[pe])
        second = float(dice.random() < 0.4)
        scores = {"accuracy": (first + second) / 2, "accuracy_first": first, "accuracy_second": second}
        samples.append(make_sample(index, 0, digest=f"{length}-{index}", scores=scores))
    return make_task_records(pe, length, "topics", samples), samples


# PosGen.

POSGEN_SETTINGS = (
    *("modulus", "j", "k", "test_length", "num_train", "num_valid", "num_test", "layers", "d_model", "d_ff", "heads"),
    *("head_dim", "theta", "tied", "attention_scale", "init", "start_token", "dropout", "frozen_mlp", "epochs"),
    *("batch_size", "lr", "weight_decay", "warmup"),
)
POSGEN_METRICS = ("accuracy_in_distribution", "accuracy_ood", "accuracy_generated")


def make_cell(spec, pe, seed, values=None, *, task="cot", regime="trained", error=None, method=None, **changes):
    """Records of one cell: `values` are shares in the order of POSGEN_METRICS; without them it failed with `error`."""
    given = dict(changes)
    provenance = make_provenance(**{"command": "longeval posgen train"} | given.pop("provenance", {}))
    settings = {name: getattr(spec, name) for name in POSGEN_SETTINGS}
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
        for metric, value in zip(POSGEN_METRICS, values, strict=True)
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
        store.remember_plan(planned_posgen(spec, [records[0] for records, _ in cells]))
    for records, curves in cells:
        store.save(records, curves)
    return str(path)


def planned_posgen(spec, records):
    """The plan of a request; cells that have a record with its settings have that record's id."""
    ids = {place_of(record): record.cell for record in records if _meets(record, spec)}
    cells = []
    for task, regime, pe, seed in itertools.product(spec.tasks, spec.regimes, spec.pe, spec.seed_values()):
        (record,) = make_cell(spec, pe, seed, task=task, regime=regime)
        known = {name: getattr(record, name) for name in ("model", "pe", "factor", "length", "data", "task", "backend")}
        cell = ids.get(PosGenPlace(task, regime, pe, seed), record.cell)
        cells.append(PlannedCell(cell=cell, protocol=None, params={"regime": regime, "seed": seed}, **known))
    return PlannedRequest(command="posgen", digest=spec.digest(), cells=tuple(cells))


def _meets(record, spec):
    return record.dtype == spec.dtype and all(record.params[name] == getattr(spec, name) for name in POSGEN_SETTINGS)


def collect_posgen(paths):
    """The cells of run folders that PosGen's report shows."""
    return collect(paths, POSGEN_REPORT.command)


def write_posgen_table(runs, *, out=None, json_path=None, command="longeval posgen table"):
    """The report of PosGen, as `longeval posgen table` writes it."""
    return build.write_report(
        runs,
        studies=(POSGEN_REPORT,),
        out=out,
        json_path=json_path,
        command=command,
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
