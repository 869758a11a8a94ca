"""A command made from a class of requests: its flags, its help, what it makes of them; with a toy study."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pytest
import typer
import typer.main

from longeval.cli.app import run_app
from longeval.cli.command import parameter, study_command
from longeval.errors import LongEvalError
from longeval.request import StudyRequest, setting
from longeval.request.setting import Declare

Style = Literal["plain", "loud"]


class ToyRequest(StudyRequest, frozen=True):
    """Count sheep.

    [bold]Examples[/bold]

    longeval toy --sheep a,b
    """

    command: ClassVar[str] = "toy"

    sheep: Annotated[tuple[str, ...], Declare(setting.names, "Their names.", example="dolly")]
    nights: Annotated[int, Declare(setting.count(), "How many nights.")] = 7
    share: Annotated[float | None, Declare(setting.number(), "How much of each.", unset="all")] = None
    asleep: Annotated[bool, Declare(setting.switch, "Whether they sleep.")] = False
    counted: Annotated[bool | None, Declare(setting.switch, "Whether it is said.", off="--quietly")] = None
    style: Annotated[
        Style, Declare(setting.words(Style), "How it is said.", switches={"loud": "Loudly.", "plain": "Plainly."})
    ] = "plain"
    dogs: Annotated[
        tuple[str, ...], Declare(setting.paths, "Their dogs.", flag="--dog", repeated=True, panel="Others")
    ] = ()


class PresetRequest(StudyRequest, frozen=True):
    """Count wolves."""

    command: ClassVar[str] = "preset"
    presets: ClassVar = {"day": {}, "night": {"wolves": 9, "awake": False}}

    wolves: Annotated[int, Declare(setting.count(least=0), "How many.")] = 0
    awake: Annotated[bool, Declare(setting.switch, "Whether they hunt.")] = True


@pytest.fixture
def made(monkeypatch):
    """Runs a command line of a class of requests; returns the request and the flags of how it is carried out."""

    def run(kind, *arguments, **options):
        found = {}

        def carry_out(requests, **how):
            found["request"], found["how"] = requests[0], how
            return 0

        monkeypatch.setattr("longeval.cli.run.carry_out", carry_out)
        app = typer.Typer()
        app.command()(study_command(kind, **options))
        status = typer.main.get_command(app)(args=list(arguments), standalone_mode=False)
        return status, found.get("request"), found.get("how")

    return run


def test_flags_are_the_fields(made):
    status, request, how = made(
        ToyRequest, "--sheep", "a,b", "--nights", "3", "--share", "0.5", "--asleep", "--quietly", "--loud",
        "--dog", "x,y", "--dog", "z", "--out", "run", "-q",
    )  # fmt: skip
    assert status == 0
    assert request == ToyRequest(
        sheep=("a", "b"), nights=3, share=0.5, asleep=True, counted=False, style="loud", dogs=("x,y", "z")
    )
    assert how == {
        "out": "run", "json_path": None, "dry_run": False, "fresh": False, "track": None, "quiet": True,
        "verbose": False, "executor": "local", "workers": None, "gpus_per_worker": None,
    }  # fmt: skip


def test_a_preset_gives_way_to_flags(made):
    assert made(PresetRequest)[1] == PresetRequest()
    assert made(PresetRequest, "--preset", "night")[1] == PresetRequest(wolves=9, awake=False)
    assert made(PresetRequest, "--preset", "night", "--awake")[1] == PresetRequest(wolves=9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nights", "0"), "--nights 0"),
        (("--share", "nan"), "--share 'nan'"),
        (("--dog", ""), "--dog"),
        (("--loud", "--plain"), "--loud and --plain"),
    ],
)
def test_messages_name_flags(made, arguments, message):
    with pytest.raises(LongEvalError, match=message):
        made(ToyRequest, "--sheep", "a", *arguments)


def test_help_comes_from_the_declarations(made, capsys):
    made(ToyRequest, "--help")
    text = " ".join(capsys.readouterr().out.split())
    for part in ("Count sheep.", "Their names.", "[default: 7]", "(all)", "--quietly", "Others", "--dry-run"):
        assert part in text, part
    made(PresetRequest, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "(0; night: 9)" in text and "(awake)" in text and "--no-awake" in text


def test_another_flag_may_take_over(made):
    def instead(asked, others):
        return 5 if others["list_"] else None

    more = [parameter("list_", bool, typer.Option("--list"), False)]
    assert made(ToyRequest, "--list", more=more, instead=instead) == (5, None, None)
    assert made(ToyRequest, "--sheep", "a", more=more, instead=instead)[1] == ToyRequest(sheep=("a",))
    with pytest.raises(LongEvalError, match="--sheep: missing"):
        made(ToyRequest, more=more, instead=instead)


def test_a_run_folder_stands_for_its_requests_also_before_its_first_cell(tmp_path, monkeypatch):
    requests = ("command: ppl\npe: none\nmodel: m\nlengths: 64\n", "pe: pi\nmodel: m\nlengths: 64\n")
    (tmp_path / "spec.yaml").write_text("---\n".join(requests))
    (tmp_path / "plan.json").write_text("{}")
    asked, folders = [], []

    def carry_out(specs, out, **how):
        asked.extend(specs)
        folders.append(out)
        return 0

    monkeypatch.setattr("longeval.cli.run.carry_out", carry_out)
    assert run_app(["run", str(tmp_path)]) == 0
    assert [request.pe for request in asked] == [("none",), ("pi",)]
    assert folders == [str(tmp_path)]
