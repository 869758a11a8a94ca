"""Options that `ppl` and `tasks` share: written once, so that they mean and say the same everywhere."""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal, get_args

import typer
from typer.models import OptionInfo

METHODS, MACHINE, OUTPUT = "Methods", "Machine", "Output"

Factor = Annotated[
    str | None,
    typer.Option(
        help="s = target / native length for all lengths; each: every length its own.",
        show_default="longest length / native length, at least 1",
        rich_help_panel=METHODS,
    ),
]
Native = Annotated[
    str | None,
    typer.Option(help="Native length in tokens.", show_default="the model's own", rich_help_panel=METHODS),
]
PeArg = Annotated[
    list[str] | None,
    typer.Option(
        help="A method's parameter, yarn.beta_fast=16; may be repeated.",
        metavar="METHOD.PARAM=VALUE",
        rich_help_panel=METHODS,
    ),
]
ScaleFromText = Annotated[
    str,
    typer.Option(
        help="On a model that comes already scaled: plain (methods replace that) or shipped (they build on it).",
        rich_help_panel=METHODS,
    ),
]
LayersText = Annotated[
    str,
    typer.Option(
        help="Where a model rotates by layer type (Gemma 3): scale the global layers, or all.",
        rich_help_panel=METHODS,
    ),
]
BackendName = Annotated[
    str,
    typer.Option(help="What runs the model: hf (transformers), vllm, openai (any server).", rich_help_panel=MACHINE),
]
VllmArg = Annotated[
    list[str] | None,
    typer.Option(
        help="An option of vLLM's engine, tensor_parallel_size=2; may be repeated.",
        metavar="NAME=VALUE",
        rich_help_panel=MACHINE,
    ),
]
PinLength = Annotated[
    str | None,
    typer.Option(
        help="vllm: the one length whose table a length-dependent method has at all lengths.", rich_help_panel=METHODS
    ),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        help="openai: the server, http://127.0.0.1:8000/v1; its key is read from LONGEVAL_API_KEY.",
        rich_help_panel=MACHINE,
    ),
]
ServedModel = Annotated[
    str | None,
    typer.Option(help="openai: the model's name there.", show_default="its only one", rich_help_panel=MACHINE),
]
ParseSpecial = Annotated[
    bool,
    typer.Option("--parse-special", help="Special tokens that texts spell (</s>) are control tokens, not text."),
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.", rich_help_panel=MACHINE)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=MACHINE)]
DeviceMap = Annotated[str | None, typer.Option(help="Spread over devices: auto, balanced, …", rich_help_panel=MACHINE)]
Attn = Annotated[str | None, typer.Option(help="Attention: sdpa, eager, flash_attention_2, …", rich_help_panel=MACHINE)]
Revision = Annotated[str | None, typer.Option(help="Hub revision of the model.", rich_help_panel=MACHINE)]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code from the model's repository.", rich_help_panel=MACHINE)
]
Out = Annotated[
    str | None,
    typer.Option(help="Run folder or fsspec URL.", show_default="runs/<date>-<digest>", rich_help_panel=OUTPUT),
]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="PATH", help="Records as a JSON array; - is stdout.", rich_help_panel=OUTPUT),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show cells, passes, time and memory.", rich_help_panel=OUTPUT)]
Fresh = Annotated[bool, typer.Option("--fresh", help="Compute stored cells again.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only errors.", rich_help_panel=OUTPUT)]


def under(panel: str, option: Any, *, show_default: str | None = None) -> OptionInfo:
    """One of the options above for a command whose help shows it in another panel.

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


def factor(text: str | None) -> float | Literal["each"] | None:
    """The value of `--factor`."""
    from longeval.values import parse_factor

    if text is None:
        return None
    return "each" if text == "each" else parse_factor(text)


def pin_length(text: str | None) -> int | None:
    """The value of `--pin-length`."""
    from longeval.values import parse_length

    return None if text is None else parse_length(text, flag="--pin-length")


def native(text: str | None) -> int | None:
    """The value of `--native`."""
    from longeval.values import parse_length

    return None if text is None else parse_length(text, flag="--native")
