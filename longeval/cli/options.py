"""Options that several commands have. Those that a request declares come from its class, so that they say the same."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from longeval.request import ModelRequest, StudyRequest
from longeval.request.setting import OUTPUT

SCALE = "Workers"
"""The panel of flags that say where work runs."""

Out = Annotated[
    str | None,
    typer.Option(help="Run folder or fsspec URL.", show_default="runs/<date>-<digest>", rich_help_panel=OUTPUT),
]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="PATH", help="Records as a JSON array; - is stdout.", rich_help_panel=OUTPUT),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show cells, passes, time and memory; compute nothing.", rich_help_panel=OUTPUT),
]
Show = Annotated[
    str | None,
    typer.Option(
        "--show",
        metavar="N",
        help="Print the first N windows or samples as the model gets them, with answers and values.",
        rich_help_panel=OUTPUT,
    ),
]
Track = Annotated[
    str | None,
    typer.Option(
        "--track", help="Send values to tensorboard, wandb, mlflow, trackio; comma list.", rich_help_panel=OUTPUT
    ),
]
Executor = Annotated[
    str,
    typer.Option(
        "--executor",
        metavar="NAME",
        help="local: in this process, or with --workers in several; ray: on the cluster at RAY_ADDRESS, else Ray here.",
        rich_help_panel=SCALE,
    ),
]
Workers = Annotated[
    str | None,
    typer.Option(
        "--workers",
        metavar="N",
        help="Processes that compute, each with devices of its own; local needs the extra ray for several.",
        show_default="1; ray: as many as there is room for",
        rich_help_panel=SCALE,
    ),
]
GpusPerWorker = Annotated[
    str | None,
    typer.Option(
        "--gpus-per-worker",
        metavar="G",
        help="GPUs of each worker, such as 2 or 0.5.",
        show_default="what its work is estimated to need",
        rich_help_panel=SCALE,
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Compute again what is stored.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only errors.", rich_help_panel=OUTPUT)]
Verbose = Annotated[
    bool,
    typer.Option("-v", "--verbose", help="A line for each window, sample or epoch.", rich_help_panel=OUTPUT),
]


def option(kind: type[StudyRequest], name: str, **changes: Any) -> Any:
    """The typer option of a field.

    Args:
        kind: The class of a request.
        name: The field.
        changes: Arguments of `typer.Option` in place of those that follow from the field; `flags` are its names.
    """
    setting = kind.setting(name)
    arguments: dict[str, Any] = {"help": setting.help, "metavar": setting.metavar, "rich_help_panel": setting.panel}
    if setting.unset is not None:
        arguments["show_default"] = setting.unset
    flags = changes.pop("flags", kind.flag(name))
    return typer.Option(flags, **(arguments | changes))


def model_option(name: str, **changes: Any) -> Any:
    """The option of a field of `ModelRequest`, for commands that are written by hand; `changes` as for `option`."""
    return option(ModelRequest, name, **changes)


def read(name: str, text: str | None) -> Any:
    """The value of such an option; None where it isn't given."""
    return None if text is None else ModelRequest.setting(name).read(text, ModelRequest.flag(name))
