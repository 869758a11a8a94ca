"""The pages under docs/ say what the program does: their commands run, print what is written there, draw what is shown.

`LONGEVAL_WRITE_DOCS=1 pytest tests/test_docs.py` writes outputs and figures anew.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer.main
from docs_commands import PAGES, commands_in_blocks, commands_in_text

from longeval.cli.app import app, run_app

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "rope.md"
WRITE = os.environ.get("LONGEVAL_WRITE_DOCS") == "1"
BLOCK = re.compile(r"^```console\n\$ (.+?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FIGURE = re.compile(r"`longeval (rope [^`]*--plot (docs/figures/\S+\.svg))`")
NEEDS_MODEL = "--model"

COMMANDS = [match[1] for match in BLOCK.finditer(PAGE.read_text(encoding="utf-8"))]
FIGURES = [(match[1], match[2]) for match in FIGURE.finditer(PAGE.read_text(encoding="utf-8"))]


def slow_if_model(command):
    return pytest.param(command, marks=pytest.mark.slow if NEEDS_MODEL in command else ())


def printed_by(command):
    """What a command prints on stdout at 100 columns."""
    program, *arguments = shlex.split(command)
    assert program == "longeval"
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-m", "longeval", *arguments], capture_output=True, text=True, env=environment, check=True
    )
    return "".join(line.rstrip() + "\n" for line in done.stdout.strip("\n").splitlines())


@pytest.mark.parametrize("command", [slow_if_model(command) for command in COMMANDS])
def test_a_command_of_the_page_prints_what_the_page_says(command, request):
    if NEEDS_MODEL in command:
        request.getfixturevalue("user_cache")
    printed = printed_by(command)
    text = PAGE.read_text(encoding="utf-8")
    (match,) = [match for match in BLOCK.finditer(text) if match[1] == command]
    if WRITE:
        PAGE.write_text(text[: match.start(2)] + printed + text[match.end(2) :], encoding="utf-8")
        return
    assert match[2] == printed


@pytest.mark.parametrize(("command", "path"), FIGURES)
def test_a_figure_of_the_page_is_what_its_command_draws(command, path, tmp_path, capsys):
    drawn = tmp_path / "figure.svg"
    arguments = shlex.split(command.replace(path, str(drawn)))
    assert run_app(arguments) == 0
    capsys.readouterr()
    if WRITE:
        (ROOT / path).parent.mkdir(exist_ok=True)
        (ROOT / path).write_bytes(drawn.read_bytes())
        png = (ROOT / path).with_suffix(".png")
        assert run_app([*arguments[:-1], str(png)]) == 0
        return
    assert_same_drawing((ROOT / path).read_text(encoding="utf-8"), drawn.read_text(encoding="utf-8"))
    assert f"]({path.removeprefix('docs/').replace('.svg', '.png')})" in PAGE.read_text(encoding="utf-8")
    assert (ROOT / path).with_suffix(".png").is_file()


def assert_same_drawing(kept, drawn):
    """Two SVGs have the same elements and texts, and coordinates that differ by less than can be seen.

    Other processors round the last digits of the curves otherwise.
    """
    number = re.compile(r"-?\d+\.\d+")
    assert number.sub("#", kept) == number.sub("#", drawn)
    coordinates = [np.array([float(found) for found in number.findall(text)]) for text in (kept, drawn)]
    np.testing.assert_allclose(*coordinates, rtol=0, atol=0.01)


def test_the_page_has_commands_figures_and_working_links():
    assert len(COMMANDS) >= 4 and len(FIGURES) >= 2
    for page in (ROOT / "docs").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        headings = {
            re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
            for line in text.splitlines()
            if line.startswith("#")
        }
        for link in re.findall(r"\]\(([^)]+)\)", text):
            if link.startswith("#"):
                assert link[1:] in headings, link
            elif "://" not in link:
                assert (page.parent / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_and_their_flags_are_there(page):
    for words in map(shlex.split, commands_in_blocks(page) + commands_in_text(page)):
        command = typer.main.get_command(app)
        while hasattr(command, "commands") and words and not words[0].startswith("-"):
            command, words = command.commands[words[0]], words[1:]
        known = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
        flags = {word.partition("=")[0] for word in words if re.match("--?[a-z]", word)}
        assert flags <= known | {"--help"}, f"{page.name}: {words}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_requests_in_blocks_of_a_page_are_whole(page, monkeypatch):
    requests = []
    monkeypatch.setattr("longeval.cli.run.carry_out", lambda specs, **how: requests.extend(specs) or 0)
    for words in map(shlex.split, commands_in_blocks(page)):
        if words[0] in ("ppl", "tasks") or words[:2] == ["posgen", "train"]:
            assert run_app(words) == 0, f"{page.name}: {words}"
    assert all(request.pe for request in requests)


def test_the_site_is_built_without_a_warning(tmp_path):
    arguments = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "longeval.results.ppl" in (tmp_path / "site" / "python" / "index.html").read_text(encoding="utf-8")
