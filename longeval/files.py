"""Local files that appear under their name only when they are whole, and the question whether a folder takes any."""

from __future__ import annotations

import contextlib
import os
import uuid


def write_whole(path: str, content: bytes) -> None:
    """Writes a local file whole or not at all, and makes its folder; the last of several writers wins.

    Args:
        path: Where the file goes; one that is there is replaced.
        content: All of the file.

    Raises:
        OSError: If the folder can't be made or the file can't be written. Nothing is left behind then.
    """
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    beside = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(beside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise


def why_unwritable(folder: str, name: str = "longeval") -> str | None:
    """Why `write_whole` can't write a file of this name into an existing folder, or None; leaves nothing behind.

    Asking the file system by writing is the only answer that also covers read-only mounts, root, and long names.
    """
    probe = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(probe, "xb"):
            pass
        os.unlink(probe)
    except OSError as error:
        return error.strerror or type(error).__name__
    return None
