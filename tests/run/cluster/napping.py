"""The program with the study of bed/, here and in its workers: `python napping.py naps --pe …`."""

from __future__ import annotations

import os
from pathlib import Path

import longeval.studies
from longeval.run import pool, worker

STUDIES = Path(__file__).parent / "bed"


def add_study() -> None:
    """Puts the study among those of the package."""
    if str(STUDIES) not in longeval.studies.__path__:
        longeval.studies.__path__.append(str(STUDIES))


class NapWorker(worker.Worker):
    """A worker that has the study too."""

    def __init__(self, *arguments, **named):
        add_study()
        os.environ["LONGEVAL_NAPS"] = os.environ.get("NAPS_OF_WORKERS", "")
        super().__init__(*arguments, **named)


def main() -> None:
    add_study()
    import napping

    from longeval.__main__ import main as run

    pool.ROOM_S = float(os.environ.get("NAPS_ROOM_S", pool.ROOM_S))
    pool.RayExecutor.__init__.__kwdefaults__["kind"] = napping.NapWorker
    run()


if __name__ == "__main__":
    main()
