"""Commands made from the classes of requests: a field becomes a flag, the docstring becomes the text of `--help`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from inspect import Parameter
from typing import Annotated, Any, TypeVar

import typer

from longeval.cli.options import (
    DryRun,
    Executor,
    Fresh,
    GpusPerWorker,
    Json,
    Out,
    Quiet,
    Show,
    Track,
    Verbose,
    Workers,
    option,
)
from longeval.errors import LongEvalError
from longeval.request import StudyRequest
from longeval.request.setting import MACHINE, OUTPUT, names, switch

R = TypeVar("R", bound=StudyRequest)
Given = dict[str, Any]
"""What was given on the command line, by field or parameter."""


def run_flags(
    *,
    out: Out = None,
    json_path: Json = None,
    dry_run: DryRun = False,
    fresh: Fresh = False,
    executor: Executor = "local",
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    track: Track = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Declares the flags of every command that carries out requests: how it is done, not what."""


RUN_FLAGS = inspect.signature(run_flags, eval_str=True).parameters
SHOW = Parameter("examples", Parameter.KEYWORD_ONLY, default=None, annotation=Show)
"""The flag of commands that can print the inputs of a model."""


def study_command(
    kind: type[StudyRequest],
    *,
    more: Sequence[Parameter] = (),
    instead: Callable[[Given, Given], int | None] | None = None,
) -> Callable[..., int]:
    """Returns the function of a command that makes a request and carries it out, for `typer.Typer.command`.

    Typer requires no flag: `StudyRequest.read` says which setting is missing, with an example.

    Args:
        kind: The class of the request.
        more: Flags of the command besides its settings and `RUN_FLAGS`.
        instead: (what was given of the settings, all other flags) → None, or the exit status if it has done something
            else than a request, as `--list` does.
    """

    def command(**given: Any) -> int:
        from longeval.cli.run import carry_out

        how = {parameter.name: given.pop(parameter.name) for parameter in run_parameters}
        others = {parameter.name: given.pop(parameter.name) for parameter in more}
        asked = {name: value for name, value in given.items() if value is not None}
        status = None if instead is None else instead(asked, how | others)
        return carry_out([make_request(kind, asked)], **how) if status is None else status

    run_parameters = [*RUN_FLAGS.values(), *([SHOW] if kind.can_show else [])]
    parameters = [*_settings(kind, marked=instead is None), *more, *run_parameters]
    command.__doc__ = kind.__doc__
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": int}
    command.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]  # typer reads it
    return command


def make_request(kind: type[R], asked: Given) -> R:
    """The request that flags ask for.

    Args:
        kind: The class of the request.
        asked: The flags that were given, by field; texts as they stand on the command line.

    Raises:
        LongEvalError: A setting is missing or refused.
    """
    asked = dict(asked)
    for name in kind.model_fields:
        words = [word for word in kind.setting(name).switches if asked.pop(word, False)]
        if len(words) > 1:
            raise LongEvalError(f"--{words[0]} and --{words[1]}: contradict each other", "Give one of them, or none.")
        if words:
            asked[name] = words[0]
        former = kind.setting(name).former
        if former is not None and asked.pop(former, False):
            asked.setdefault(name, True)
    if "pe_args" in asked and ("pe" in asked or not kind.model_fields["pe"].is_required()):
        from longeval.rope.build import parse_pe_args

        methods = names(asked.get("pe", kind.default("pe")), kind.flag("pe"))
        asked["pe_args"] = parse_pe_args(asked["pe_args"], methods)
    if "augment_args" in asked:
        from longeval.studies.finetune.augment import parse_augment_args

        augmentations = names(asked.get("augment", kind.default("augment")), kind.flag("augment"))
        asked["augment_args"] = parse_augment_args(asked["augment_args"], augmentations)
    for noun, example in (("loss", "longce.context=1k"), ("metric", "long_ppl.alpha=2")):
        if f"{noun}_args" in asked:
            from longeval.parameters import parameter_texts

            asked[f"{noun}_args"] = parameter_texts(
                asked[f"{noun}_args"], flag=f"--{noun}-arg", form=f"{noun.upper()}.PARAMETER=VALUE", example=example
            )
    if "vllm_args" in asked:
        from longeval.backends.vllm.options import parse_vllm_args

        asked["vllm_args"] = parse_vllm_args(asked["vllm_args"])
    return kind.read(asked)


def parameter(name: str, kind: Any, option: Any, default: Any) -> Parameter:
    """A parameter that typer makes a flag of."""
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def refuse_beside(flag: str, context: typer.Context, *heeded: str) -> None:
    """Raises LongEvalError for a setting on the command line that would be ignored beside a flag such as `--list`.

    Args:
        flag: The flag.
        context: Typer's context of the command.
        heeded: The parameters that are not ignored, by name; the flag's own among them.
    """
    for one in context.command.params:
        source = context.get_parameter_source(str(one.name))
        if one.name in heeded or source is None or source.name != "COMMANDLINE":
            continue
        given = max(one.opts, key=len) if one.param_type_name == "option" else str(one.metavar).partition("[")[0]
        raise LongEvalError(f"{flag}: {given} would be ignored", "Leave one of the two out.")


def _settings(kind: type[StudyRequest], *, marked: bool) -> list[Parameter]:
    """The parameters of all settings; those of the panels that other commands have too come last.

    `marked`: what a request needs is marked as required.
    """
    found: list[tuple[str | None, Parameter]] = []
    for name in kind.model_fields:
        found += [(kind.setting(name).panel, one) for one in _parameters(kind, name, marked)]
    if kind.presets:
        told = f"Where defaults come from; flags override it. {kind.presets_help}".strip()
        found.append((None, parameter("preset", str, typer.Option("--preset", help=told), next(iter(kind.presets)))))
    last = {MACHINE: 1, OUTPUT: 2}
    return [one for _, one in sorted(found, key=lambda item: last.get(item[0] or "", 0))]


def _parameters(kind: type[StudyRequest], name: str, marked: bool) -> Iterator[Parameter]:
    """The parameters of a setting: one, or one for each of its switches."""
    setting = kind.setting(name)
    if setting.switches:
        for word, told in setting.switches.items():
            yield parameter(word, bool, option(kind, name, flags=f"--{word}", help=told), False)
    elif setting.read is switch:
        yield _yes_or_no(kind, name)
        if setting.former is not None:
            flag = f"--{setting.former.replace('_', '-')}"
            yield parameter(setting.former, bool, option(kind, name, flags=flag, hidden=True), False)
    elif setting.repeated:
        yield parameter(name, list[str] | None, option(kind, name), None)
    elif kind.model_fields[name].is_required():
        told = f"{setting.help} [dim red]\\[required][/]" if marked else setting.help  # as typer itself marks it
        yield parameter(name, str | None, option(kind, name, help=told), None)
    else:
        default = _shown(kind, name)
        if default is not None and kind.presets:  # what is not given is the preset's: the default is only shown
            yield parameter(name, str | None, option(kind, name, show_default=default), None)
        else:
            yield parameter(name, str if default is not None else str | None, option(kind, name), default)


def _yes_or_no(kind: type[StudyRequest], name: str) -> Parameter:
    """The parameter of a setting that is true or false: `--x` if it is false by default, otherwise `--x/--no-x`."""
    default = kind.default(name)
    if default is False and not kind.presets:
        return parameter(name, bool, option(kind, name), False)
    yes = kind.flag(name)
    no = kind.setting(name).off or yes.replace("--", "--no-", 1)
    told = {} if default is None else {"show_default": (yes if default else no).removeprefix("--")}
    return parameter(name, bool | None, option(kind, name, flags=f"{yes}/{no}", **told), None)


def _shown(kind: type[StudyRequest], name: str) -> str | None:
    """The default of a field as a user would give it, and after it that of each preset that has another."""
    default = kind.default(name)
    if default is None:
        return None
    others = [f"; {preset}: {_as_given(values[name])}" for preset, values in kind.presets.items() if name in values]
    return _as_given(default) + "".join(others)


def _as_given(value: Any) -> str:
    """A value as a user would give it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
