"""How long it takes to resume and to report a run folder of many cells, measured on made-up values.

    python -m bench.store                       # 10,000 cells of perplexity in a new folder; minutes to write them
    python -m bench.store --folder many         # the folder is kept, and used again the next time

The cells are those of a real request for small random models. Only the values of tokens are drawn at random, so that
no model runs; everything else is planned, computed and stored as in any run. Commands are then measured as a user runs
them, each in a process of its own. The table goes to stdout.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

if TYPE_CHECKING:
    from longeval.studies.ppl.request import PplRequest

METHODS = "none,pi,ntk,ntk_by_parts,yarn,resonance,resonance_pi,resonance_ntk,resonance_ntk_by_parts,resonance_yarn"
NUM_DATA, NUM_LENGTHS = 5, 10
PER_MODEL = 10 * NUM_DATA * NUM_LENGTHS
DOCUMENTS, WORDS = 3, 800
"""Documents of a data set, and words of each: some 1,000 tokens."""


def main(
    cells: Annotated[int, typer.Option(help=f"Number of cells, in steps of {PER_MODEL}.")] = 10_000,
    folder: Annotated[Path | None, typer.Option(help="Where models, data and the run folder lie.")] = None,
    report: Annotated[bool, typer.Option(help="Whether to measure reports too.")] = True,
) -> None:
    """Measures resuming and reporting a run folder of many cells."""
    with tempfile.TemporaryDirectory() as temporary:
        place = (folder or Path(temporary)).absolute()
        request = make_request(place, max(1, cells // PER_MODEL))
        num_cells = write_run(request, place / "run")
        rows = [
            (f"Store.finished_among, {num_cells:,} cells", _seconds(lambda: _read_named(place / "run"))),
            ("Store.cells()", _seconds(lambda: _read_all(place / "run"))),
        ]
        rows.append((f"find_reusable for {num_cells:,} cells", _find_reusable(request, place / "run")))
        rows.append(("longeval run, nothing to do", _seconds(lambda: _longeval("run", str(place / "run"), "--quiet"))))
        if report:
            out = str(place / "report.md")
            rows.append(("longeval report", _seconds(lambda: _longeval("report", str(place / "run"), "--out", out))))
            page = str(place / "report.html")
            rows.append(
                ("longeval report, as a page", _seconds(lambda: _longeval("report", str(place / "run"), "--out", page)))
            )
            rows.append(("its first chart in Chromium, from opening", min(_opened(page) for _ in range(3))))
    for what, seconds in rows:
        print(f"{what:40} {seconds:8.1f} s")


def make_request(place: Path, num_models: int) -> PplRequest:
    """The request for `num_models` × `PER_MODEL` cells; its models and data are written where they are missing."""
    from longeval.studies.ppl.request import PplRequest
    from tests.tiny import make_text, save_tiny_llama

    place.mkdir(parents=True, exist_ok=True)
    models = [place / f"model-{number:02}" for number in range(num_models)]
    for number, model in enumerate(models):
        if not model.exists():
            save_tiny_llama(model, max_position_embeddings=128, rope_parameters=_rope(10000.0 + number))
    data = [place / f"data-{number}" for number in range(NUM_DATA)]
    for number, source in enumerate(data):
        source.mkdir(exist_ok=True)
        for document in range(DOCUMENTS):
            text = make_text(WORDS, DOCUMENTS * number + document)
            (source / f"{document}.txt").write_text(text)
    return PplRequest(
        model=tuple(map(str, models)),
        pe=tuple(METHODS.split(",")),
        lengths=tuple(100 * (number + 1) for number in range(NUM_LENGTHS)),
        data=tuple(map(str, data)),
        dtype="float32",
    )


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def write_run(request: PplRequest, folder: Path) -> int:
    """Writes the run folder of a request with random token values, unless it is there; returns the number of cells."""
    from longeval.run.engine import run
    from longeval.run.host import Silent
    from longeval.store.folder import Store
    from longeval.studies.ppl.plan import plan_ppl
    from tests.fake import FakeBackend

    drawn = np.random.default_rng(0)
    backend = FakeBackend(lambda tokens_S, positions_S, table: drawn.gamma(2.0, 1.5, len(tokens_S)))
    backend.name = request.backend
    plan = plan_ppl(request)
    started = time.perf_counter()
    result = run(plan, Store(str(folder)), Silent(), load=lambda model: backend)
    if result.computed:
        print(f"{result.computed:,} cells written in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return len(plan.cells)


def _read_named(folder: Path) -> None:
    from longeval.store.folder import Store

    names = [name.removesuffix(".json") for name in os.listdir(folder / "cells")]
    assert len(Store(str(folder)).finished_among(names)) == len(names)


def _read_all(folder: Path) -> None:
    from longeval.store.folder import Store

    assert all(cell.status == "ok" for cell in Store(str(folder)).cells())


def _find_reusable(request: PplRequest, folder: Path) -> float:
    """Seconds to look for windows of all cells in the stored ones, as if none were finished."""
    from longeval.run.reuse import find_reusable
    from longeval.store.folder import Store
    from longeval.studies.ppl.plan import plan_ppl

    plan = plan_ppl(request)
    started = time.perf_counter()
    reused, _ = find_reusable(plan, plan.work, Store(str(folder)))
    assert len(reused) == len(plan.cells)
    return time.perf_counter() - started


def _longeval(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "longeval", *arguments], check=True, stdout=subprocess.DEVNULL)


def _opened(page: str) -> float:
    """Seconds until Debian's Chromium shows the first chart of a page (`make setup-browser`); NaN without Chromium."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        return math.nan
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"] if os.getuid() == 0 else []
        )
        tab = browser.new_page(viewport={"width": 1600, "height": 1000})
        started = time.perf_counter()
        tab.goto(f"file://{page}")
        tab.locator(".plot").first.scroll_into_view_if_needed()
        tab.wait_for_selector(".plot .main-svg .xtick text", state="attached")
        seconds = time.perf_counter() - started
        browser.close()
    return seconds


def _seconds(work: Callable[[], None]) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(main)
