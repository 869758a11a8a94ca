"""The built wheel, installed into an environment of its own: the program, its corpora, its types, its licence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]


def run(*command, **settings):
    answer = subprocess.run(command, capture_output=True, text=True, check=False, **settings)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", str(folder), str(REPOSITORY))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The bin folder of a fresh environment that holds the wheel; what it depends on is borrowed from this one."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def ask(installed, code, cwd):
    """What `code` prints as JSON in the environment, far from the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return json.loads(run(str(installed / "python"), "-c", code, cwd=cwd, env=environment))


def test_the_wheel_holds_the_package_the_corpora_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    package = REPOSITORY / "longeval"
    page = (path for path in (package / "report" / "page").rglob("*") if path.is_file() and path.suffix != ".pyc")
    in_package = {path.relative_to(REPOSITORY).as_posix() for path in (*package.rglob("*.py"), *page)}
    tasks = REPOSITORY / "tasks"
    files = [path for path in tasks.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    in_tasks = {f"longeval/_tasks/{path.relative_to(tasks).as_posix()}" for path in files}
    assert in_package | in_tasks | {"longeval/py.typed"} <= names
    extra = names - in_package - in_tasks - {"longeval/py.typed"}
    assert {name for name in extra if ".dist-info/" not in name and not name.endswith((".yaml", ".json"))} == set()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in extra)


def test_the_wheel_has_a_name_of_its_own_and_the_usual_entry_points(wheel):
    """`longeval` on the index is somebody else's; the command and vLLM's plugin are called so all the same."""
    assert wheel.name.startswith("longeval_rope-")
    with zipfile.ZipFile(wheel) as archive:
        (points,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        text = archive.read(points).decode()
    assert "longeval = longeval.__main__:main" in text
    assert "longeval = longeval.backends.vllm.plugin:register" in text


def test_the_installed_package_is_the_wheels(installed, tmp_path):
    code = (
        "import json, longeval, importlib.metadata as m;"
        "print(json.dumps([longeval.__file__, longeval.__version__, m.version('longeval-rope')]))"
    )
    file, version, declared = ask(installed, code, tmp_path)
    assert Path(file).is_relative_to(installed.parent)
    assert version == declared


def test_the_parts_of_the_page_are_found_in_the_installed_package(installed, tmp_path):
    code = "import json; from longeval.report.page.html import policy; print(json.dumps(policy(is_live=False)))"
    assert ask(installed, code, tmp_path).count("'sha256-") > 5


def test_the_corpora_are_found_in_the_installed_package(installed, tmp_path):
    code = (
        "import json; from longeval.data.corpora import corpora_dir, load_catalogue;"
        "print(json.dumps([corpora_dir(), sorted(load_catalogue().corpora)]))"
    )
    folder, names = ask(installed, code, tmp_path)
    assert Path(folder).is_relative_to(installed.parent)
    assert {"gov_report", "pg19", "proof_pile", "leval:sci_fi"} <= set(names)


def test_the_tasks_are_found_and_built_in_the_installed_package(installed, tmp_path):
    code = (
        "import json; from longeval.studies.tasks.definitions.index import Index;"
        "from longeval.studies.tasks.definitions.load import load_task;"
        "from longeval.studies.tasks.setting import Setting;"
        "rest = dict(seed=0, haystack='noise', measure=lambda text: len(text) // 4, digest='x', cache=None);"
        "setting = Setting(length=1024, num_samples=2, **rest);"
        "index = Index(); task = load_task('niah_single', metadata={'setting': setting}, index=index);"
        "print(json.dumps([index.entry('leval').path, list(index.leaves('leval')), len(task.eval_docs)]))"
    )
    path, leaves, samples = ask(installed, code, tmp_path)
    assert Path(path).is_relative_to(installed.parent)
    assert {"leval_coursera", "leval_codeu"} <= set(leaves)
    assert samples == 2


def test_the_console_script_runs(installed, tmp_path):
    options = ["--head-dim", "128", "--theta", "10000", "--native", "4096", "--factor", "8", "--json", "-"]
    table = json.loads(run(str(installed / "longeval"), "rope", "resonance_yarn", *options, cwd=tmp_path))
    assert table["feature_gap"] == 0
    assert len(table["inv_freq"]) == 64
