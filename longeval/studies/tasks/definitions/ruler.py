"""Makes lm-eval's RULER generators fit for a run: as many samples as asked for, no endless search, few downloads.

As they are (lm-eval 0.4.13, tasks/ruler) they make 500 samples for each length whatever the limit; for a window that is
too short for their shortest text, ruler_vt, ruler_cwe and ruler_fwe search forever, in a loop that even Ctrl-C doesn't
end; and every one of them tries to download nltk's punkt_tab, which only the essays need. The samples themselves stay
theirs: the first k of 500, of the same seed, are the k that are made here.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.files import Config, FunctionName
from longeval.studies.tasks.definitions.guards import seeded
from longeval.studies.tasks.definitions.needs import RULER_NEEDS

_GENERATORS = {
    "niah_utils": "generate_samples",
    "qa_utils": "generate_samples",
    "vt_utils": "sys_vartrack_w_noise_random",
    "cwe_utils": "sys_word_pair_random",
    "fwe_utils": "sys_kwext",
}
"""Function that makes the samples, by the module that the task file names."""
_ALL = 500
_SLACK = 1.1
"""Texts of one kind differ in length, since their words are drawn."""
_EXAMPLE = 500
"""ruler_vt opens with an example of up to so many tokens."""


def generator_module(config: Config) -> str | None:
    """The Python file that makes a RULER task's samples; None if the task isn't lm-eval's RULER."""
    function = config.get("custom_dataset")
    if not isinstance(function, FunctionName):
        return None
    module = function.qualified.split(".")[0]
    folder = os.path.dirname(function.file)
    if module not in _GENERATORS or not folder.endswith(os.path.join("lm_eval", "tasks", "ruler")):
        return None
    return os.path.join(folder, f"{module}.py")


@contextlib.contextmanager
def prepared(
    name: str, path: str, *, folder: str, lengths: list[int], num_samples: int | None, window: int | None = None
) -> Iterator[None]:
    """Inside the block a RULER task is built with at most `num_samples` samples of each length.

    Args:
        name: The task's own name, `niah_single_1`.
        path: `generator_module` of its config.
        folder: The tokenizer's folder.
        lengths: Tokens that a sample may have, prompt and answer.
        num_samples: How many; None: 500.
        window: Tokens of the window that was asked for, where a chat template takes a part of it.

    Raises:
        LongEvalError: If a window is too short for the task's shortest text.
    """
    # by lm-eval's own function: a module that is imported otherwise would be loaded once more, without our change
    from lm_eval.tasks._yaml_loader import _load_module_with_cache

    with _without_downloads():  # all their task files include that of niah_single_1, and import its Python
        _load_module_with_cache(Path(path).with_name("niah_utils.py"))
        module: Any = _load_module_with_cache(Path(path))
    if "punkt_tab" in RULER_NEEDS[name]:
        _fetch_punkt_tab()
    with seeded(0):  # what it draws isn't missing from the samples' own stream
        shortest = _shortest(module, folder)
    if min(lengths) < shortest:
        template = 0 if window is None else window - min(lengths)
        rest = f", less {template} for the chat template," if template else ""
        raise LongEvalError(
            f"--tasks {name}: a window of {min(lengths) + template} tokens{rest} is too short for its shortest text "
            "with this tokenizer",
            f"Use --lengths of at least {shortest + template}.",
        )
    attribute = _GENERATORS[module.__name__.rpartition(".")[2]]
    changes: dict[str, Any] = {attribute: _fewer(getattr(module, attribute), num_samples)}
    if hasattr(module, "RNG"):  # cwe shuffles with a generator of its own, which goes on from build to build
        changes["RNG"] = random.Random(42)  # noqa: S311  # text, no secrets
    originals = {name: getattr(module, name) for name in changes}
    vars(module).update(changes)
    try:
        yield
    finally:
        vars(module).update(originals)


def _fewer(original: Callable[..., Any], num_samples: int | None) -> Callable[..., Any]:
    def generate(*args: Any, **kwargs: Any) -> Any:
        asked = kwargs.pop("num_samples", _ALL)
        return original(*args, num_samples=asked if num_samples is None else min(asked, num_samples), **kwargs)

    return generate


def _shortest(module: Any, folder: str) -> int:
    """Tokens below which a generator would never end; niah and qa end by themselves, with a reason."""
    from transformers import AutoTokenizer

    name = module.__name__.rpartition(".")[2]
    if name not in ("vt_utils", "cwe_utils", "fwe_utils"):
        return 1
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def count(text: str) -> int:
        return len(tokenizer(text).input_ids)

    if name == "vt_utils":
        example = count(module.generate_input_output(5, 1, 4, is_icl=True)[0])
        if _SLACK * example + 30 > _EXAMPLE:
            raise LongEvalError(
                f"--tasks ruler_vt: with this tokenizer its example has {example} tokens, over lm-eval's {_EXAMPLE}",
                "Use variable_tracking, longeval's own task of this kind.",
            )
        return int(_SLACK * (count(module.generate_input_output(10, 1, 4)[0]) + _EXAMPLE)) + 30 + 40
    if name == "cwe_utils":
        short = int(_SLACK * sum(count(text) for text in module.generate_input_output(10, 2048)[:2])) + 130
        long = int(_SLACK * sum(count(text) for text in module.generate_input_output(10, 4096)[:2])) + 130
        return short if long <= 4096 else long
    return int(_SLACK * count(module.TEMPLATE)) + 512  # ruler_fwe draws its words from length/50 coded ones


@functools.cache
def _fetch_punkt_tab() -> None:
    """What lm-eval does when it imports the generator; here only for tasks that split essays into sentences, once.

    Where it fails nltk writes why to stderr, and the generator raises an error that says what is missing.
    """
    import nltk  # type: ignore[import-untyped]  # it has no annotations

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        nltk.download("punkt_tab", quiet=True, print_error_to=io.StringIO())


@contextlib.contextmanager
def _without_downloads() -> Iterator[None]:
    import nltk

    original = nltk.download
    nltk.download = lambda *args, **kwargs: False
    try:
        yield
    finally:
        nltk.download = original
