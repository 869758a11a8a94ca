"""Data that several tasks lack, told together: each cause once, with the names that it concerns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from longeval.errors import MissingDataError

_MOST_DIFFERENCES = 3
"""Words in which two texts may differ and still say the same of two names."""

_PLAIN = re.compile(r"[\w./:-]+[,;:.]?")
"""A word that may be listed beside others: a name or a path, no piece of a command."""

_END = ":;,."


def missing_together(errors: Mapping[str, MissingDataError]) -> MissingDataError:
    """One error for the data of several tasks.

    Args:
        errors: Task → why it can't be built.
    """
    if len(errors) == 1:
        return next(iter(errors.values()))
    remedies = _merged([error.remedy for error in errors.values() if error.remedy])
    remedy = remedies[0] if remedies else ""
    return MissingDataError(
        f"--tasks {', '.join(errors)}: data is missing: {causes(errors)}",
        f"{remedy} The others alike." if len(remedies) > 1 else remedy,
    )


def causes(errors: Mapping[str, MissingDataError]) -> str:
    """What is missing of several tasks, without their names, each cause once."""
    return "; ".join(_merged([error.problem.removeprefix(f"--tasks {task}: ") for task, error in errors.items()]))


def _merged(texts: Sequence[str]) -> list[str]:
    """Texts that differ in a few names become one, with all the names."""
    groups: list[list[list[str]]] = []
    for text in dict.fromkeys(texts):
        words = text.split(" ")
        group = next((group for group in groups if _alike(group[0], words)), None)
        if group is None:
            groups.append([words])
        else:
            group.append(words)
    return [" ".join(_listed(words) for words in zip(*group, strict=True)) for group in groups]


def _alike(one: Sequence[str], other: Sequence[str]) -> bool:
    if len(one) != len(other):
        return False
    different = [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]]
    return len(different) <= _MOST_DIFFERENCES and all(_PLAIN.fullmatch(word) for pair in different for word in pair)


def _listed(words: Sequence[str]) -> str:
    """`a:` and `b:` as `a, b:`."""
    names = list(dict.fromkeys(words))
    end = names[-1][-1] if len(names) > 1 and names[-1][-1] in _END else ""
    return names[0] if len(names) == 1 else ", ".join(name.rstrip(_END) for name in names) + end
