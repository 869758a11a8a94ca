"""Ties a process of vLLM's to the one that started it: they outlive a parent that is killed, holding all its memory.

Linux only (PR_SET_PDEATHSIG, prctl(2)). Nothing heavy is imported, so that a process can be tied before all else.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG."""


def die_with_parent(parent: int | None) -> None:
    """Has the system kill this process when its parent ends; does nothing where the system isn't Linux.

    Args:
        parent: The parent's process id, to notice that it ended before this was asked for; None: not known.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
