"""Options that several commands have. Those that a request declares come from its class, so that they say the same."""

from __future__ import annotations

import copy
from typing import Annotated, Any, get_args

import typer
from typer.models import OptionInfo

from longeval.request import ModelRequest, StudyRequest
from longeval.request.setting import MACHINE, METHODS, OUTPUT

__all__ = ["MACHINE", "METHODS", "OUTPUT"]


def option(kind: type[StudyRequest], name: str, **changes: Any) -> Any:
    """The typer option of a field.

    Args:
        kind: The class of a request.
        name: The field.
        changes: Arguments of `typer.Option` in place of those that follow from the field.
    """
    setting = kind.setting(name)
    told = {"help": setting.help, "metavar": setting.metavar, "rich_help_panel": setting.panel}
    shown = {} if setting.unset is None else {"show_default": setting.unset}
    flags = changes.pop("flags", kind.flag(name))
    return typer.Option(flags, **(told | shown | changes))


def under(panel: str, option: Any, *, show_default: str | None = None) -> OptionInfo:
    """One of the options below for a command whose help shows it in another panel.

    Args:
        panel: The panel there.
        option: Such as `PeArg`.
        show_default: What is shown as its default, where the command takes None for that.
    """
    moved: OptionInfo = copy.copy(get_args(option)[1])
    moved.rich_help_panel = panel
    if show_default is not None:
        moved.show_default = show_default
    return moved


def read(name: str, text: str | None) -> Any:
    """The value of an option that `ModelRequest` declares; None where it isn't given."""
    return None if text is None else ModelRequest.setting(name).read(text, ModelRequest.flag(name))


Native = Annotated[str | None, option(ModelRequest, "native")]
PeArg = Annotated[list[str] | None, option(ModelRequest, "pe_args")]
ScaleFromText = Annotated[str, option(ModelRequest, "scale_from")]
LayersText = Annotated[str, option(ModelRequest, "layers")]
PinLength = Annotated[str | None, option(ModelRequest, "pin_length")]
VllmArg = Annotated[list[str] | None, option(ModelRequest, "vllm_args")]
Dtype = Annotated[str, option(ModelRequest, "dtype")]
Device = Annotated[str, option(ModelRequest, "device")]
Revision = Annotated[str | None, option(ModelRequest, "revision")]
TrustRemoteCode = Annotated[bool, option(ModelRequest, "trust_remote_code")]

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
Track = Annotated[
    str | None,
    typer.Option(
        "--track", help="Send values to tensorboard, wandb, mlflow, trackio; comma list.", rich_help_panel=OUTPUT
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Compute again what is stored.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only errors.", rich_help_panel=OUTPUT)]
Verbose = Annotated[
    bool,
    typer.Option("-v", "--verbose", help="A line for each window, sample or epoch.", rich_help_panel=OUTPUT),
]
