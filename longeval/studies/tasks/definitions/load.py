"""From the name of a task to lm-eval's Task object, with its data.

What runs: `!function` in a task file names Python that lies beside that file. For our tasks that is ours, for lm-eval's
tasks lm-eval's; that of a YAML file or folder that users name themselves runs only with --trust-remote-code. Templates
are rendered in a sandbox. Nothing that comes with a data set or a metric of the hub is ever executed, and tasks that
would run what a model writes are refused.

lm-eval's RULER generators are changed while they run. As they are (0.4.13, tasks/ruler) they make 500 samples for each
length whatever the limit; for a window that is too short for their shortest text, ruler_vt, ruler_cwe and ruler_fwe
search forever, in a loop that even Ctrl-C doesn't end; and every one of them tries to download nltk's punkt_tab, which
only the essays need. The samples stay theirs: the k that are made here are the first k of their 500.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.checks import check_built, check_task_file, explain
from longeval.studies.tasks.definitions.entries import LM_EVAL, OURS
from longeval.studies.tasks.definitions.files import (
    Code,
    Config,
    FunctionName,
    own_functions,
    read_config,
    with_functions,
)
from longeval.studies.tasks.definitions.guards import (
    changed,
    forbid_metric_scripts,
    hub_offline,
    quiet,
    seeded,
    why_unreachable,
)
from longeval.studies.tasks.definitions.index import Index
from longeval.studies.tasks.definitions.needs import RULER_GENERATORS, RULER_NEEDS, hub_ids, ruler_module
from longeval.studies.tasks.definitions.templates import use_sandbox
from longeval.studies.tasks.setting import Setting

_STRUCTURE = ("tag", "group", "task_list")
"""Keys of a group's change that are no keys of the task."""

_BABILONG = (128, 64, 32, 16, 8, 4, 2, 1)
"""Thousands of tokens for which BABILong has a form of its texts."""

_ALL = 500
"""Samples that RULER's generators make."""

_SLACK = 1.1
"""Texts of one kind differ in length, since their words are drawn."""

_EXAMPLE = 500
"""ruler_vt opens with an example of up to so many tokens."""

logger = logging.getLogger(__name__)


def load_task(
    leaf: str,
    *,
    metadata: Mapping[str, Any],
    include: Sequence[str] = (),
    index: Index | None = None,
    code: Code = "refused",
) -> Any:
    """Builds a task: reads or makes its data, and tries its templates on the first sample.

    Args:
        leaf: A name of `Resolved.leaves`.
        metadata: What its `custom_dataset` function gets as keyword arguments beside its YAML's own metadata:
            `setting` (a `Setting`), and for lm-eval's RULER and BABILong `tokenizer` (see `tokenizer_folder`) and
            `max_seq_lengths` (a list with the window).
        include: Folders with more task files.
        index: Of the same folders, where there is one already.
        code: What becomes of functions that a user's file names.

    Returns:
        An `lm_eval.api.task.Task`.

    Raises:
        LongEvalError: If it is no task, isn't run here, its file is broken (file, line, what), its data or a package
            is missing (how to get it), or its own Python fails (file, line, exception).
    """
    index = Index(include) if index is None else index
    entry = index.entry(leaf)
    if entry.kind != "task":
        raise LongEvalError(f"--tasks {leaf}: is a group", f"Its members: {', '.join(entry.members)}.")
    check_runs(leaf, index)
    config = task_config(leaf, index)
    if code == "refused":
        _refuse_code(leaf, config)
    with quiet():
        if entry.source != LM_EVAL and entry.within is None and entry.path is not None:
            check_task_file(entry.path, config)
        forbid_metric_scripts()
        use_sandbox()
        ids = () if entry.source == OURS else [name for name in hub_ids(entry.needs) if not os.path.isdir(name)]
        unreachable = next((reason for name in ids if (reason := why_unreachable(name)) is not None), None)
        setting = metadata.get("setting")
        seed = setting.seed if isinstance(setting, Setting) else 0
        try:
            with hub_offline(unreachable is not None), seeded(seed), _ruler(config, metadata):
                task = _build(config, code, metadata)
                check_built(entry, task)
        except LongEvalError:
            raise
        except Exception as error:
            raise explain(entry, config, error, unreachable) from error
    return task


def _build(config: Config, code: Code, metadata: Mapping[str, Any]) -> Any:
    from lm_eval.tasks._factory import TaskFactory
    from lm_eval.tasks._index import Entry, Kind

    given = dict(metadata)
    lengths = given.get("max_seq_lengths")
    if str(config.get("dataset_path")).startswith("RMT-team/babilong") and isinstance(lengths, list):
        # BABILong calls a form of its data what RULER calls a list of lengths: the longest form within the window.
        fitting = [size for size in _BABILONG if size * 1024 <= min(lengths)]
        given["max_seq_lengths"] = f"{fitting[0] if fitting else 0}k"
    whole = with_functions(config, code)
    entry = Entry(name=str(config["task"]), kind=Kind.TASK, yaml_path=None, cfg=whole)
    return TaskFactory(meta=given).build(entry, overrides=None, registry={})


def task_config(leaf: str, index: Index) -> Config:
    """The keys of a task as its files say them, includes and changes of its group merged; no code runs."""
    entry = index.entry(leaf)
    if entry.within is None:
        return read_config(str(entry.path))
    if entry.base is None:
        return {**entry.changes, "task": entry.name}
    changes = {key: value for key, value in entry.changes.items() if key not in _STRUCTURE}
    return {**task_config(index.scoped(entry, entry.base), index), **changes}


def check_runs(leaf: str, index: Index) -> None:
    """Raises LongEvalError for a task that isn't run here; known from its file alone."""
    refusal = index.entry(leaf).refusal
    if refusal is not None:
        raise LongEvalError(f"--tasks {leaf}: not run: {refusal}", "Leave it out, or run it with lm-eval itself.")


def check_code(leaf: str, index: Index, *, trusted: bool, dry_run: bool) -> None:
    """Refuses a task whose Python may not run; logs which Python it is where it may."""
    config = task_config(leaf, index)
    if not trusted:
        _refuse_code(leaf, config)
    elif functions := own_functions(config):
        does = "would run (not in a dry run)" if dry_run else "runs"
        named = _named(functions)
        logger.warning("%s %s Python that its file names: !function %s", index.entry(leaf).title, does, named)


def _refuse_code(leaf: str, config: Config) -> None:
    """Raises LongEvalError for a task that names Python of the user's."""
    if functions := own_functions(config):
        raise LongEvalError(
            f"--tasks {leaf}: runs Python that its file names: !function {_named(functions)}",
            "Read that code, and if you trust it add --trust-remote-code.",
        )


def _named(functions: Sequence[FunctionName]) -> str:
    """`scoring.score (tasks/mine.yaml) and 2 more`."""
    names = [f"{name.qualified} ({name.file})" for name in functions]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextlib.contextmanager
def _ruler(config: Config, metadata: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block one of RULER's tasks is built with as many samples as asked for; does nothing for other tasks.

    Raises:
        LongEvalError: If the window is too short for the task's shortest text.
    """
    path = ruler_module(config)
    if path is None:
        yield
        return
    import nltk  # type: ignore[import-untyped]  # it has no annotations

    # by lm-eval's own function: a module that is imported otherwise would be loaded once more, without our change
    from lm_eval.tasks._yaml_loader import _load_module_with_cache

    name, lengths = str(config["task"]), metadata["max_seq_lengths"]
    setting = metadata.get("setting")
    num_samples, window = (
        (setting.num_samples, setting.length) if isinstance(setting, Setting) else (_ALL, min(lengths))
    )
    with changed(
        nltk, download=lambda *args, **kwargs: False
    ):  # all their task files include that of niah_single_1, and import its Python
        _load_module_with_cache(path.with_name("niah_utils.py"))
        module: Any = _load_module_with_cache(path)
    if "punkt_tab" in RULER_NEEDS.get(name, "punkt_tab"):  # a file that includes one may call it otherwise
        _fetch_punkt_tab()
    with seeded(0):  # what it draws isn't missing from the samples' own stream
        shortest = _shortest(path.stem, module, metadata["tokenizer"])
    if min(lengths) < shortest:
        template = window - min(lengths)
        rest = f", less {template} for the chat template," if template else ""
        raise LongEvalError(
            f"--tasks {name}: a window of {window} tokens{rest} is too short for its shortest text with this tokenizer",
            f"Use --lengths of at least {shortest + template}.",
        )
    attribute = RULER_GENERATORS[path.stem]
    changes: dict[str, Any] = {attribute: _fewer(getattr(module, attribute), num_samples)}
    if hasattr(module, "RNG"):  # cwe shuffles with a generator of its own, which goes on from build to build
        changes["RNG"] = random.Random(42)  # noqa: S311  # text, no secrets
    with changed(module, **changes):
        yield


def _fewer(original: Callable[..., Any], num_samples: int) -> Callable[..., Any]:
    def generate(*args: Any, **kwargs: Any) -> Any:
        return original(*args, num_samples=min(kwargs.pop("num_samples", _ALL), num_samples), **kwargs)

    return generate


def _shortest(generator: str, module: Any, folder: str) -> int:
    """Tokens below which a generator would never end; niah and qa end by themselves, with a reason."""
    from transformers import AutoTokenizer

    if generator not in ("vt_utils", "cwe_utils", "fwe_utils"):
        return 1
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def count(text: str) -> int:
        return len(tokenizer(text).input_ids)

    if generator == "vt_utils":
        example = count(module.generate_input_output(5, 1, 4, is_icl=True)[0])
        if _SLACK * example + 30 > _EXAMPLE:
            raise LongEvalError(
                f"--tasks ruler_vt: with this tokenizer its example has {example} tokens, over lm-eval's {_EXAMPLE}",
                "Use variable_tracking, longeval's own task of this kind.",
            )
        return int(_SLACK * (count(module.generate_input_output(10, 1, 4)[0]) + _EXAMPLE)) + 30 + 40
    if generator == "cwe_utils":
        short = int(_SLACK * sum(count(text) for text in module.generate_input_output(10, 2048)[:2])) + 130
        long = int(_SLACK * sum(count(text) for text in module.generate_input_output(10, 4096)[:2])) + 130
        return short if long <= 4096 else long
    return int(_SLACK * count(module.TEMPLATE)) + 512  # ruler_fwe draws its words from length/50 coded ones


@functools.cache
def _fetch_punkt_tab() -> None:
    """As lm-eval does when it imports a generator. Where it fails the generator says what is missing."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        nltk.download("punkt_tab", quiet=True, print_error_to=io.StringIO())
