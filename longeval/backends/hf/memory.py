"""Peak memory of this process; on Linux it can be reset, so that each pass has its own figure."""

from __future__ import annotations

import sys


def reset_peak() -> None:
    """Resets the kernel's high-water mark of this process; silently nothing where the kernel doesn't offer it."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return


def peak_bytes() -> int:
    """The high-water mark of resident memory since the last reset (since the start where it can't be reset)."""
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024
