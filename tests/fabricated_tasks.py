"""Task cells with made-up samples, as a run stores them."""

import hashlib
import random

from fabricated_runs import SPEC, make_nll, make_provenance, make_records, remember_plan

from longeval.stats.scores import score
from longeval.store.folder import Store
from longeval.store.records import Record
from longeval.store.samples import Sample

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
