"""Run folders with made-up token NLLs whose perplexities are known in closed form."""

import hashlib

import numpy as np

from longeval.cli.report import study_reports
from longeval.report import write
from longeval.stats.bootstrap import interval
from longeval.stats.units import resampling_units
from longeval.store.folder import Store
from longeval.store.nll import TokenNll
from longeval.store.plan import PlannedCell, PlannedRequest
from longeval.store.records import Provenance, Record

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
    return write.write_report(runs, studies=study_reports(), **options)
