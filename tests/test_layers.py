"""Imports go downward only, and a few rules that hold for every module; read from the source with `ast`."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "longeval"
MODULES = sorted(PACKAGE.rglob("*.py"))
STUDIES = {f"studies.{folder.parent.name}" for folder in PACKAGE.glob("studies/*/__init__.py")}

LAYERS = (
    {"__main__", "results"},
    {"cli"},
    {"doctor"},
    STUDIES,
    {"run"},
    {"backends", "export"},
    {"models"},
    {"data", "hf"},
    {"rope"},
    {"report"},
    {"metrics"},
    {"stats"},
    {"store"},
    {"parameters", "request"},
    {"cache", "registry", "values"},
    {"files"},
    {"bounded_yaml", "errors", "looks", "plain", "printable", "studies"},  # `studies` alone is the empty package
)
"""From the top down: a module or package imports only from layers below its own. A new one is placed here first.

Studies know nothing of each other: they share a layer.
"""

RANKS = {name: rank for rank, layer in enumerate(reversed(LAYERS)) for name in layer}

MAY_IMPORT = {
    "report": {
        *("report", "metrics", "stats", "store", "request", "registry", "values", "plain", "errors", "files"),
        *("looks", "printable"),
    },
    "metrics": {"metrics", "stats", "store", "registry"},
    "stats": {"stats", "store", "errors"},
    "rope": {"rope", "parameters", "registry", "values", "errors", "files", "looks"},
}
"""Reports read only the store; methods are pure functions."""

ENGINES = {"torch", "transformers", "tokenizers", "accelerate", "safetensors", "huggingface_hub", "vllm", "datasets"}


def imported(source: str) -> set[str]:
    """Full names of everything a module imports, inside functions too, but not under `if TYPE_CHECKING`."""
    names: set[str] = set()
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING":
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import: {ast.unparse(node)}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        pending += ast.iter_child_nodes(node)
    return names


def units(names: set[str]) -> set[str]:
    """The packages and modules directly under longeval among `names`: `rope` for longeval.rope.base; a study is one."""
    return {unit_of(name.split(".")[1:]) for name in names if name.startswith("longeval.")} - {"__version__"}


def unit_of(parts: Sequence[str]) -> str:
    """`rope` for (rope, base); `studies.ppl` for (studies, ppl, plan)."""
    return ".".join(parts[:2]) if parts[0] == "studies" else parts[0]


def unit_of_file(module: Path) -> str:
    parts = module.relative_to(PACKAGE).with_suffix("").parts
    return unit_of(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def upward(unit: str, source: str) -> set[str]:
    """What a module of `unit` imports from its own layer (itself excepted) or above."""
    return {other for other in units(imported(source)) if other != unit and RANKS[other] >= RANKS[unit]}


def forbidden(source: str) -> list[str]:
    """What no module may hold: pickles, code from model repositories without asking, a bare except."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            if isinstance(node.value, ast.Constant) and node.value.value is True:
                found.append(f"{node.arg}=True")
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in ("trust_remote_code", "allow_pickle"):
                    found += [f"{key.value}: True"] if isinstance(value, ast.Constant) and value.value is True else []
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "np.fromfile"):
            found.append(ast.unparse(node))
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append("bare except")
    found += sorted(imported(source) & {"pickle", "cPickle", "dill", "torch.load"})
    return found


def test_every_module_has_a_place():
    assert {unit_of_file(module) for module in MODULES} - {"__init__"} == set(RANKS)


def test_imports_go_downward_only():
    for module in MODULES:
        if (unit := unit_of_file(module)) in RANKS:
            assert upward(unit, module.read_text(encoding="utf-8")) == set(), module


def test_every_module_can_be_imported_without_what_only_unix_has():
    modules = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in MODULES]
    runnable = [m.removesuffix(".__init__") for m in modules if "backends.vllm." not in m and "__main__" not in m]
    code = (
        "import importlib, sys\n"
        "sys.modules |= dict.fromkeys(('fcntl', 'resource', 'termios', 'pwd', 'grp'))\n"
        "for name in sys.argv[1:]: importlib.import_module(name)"
    )
    subprocess.run([sys.executable, "-c", code, *runnable], check=True)


def test_importing_longeval_itself_imports_nothing():
    code = "import sys, longeval; print(*(name for name in sys.modules if name.startswith('longeval')))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["longeval"]


@pytest.mark.parametrize("unit", MAY_IMPORT)
def test_reports_statistics_and_methods_know_no_engine(unit):
    modules = sorted((PACKAGE / unit).rglob("*.py"))
    assert modules
    for module in modules:
        names = imported(module.read_text(encoding="utf-8"))
        assert units(names) <= MAY_IMPORT[unit], module
        assert {name.split(".")[0] for name in names} & ENGINES == set(), module


@pytest.mark.parametrize("unit", MAY_IMPORT)
def test_importing_all_of_them_leaves_engines_out(unit):
    paths = [path.relative_to(PACKAGE.parent).with_suffix("") for path in (PACKAGE / unit).rglob("*.py")]
    modules = [".".join(path.parts) for path in paths if path.name != "__init__"]
    code = (
        "import importlib, json, sys\n"
        "for module in sys.argv[1:]: importlib.import_module(module)\n"
        "print(json.dumps([*sys.modules]))"
    )
    answer = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=True)
    present = set(json.loads(answer.stdout))
    assert set(modules) <= present
    assert present & (ENGINES | {"longeval.models", "longeval.backends", "longeval.data", "longeval.run"}) == set()


def test_modules_keep_the_rules():
    for module in MODULES:
        source = module.read_text(encoding="utf-8")
        assert forbidden(source) == [], module
        assert source.count("\n") <= 500, f"{module} has two jobs"
        assert module.stem not in ("utils", "util", "helpers", "common", "misc"), (
            "a function lives where its noun lives"
        )


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import one another, as far as one circle goes; empty where there is none.

    Args:
        imports: Module → full names of what it imports.
    """
    known = {
        module: {name if name in imports else name.rpartition(".")[0] for name in names} & imports.keys()
        for module, names in imports.items()
    }
    try:
        TopologicalSorter({module: names - {module} for module, names in known.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_one_another():
    def name(module: Path) -> str:
        parts = module.relative_to(PACKAGE.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    inner = [module for module in MODULES if module != PACKAGE / "__init__.py"]  # it shows what modules below it make
    assert circle({name(module): imported(module.read_text(encoding="utf-8")) for module in inner}) == []
    assert set(circle({"a.b": {"a.c.f"}, "a.c": {"a.d"}, "a.d": {"a.b"}})) == {"a.b", "a.c", "a.d"}
    assert circle({"a.b": {"a.c.f"}, "a.c": {"a.d"}, "a.d": {"e"}}) == []


def test_a_public_class_name_exists_once():
    names = [
        node.name
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_the_checks_themselves_see_what_they_look_for():
    lazily = "def f():\n    from longeval.run.cell import cell_id\n"
    assert upward("models", lazily) == {"run"}
    assert upward("run", lazily) == set()
    assert upward("studies.ppl", lazily) == set()
    assert upward("studies.ppl", "import longeval.studies.tasks.plan") == {"studies.tasks"}, (
        "the same layer is not below"
    )
    assert upward("rope", "import longeval.backends.hf.backend") == {"backends"}
    assert upward("rope", "from longeval import cli, __version__") == {"cli"}
    checked = "if TYPE_CHECKING:\n    from longeval.run import cell\nelse:\n    import longeval.studies.ppl.plan"
    assert upward("rope", checked) == {"studies.ppl"}
    assert forbidden("f(trust_remote_code=True)") == ["trust_remote_code=True"]
    assert forbidden("x = {'allow_pickle': True}") == ["allow_pickle: True"]
    assert forbidden("f(trust_remote_code=asked, allow_pickle=False)") == []
    assert forbidden("import torch\ntorch.load('x')") == ["torch.load"]
    assert forbidden("from torch import load") == ["torch.load"]
    assert forbidden("import pickle") == ["pickle"]
    assert forbidden("try:\n    f()\nexcept:\n    g()") == ["bare except"]


def test_reports_are_drawn_in_one_place():
    drawing = {module.relative_to(PACKAGE).as_posix() for module in MODULES if "matplotlib" in _tops(module)}
    assert {name for name in drawing if not name.startswith("rope/plot/")} == {"report/plots.py"}


def _tops(module: Path) -> set[str]:
    """Names of the packages that a module imports from."""
    return {name.split(".")[0] for name in imported(module.read_text(encoding="utf-8"))}
