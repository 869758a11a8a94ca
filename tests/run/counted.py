"""Work that only counts, and a program that carries it out: `python counted.py FOLDER LOG CELL… [--option=value…]`.

Options: `--seconds` of a cell, `--hang=CELL` never ends, `--fresh`. Each line of LOG says that a process began or ended
a cell. At the end, records are printed as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import longeval.store.folder
from longeval.rope.build import parse_method_name
from longeval.run.cell import Cell
from longeval.run.engine import RunResult, run
from longeval.run.host import Silent
from longeval.run.study import Outcome, Plan
from longeval.store.folder import Store
from longeval.store.records import Record, provenance
from longeval.studies.ppl.request import PplRequest


def cell(name: str) -> Cell:
    fields = {"model": "m", "factor": None, "backend": "hf", "dtype": "float32", "metric": "accuracy"}
    return Cell(id=name, task=name, length=8, pe=parse_method_name("none"), params={"seed": 0}, **fields)


def record(one: Cell, **changes: Any) -> Record:
    fields = {"metric": "accuracy", "value": 0.5, "status": "ok", "provenance": provenance("")} | changes
    return Record(**one.fields(), **fields)


@dataclass(frozen=True)
class Counted:
    """Writes a line into a file as each cell begins and ends."""

    cells: tuple[Cell, ...]
    log: Path
    seconds: float = 0.0
    hang: str = ""

    def costs(self, host):
        return [1.0 for _ in self.cells]

    def run(self, host):
        for one in self.cells:
            self.say("began", one)
            time.sleep(600.0 if one.id == self.hang else self.seconds)
            self.say("ended", one)
            yield Outcome(records=(record(one),))

    def say(self, what, one):
        with open(self.log, "a") as file:
            file.write(f"{what} {one.id} {os.getpid()}\n")

    def without(self, ids):
        left = tuple(one for one in self.cells if one.id not in ids)
        return dataclasses.replace(self, cells=left) if left else None

    def smaller(self):
        return None

    def no_memory(self, reason):
        return reason

    def memory(self, host):
        return None


def plan_of(*work: Any, name: str = "m") -> Plan:
    request = PplRequest(model=(name,), pe=("none",), lengths=(8,))
    return Plan(request=request, cells=tuple(one for part in work for one in part.cells), work=work, notes=())


def carry_out(
    store: Store, log: Path, names: list[str], told: Any = None, fresh: bool = False, **options: Any
) -> RunResult:
    """Computes cells, each in a work of its own; the request is another one for each list of names."""
    work = [Counted((cell(name),), log, **options) for name in names]
    return run(plan_of(*work, name="".join(names)), store, told or Silent(), fresh=fresh)


def without_artefacts(record: Record) -> None:
    """Records of these cells are made from nothing."""


if __name__ == "__main__":
    longeval.store.folder.artefact_of = without_artefacts
    folder, log, *names = [word for word in sys.argv[1:] if not word.startswith("--")]
    given = dict(word[2:].partition("=")[::2] for word in sys.argv[1:] if word.startswith("--"))
    result = carry_out(
        Store(folder),
        Path(log),
        names,
        seconds=float(given.get("seconds", 0)),
        hang=given.get("hang", ""),
        fresh="fresh" in given,
    )
    told = {"computed": result.computed, "reused": result.reused, "cells": [r.cell for r in result.records]}
    sys.stdout.write(json.dumps(told))
