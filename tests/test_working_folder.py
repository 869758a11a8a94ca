"""Python files of the folder in which somebody works are not the program's, nor those of what it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from longeval.backends.vllm import server as vllm_server
from longeval.models import embedded

OWN = {"longeval", "vllm"}
"""Found where they are installed; `python -m longeval` in a folder with another `longeval` means that one."""


@pytest.fixture
def planted(tmp_path):
    """A folder with a file called like every module there is; each leaves its name in a file when it is imported."""
    folder = tmp_path / "planted"
    folder.mkdir()
    marks = folder / "marks.txt"
    names = {*sys.stdlib_module_names, *packages_distributions(), "sitecustomize", "usercustomize", "conftest"}
    for name in names - OWN:
        if name.isidentifier():
            (folder / f"{name}.py").write_text(f"open({str(marks)!r}, 'a').write(__name__ + '\\n')\n")
    (folder / "setup.cfg").write_text("[easy_install]\nindex_url = http://127.0.0.1:1\n")
    (folder / "pip.conf").write_text("[global]\nno-such-option = x\n")
    return folder


@pytest.fixture
def start(planted):
    """Starts a command there; returns its answer once it has imported nothing of that folder."""

    def run(*command, **environment):
        answer = subprocess.run(
            command, cwd=planted, env={**clean(), **environment}, capture_output=True, text=True, check=False
        )
        marks = planted / "marks.txt"
        imported = marks.read_text() if marks.exists() else ""
        marks.unlink(missing_ok=True)
        assert imported == "", answer.stderr
        return answer

    return run


def clean():
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def test_the_files_would_be_imported(planted):
    subprocess.run([sys.executable, "-c", "import dis"], cwd=planted, env=clean(), check=False)
    assert "dis" in (planted / "marks.txt").read_text().split()
    (planted / "marks.txt").unlink()


def test_pip(start):
    pip = embedded._pip((), "model")
    assert start(*pip, "--version").returncode == 0
    # Far enough to read its configuration, and to look for a package.
    assert "No matching distribution" in start(*pip, "download", "--no-index", "no-such-package").stderr


def test_the_server_and_what_it_spawns(start, tmp_path):
    entry = tmp_path / "vllm" / "entrypoints" / "launchers" / "api_server"
    entry.mkdir(parents=True)
    for folder in (entry, *entry.parents[:3]):
        (folder / "__init__.py").touch()
    (entry / "entry.py").write_text(
        "import json, multiprocessing, subprocess, sys\n"
        "def work():\n    import asyncio, dis, socket, yaml\n    print('spawned')\n"
        "def main():\n"
        "    import dis, yaml\n"
        "    child = multiprocessing.get_context('spawn').Process(target=work)\n"
        "    child.start()\n    child.join()\n    sys.exit(child.exitcode)\n"
    )
    answer = start(sys.executable, *vllm_server._OURS, PYTHONPATH=str(tmp_path))
    assert (answer.returncode, answer.stdout) == (0, "spawned\n"), answer.stderr


def test_python_dash_m_longeval(start, planted):
    """All but what Python itself needs for `-m`, before it reads a line of any program."""
    command = [sys.executable, "-P", "-c", "import runpy, sys; print(*sys.modules)"]
    needed = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in needed.stdout.split():
        (planted / f"{name}.py").unlink(missing_ok=True)
    flags = ["--head-dim", "16", "--theta", "10000", "--native", "64", "--factor", "2", "--json", "-"]
    answer = start(sys.executable, "-m", "longeval", "rope", "yarn", *flags)
    assert answer.returncode == 0, answer.stderr


def test_whatever_the_program_starts(start):
    """Libraries start processes too: vLLM its engine's, torch its compilers."""
    code = (
        "import multiprocessing, subprocess, sys\n"
        "def work():\n    import dis, yaml\n"
        "if __name__ == '__main__':\n"
        "    from longeval.__main__ import main\n"
        "    sys.argv = ['longeval', '--help']\n"
        "    try:\n        main()\n    except SystemExit:\n        pass\n"
        "    subprocess.run([sys.executable, '-c', 'import dis, yaml'], check=True)\n"
    )
    assert start(sys.executable, "-P", "-c", code).returncode == 0


def test_pythonpath_stays_the_users_own(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "sitecustomize.py").write_text("print('mine')\n")
    command = [sys.executable, "-m", "longeval", "--help"]
    path = os.pathsep.join(["here", str(Path(__file__).parents[1])])
    environment = {**clean(), "PYTHONPATH": path}
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("mine\n")
