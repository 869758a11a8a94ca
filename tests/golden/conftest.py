"""The one place that knows how the program is called, and the working folder of the golden tests."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
from golden import HERE, Answer


@pytest.fixture
def longeval(capsys):
    """Returns a function that runs one command line in this process."""

    def run(*arguments: str) -> Answer:
        from longeval.cli.app import run_app

        capsys.readouterr()
        status = run_app(list(arguments))
        return Answer(status, *capsys.readouterr())

    return run


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A current folder with the model, the documents and the tasks, so that all paths are relative.

    `--dtype auto` is float32 on every machine, as where the expected files were written.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("longeval.models.device.native_bfloat16", lambda device: False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("LONGEVAL_DATA", raising=False)
    for name in ("model", "documents", "tasks"):
        shutil.copytree(HERE / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def broken_model(workplace):
    """The same model with one weight that is not a number."""
    folder = shutil.copytree(workplace / "model", workplace / "model-nan")
    weights = Path(folder, "model.safetensors")
    content = bytearray(weights.read_bytes())
    (header_size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + header_size])
    start = 8 + header_size + header["model.norm.weight"]["data_offsets"][0]
    content[start : start + 4] = struct.pack("<f", float("nan"))
    weights.write_bytes(content)
