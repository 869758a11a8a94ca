"""`longeval posgen train`: trains small models with each method on short sequences and tests them on longer ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longeval.cli import options
from longeval.errors import LongEvalError

if TYPE_CHECKING:
    from longeval.request import PosGenRequest

DATA, MODEL, TRAINING = "Data", "Model", "Training"


def train(
    task: Annotated[
        str | None,
        typer.Option(help="Rules: recursive, cot, semi_recursive; comma list.", show_default="all three; smoke: cot"),
    ] = None,
    pe: Annotated[
        str | None,
        typer.Option(
            help="Methods: none, yarn, resonance_yarn, …; comma list.",
            show_default="none,resonance,yarn,resonance_yarn",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="How many seeds.", show_default="5; smoke: 1"),
    ] = None,
    regime: Annotated[
        str | None,
        typer.Option(
            help="trained: the method is on while training; swapped: only in evaluation (resonance in both); or both.",
            show_default="trained; smoke: both",
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="full: the paper's sizes; smoke: minutes on two cores. Flags override it.")
    ] = "full",
    first_seed: Annotated[str | None, typer.Option(help="The first seed.", show_default="0")] = None,
    num_train: Annotated[
        str | None, typer.Option(help="Sequences to train on.", show_default="10000", rich_help_panel=DATA)
    ] = None,
    num_valid: Annotated[
        str | None,
        typer.Option(help="Sequences for losses by epoch.", show_default="1000; smoke: 200", rich_help_panel=DATA),
    ] = None,
    num_test: Annotated[
        str | None,
        typer.Option(help="Sequences for accuracies.", show_default="1000; smoke: 500", rich_help_panel=DATA),
    ] = None,
    length: Annotated[
        str | None, typer.Option(help="Tokens of a training sequence.", show_default="64", rich_help_panel=DATA)
    ] = None,
    test_length: Annotated[
        str | None, typer.Option(help="Tokens of a test sequence.", show_default="256", rich_help_panel=DATA)
    ] = None,
    modulus: Annotated[
        str | None, typer.Option(help="Tokens are 0 … m−1.", show_default="17", rich_help_panel=DATA)
    ] = None,
    j: Annotated[
        str | None,
        typer.Option("--j", help="Tokens summed at the rule's place.", show_default="1", rich_help_panel=DATA),
    ] = None,
    k: Annotated[
        str | None, typer.Option("--k", help="Last tokens summed.", show_default="3", rich_help_panel=DATA)
    ] = None,
    data_seed: Annotated[
        str | None,
        typer.Option(help="One data set for all seeds.", show_default="each seed its own", rich_help_panel=DATA),
    ] = None,
    factor: Annotated[
        str | None,
        typer.Option(
            help="s = target / native length.", show_default="test length / native", rich_help_panel=options.METHODS
        ),
    ] = None,
    native: Annotated[
        str | None,
        typer.Option(
            help="Native length in tokens.", show_default="the training length", rich_help_panel=options.METHODS
        ),
    ] = None,
    pe_arg: options.PeArg = None,
    layers: Annotated[str | None, typer.Option(help="Layers.", show_default="2", rich_help_panel=MODEL)] = None,
    d_model: Annotated[
        str | None, typer.Option(help="Width.", show_default="512; smoke: 128", rich_help_panel=MODEL)
    ] = None,
    d_ff: Annotated[
        str | None,
        typer.Option(help="Width of feed-forward layers.", show_default="2048; smoke: 512", rich_help_panel=MODEL),
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="Attention heads.", show_default="8; smoke: 2", rich_help_panel=MODEL)
    ] = None,
    head_dim: Annotated[
        str | None, typer.Option(help="Dimensions of a head.", show_default="64", rich_help_panel=MODEL)
    ] = None,
    theta: Annotated[str | None, typer.Option(help="RoPE's base.", show_default="10000", rich_help_panel=MODEL)] = None,
    tied: Annotated[
        bool | None,
        typer.Option("--tied/--untied", help="Output layer = embedding.", show_default="tied", rich_help_panel=MODEL),
    ] = None,
    attention_scale: Annotated[
        bool | None,
        typer.Option(
            "--attention-scale/--no-attention-scale",
            help="Divide attention logits by √head_dim, which T5 doesn't.",
            show_default="no",
            rich_help_panel=MODEL,
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="t5: each matrix by its own scale; normal: one for all.", show_default="t5", rich_help_panel=MODEL
        ),
    ] = None,
    start_token: Annotated[
        bool | None,
        typer.Option(
            "--start-token/--no-start-token",
            help="One more token in front: positions shift by one.",
            show_default="no",
            rich_help_panel=MODEL,
        ),
    ] = None,
    dropout: Annotated[
        str | None, typer.Option(help="Share dropped in training.", show_default="0", rich_help_panel=MODEL)
    ] = None,
    frozen_mlp: Annotated[
        bool | None,
        typer.Option(
            "--frozen-mlp/--no-frozen-mlp",
            help="Leave feed-forward layers as drawn, as the paper's code does.",
            show_default="no",
            rich_help_panel=MODEL,
        ),
    ] = None,
    epochs: Annotated[
        str | None,
        typer.Option(help="Passes over the training data.", show_default="150; smoke: 7", rich_help_panel=TRAINING),
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Sequences of a step.", show_default="128", rich_help_panel=TRAINING)
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(help="Highest learning rate.", show_default="2e-4; smoke: 1e-3", rich_help_panel=TRAINING),
    ] = None,
    weight_decay: Annotated[
        str | None, typer.Option(help="AdamW's.", show_default="0.01", rich_help_panel=TRAINING)
    ] = None,
    warmup: Annotated[
        str | None,
        typer.Option(
            help="Share of steps in which the rate rises (one-cycle).", show_default="0.1", rich_help_panel=TRAINING
        ),
    ] = None,
    validate_every: Annotated[
        str | None,
        typer.Option(help="Epochs between validation losses.", show_default="2; smoke: 1", rich_help_panel=TRAINING),
    ] = None,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Matrix products in TF32 (NVIDIA GPUs).", rich_help_panel=options.MACHINE)
    ] = False,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Matrix products in bfloat16.", rich_help_panel=options.MACHINE)
    ] = False,
    stack: Annotated[
        bool | None,
        typer.Option(
            "--stack/--no-stack",
            help="Train all seeds of a setting together as one stacked model, or one after another.",
            show_default="stacked on a GPU, not on a CPU, where that is slower",
            rich_help_panel=options.MACHINE,
        ),
    ] = None,
    device: options.Device = "auto",
    out: options.Out = None,
    json_path: options.Json = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show cells, trainings, time and memory.", rich_help_panel=options.OUTPUT),
    ] = False,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Train and compute again what is stored, from the start each time.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    quiet: options.Quiet = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="A line an epoch.", rich_help_panel=options.OUTPUT)
    ] = False,
) -> int:
    """Train on short sequences, test on longer ones, by RoPE method.

    Every combination of task, method, regime and seed is a cell; methods that
    share a training share it. Finished cells and checkpoints are stored; the
    same command goes on where it stopped.

    [bold]Examples[/bold]

    longeval posgen train --preset smoke

    longeval posgen train --task cot --pe none,yarn --regime trained,swapped --pe-arg yarn.beta_fast=2 --dry-run

    longeval posgen train --task recursive,cot,semi_recursive --seeds 5 --tf32 --out runs/posgen
    """
    from longeval.cli.request import carry_out

    texts = {
        "tasks": task,
        "pe": pe,
        "regimes": regime,
        "seeds": seeds,
        "first_seed": first_seed,
        "data_seed": data_seed,
        "num_train": num_train,
        "num_valid": num_valid,
        "num_test": num_test,
        "modulus": modulus,
        "j": j,
        "k": k,
        "length": length,
        "test_length": test_length,
        "factor": factor,
        "native": native,
        "layers": layers,
        "d_model": d_model,
        "d_ff": d_ff,
        "heads": heads,
        "head_dim": head_dim,
        "theta": theta,
        "init": init,
        "dropout": dropout,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "validate_every": validate_every,
    }
    switches = {
        "stack": stack,
        "tied": tied,
        "attention_scale": attention_scale,
        "start_token": start_token,
        "frozen_mlp": frozen_mlp,
    }
    spec = _spec(preset, texts, switches, pe_arg or [], precision=_precision(tf32=tf32, bf16=bf16), device=device)
    return carry_out([spec], out=out, json_path=json_path, dry_run=dry_run, fresh=fresh, quiet=quiet, verbose=verbose)


def _spec(
    preset: str,
    texts: Mapping[str, str | None],
    switches: Mapping[str, bool | None],
    pe_args: list[str],
    **machine: Any,
) -> PosGenRequest:
    """The request: what flags say, and what they leave out as the preset has it."""
    from longeval.request import PosGenRequest, preset_fields
    from longeval.rope.build import parse_pe_args

    given = {name: _parser(name)(text) for name, text in texts.items() if text is not None}
    given |= {name: switch for name, switch in switches.items() if switch is not None}
    fields = preset_fields(preset, given | machine)
    fields["pe_args"] = parse_pe_args(pe_args, fields.get("pe", PosGenRequest.__dataclass_fields__["pe"].default))
    return PosGenRequest(**fields)


def _parser(name: str) -> Callable[[str], Any]:
    """What reads the text of a flag."""
    from longeval.request.posgen import flag_of
    from longeval.values import parse_count, parse_factor, parse_length, parse_number, split_list

    flag = flag_of(name)
    if name in ("tasks", "pe", "regimes"):
        return lambda text: split_list(text, flag=flag)
    if name in ("length", "test_length", "native"):
        return lambda text: parse_length(text, flag=flag)
    if name in ("theta", "dropout", "lr", "weight_decay", "warmup"):
        return lambda text: parse_number(text, flag=flag)
    if name == "factor":
        return lambda text: parse_factor(text, flag=flag)
    if name == "init":
        return str
    return lambda text: parse_count(text, flag=flag, least=0)


def _precision(*, tf32: bool, bf16: bool) -> str:
    """The value of `--tf32` and `--bf16`."""
    if tf32 and bf16:
        raise LongEvalError("--tf32 and --bf16: contradict each other", "Give one of them, or none for float32.")
    return "tf32" if tf32 else "bf16" if bf16 else "float32"
