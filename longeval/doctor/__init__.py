"""What works on this machine, each finding with how to mend it: the checks behind `longeval doctor`.

Nothing is downloaded, and nothing is changed but a file written into the cache folder and removed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from longeval.doctor import hardware, places, software
from longeval.doctor.check import Check

__all__ = ["Check", "examine"]

_CHECKS: tuple[Callable[[], Iterator[Check]], ...] = (
    software.python,
    software.packages,
    hardware.cpu,
    hardware.gpu,
    hardware.dtypes,
    hardware.attention,
    software.vllm,
    places.hub,
    places.cache,
    places.embedded_model,
    places.data,
)


def examine() -> Iterator[Check]:
    """Yields the findings one by one, quick ones first (the whole takes some seconds)."""
    for check in _CHECKS:
        yield from check()
