"""The cache folder: what can be made again at any time (tokenised documents, dequantised models).

`$LONGEVAL_CACHE`, else `$XDG_CACHE_HOME/longeval`, else `~/.cache/longeval` (XDG Base Directory Specification 0.8,
by which a relative `XDG_CACHE_HOME` is ignored). Files appear under their name only when they are whole, so several
runs may share the folder. A cache that can't be written costs time, never a result.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import logging
import os
import tempfile

from longeval.files import sweep, write_whole

_log = logging.getLogger(__name__)

_EARLIER = (".building-", ".fetching-", ".saving-")
"""What names of working folders began with in earlier versions."""


def cache_dir() -> str:
    """Returns the absolute path of the cache folder, which need not exist yet; reads the environment at each call."""
    own = os.environ.get("LONGEVAL_CACHE")
    if own:
        return os.path.abspath(os.path.expanduser(own))
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(shared):
        shared = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(shared, "longeval")


def sweep_temporary() -> None:
    """Removes what killed runs left in the cache, and in the system's folder for temporary files."""
    folder = cache_dir()
    folders = [folder, *glob.glob(f"{glob.escape(folder)}/*/"), *glob.glob(f"{glob.escape(folder)}/tokens/*/")]
    sweep(*folders, prefixes=_EARLIER)
    with contextlib.suppress(FileNotFoundError):  # there may be none
        sweep(tempfile.gettempdir())


def write_if_possible(path: str, content: bytes) -> bool:
    """As `write_whole`, but an OSError becomes one logged warning for each reason; returns whether it wrote."""
    try:
        write_whole(path, content)
    except OSError as error:
        _warn_unwritable(cache_dir(), error.strerror or type(error).__name__)
        return False
    return True


@functools.cache
def _warn_unwritable(folder: str, reason: str) -> None:
    """Warns once for a folder and reason: a run over a thousand documents needs no thousand lines."""
    _log.warning(
        "cache %s can't be written (%s): going on without; LONGEVAL_CACHE names another folder", folder, reason
    )
