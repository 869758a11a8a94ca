"""Runs with a backend whose answers are known."""

from __future__ import annotations

import numpy as np

from longeval.backends.hf.backend import load_backend
from longeval.cli.progress import RunProgress
from longeval.run.engine import run
from longeval.studies.ppl.plan import plan_ppl


def log_position(tokens_S, positions_S, table):
    """A token at position p costs log(p + 1) nats."""
    return np.log(positions_S + 1.0)


def carry_out(spec, store, backend=None, **options):
    plan = plan_ppl(spec)
    load = load_backend if backend is None else lambda model: backend
    return run(plan, store, RunProgress(quiet=True), load=load, **options)


def values(result, metric="perplexity"):
    return {(r.pe, r.length): r.value for r in result.records if r.metric == metric}
