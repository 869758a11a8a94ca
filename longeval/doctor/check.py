"""One finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "missing"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One finding."""

    name: str
    status: Status
    """`ok`; `warn`: works, but not as well as it could; `missing`: a part of longeval won't work."""
    detail: str
    """What was found."""
    remedy: str = ""
    """How to mend it; empty for `ok`."""
