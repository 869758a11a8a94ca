"""Runs the checks of `bench.gpu` in order of value, each in a process of its own with a time limit.

    python -m bench.gpu --budget 600 --out DIR    # on a GPU: about five minutes, then PosGen's table in what is left
    python -m bench.gpu --device cpu --out DIR    # the same checks at sizes that take a CPU a minute

Needs longeval's light dependencies, PyTorch and transformers; no network, datasets, lm-eval or vLLM. Rows are written
to DIR/CHECK.jsonl as they come, and the whole as DIR/report.md, whatever was cut off. Exit status 1 says that a bound
was missed or a check broke.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench.gpu.rows import Row, Scale, as_table, read_rows, write_row

ROOT = Path(__file__).resolve().parents[2]


class Check(NamedTuple):
    """One of the checks."""

    name: str
    title: str
    limit_s: float
    """Its own time limit."""


CHECKS = (
    Check("equality", "The same numbers as on a CPU", 120),
    Check("tests", "Tests that need a GPU", 150),
    Check("posgen", "PosGen: optimiser steps per second", 90),
    Check("prefill", "Prefill of random Llamas", 150),
    Check("shared", "Shared passes", 60),
    Check("batches", "Short windows in batches", 90),
    Check("finetune", "Training steps of random Llamas", 90),
    Check("table", "PosGen's table in full size", 3600),
)
TABLE_PIECES = (("cot", 2), ("cot", 3), ("cot", 5), ("semi_recursive", 3), ("recursive", 3))
"""Pieces of the full table, (task, seeds), in order of value; each goes on from what the one before has stored."""


def main() -> None:
    """Parses the command line, and runs all checks, or the one that a child process was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__, formatter_class=_Plain)
    parser.add_argument("--budget", type=float, default=600, help="seconds for everything (600)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:N")
    parser.add_argument("--only", default=",".join(check.name for check in CHECKS), help="checks, comma list")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    from longeval.models.device import resolve_device

    device = resolve_device(arguments.device)
    scale = Scale(device=device, full=device.startswith("cuda"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.child:
        sys.exit(run_child(arguments.child, scale, arguments.out))
    wanted = arguments.only.split(",")
    unknown = set(wanted) - {check.name for check in CHECKS}
    if unknown:
        parser.error(f"--only {','.join(sorted(unknown))}: checks are {', '.join(check.name for check in CHECKS)}")
    sys.exit(run_all([check for check in CHECKS if check.name in wanted], scale, arguments.budget, arguments.out))


def run_all(checks: list[Check], scale: Scale, budget_s: float, out: Path) -> int:
    """Runs checks one after another within the budget; returns the exit status."""
    deadline = time.monotonic() + budget_s
    ends: dict[str, str] = {}
    for check in checks:
        left = deadline - time.monotonic()
        if left < 5:
            ends[check.name] = "not begun: no time left"
        else:
            (out / f"{check.name}.jsonl").unlink(missing_ok=True)
            ends[check.name] = _in_a_process(check, scale, min(check.limit_s, left), out)
        print(f"bench.gpu: {check.name}: {ends[check.name]}", file=sys.stderr, flush=True)
        (out / "report.md").write_text(report(checks, ends, scale, out))
    rows = [row for check in checks for row in read_rows(out / f"{check.name}.jsonl")]
    missed = [row["name"] for row in rows if row.get("passed") is False]
    broken = [name for name, end in ends.items() if end.startswith("broke")]
    print(f"bench.gpu: {len(rows)} results, {len(missed)} bounds missed; {out / 'report.md'}", file=sys.stderr)
    return 1 if missed or broken else 0


def _in_a_process(check: Check, scale: Scale, limit_s: float, out: Path) -> str:
    """Runs one check; returns how it ended, in words."""
    command = [sys.executable, "-m", "bench.gpu", "--child", check.name, "--device", scale.device, "--out", str(out)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"BENCH_GPU_LIMIT_S": str(limit_s), "PYTHONPATH": path}
    started = time.monotonic()
    with (out / f"{check.name}.log").open("w") as log:
        child = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            status = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return f"cut off after {limit_s:.0f} s"
    took = time.monotonic() - started
    return (
        f"done in {took:.0f} s" if status == 0 else f"broke after {took:.0f} s with status {status}: {check.name}.log"
    )


def run_child(name: str, scale: Scale, out: Path) -> int:
    """Runs one check in this process, and writes its rows as they come; returns the exit status."""
    from bench.gpu import equality, finetune, posgen, prefill

    runs: dict[str, Callable[[Scale], Iterator[Row]]] = {
        "equality": equality.run,
        "tests": run_tests,
        "posgen": posgen.run,
        "prefill": prefill.run_prefill,
        "shared": prefill.run_shared,
        "batches": prefill.run_batches,
        "finetune": finetune.run,
        "table": lambda scale: run_table(scale, out / "posgen"),
    }
    try:
        for row in runs[name](scale):
            write_row(out / f"{name}.jsonl", row)
            print(json.dumps(row), flush=True)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def run_tests(scale: Scale) -> Iterator[Row]:
    """The tests marked `gpu`, where there is a GPU."""
    if not scale.full:
        yield {"name": "pytest -m gpu", "outcome": "needs a GPU"}
        return
    # Other files may import what is not installed here.
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short", *files]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(answer.stdout, answer.stderr, flush=True)
    last = answer.stdout.strip().splitlines()[-1] if answer.stdout.strip() else ""
    yield {"name": "pytest -m gpu", "outcome": last, "passed": answer.returncode == 0}


def run_table(scale: Scale, folder: Path) -> Iterator[Row]:
    """Trains pieces of PosGen's table until the time is up; the folder can be resumed and reported."""
    if not scale.full:
        yield {"name": "PosGen's table", "outcome": "needs a GPU"}
        return
    deadline = time.monotonic() + float(os.environ.get("BENCH_GPU_LIMIT_S", "3600")) - 15
    for task, seeds in TABLE_PIECES:
        left = deadline - time.monotonic()
        if left < 20:
            return
        asked = ["--task", task, "--regime", "trained,swapped", "--seeds", str(seeds), "--tf32", "--out", str(folder)]
        command = [sys.executable, "-m", "longeval", "posgen", "train", *asked, "--quiet"]
        started = time.monotonic()
        child = subprocess.Popen(command, cwd=ROOT)
        try:
            status = child.wait(left)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
            status = child.wait()
        yield {"name": f"{task}, {seeds} seeds", "seconds": time.monotonic() - started, "exit status": status}
        table = [sys.executable, "-m", "longeval", "posgen", "table", str(folder), "--out", str(folder / "table.md")]
        subprocess.run([*table, "--quiet"], cwd=ROOT, check=False)


def report(checks: list[Check], ends: dict[str, str], scale: Scale, out: Path) -> str:
    """All that is known so far, as Markdown."""
    import torch
    import transformers

    from longeval.models.device import device_name

    parts = [
        "# longeval on a GPU" if scale.full else "# The GPU checks in their small form, on a CPU",
        f"Device: {device_name(scale.device)}; torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}.",
    ]
    for check in checks:
        rows = list(read_rows(out / f"{check.name}.jsonl"))
        parts += [f"## {check.title}", f"`{check.name}`: {ends.get(check.name, 'not begun')}."]
        parts += [as_table(rows)] if rows else []
    return "\n\n".join(parts) + "\n"


class _Plain(argparse.RawDescriptionHelpFormatter):
    """Shows the module's docstring as it is written."""


if __name__ == "__main__":
    main()
