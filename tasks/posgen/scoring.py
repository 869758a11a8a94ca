"""Marks the answers of the PosGen tasks: are the next digits of the sequence the right ones?

`accuracy` is 1 if the first digit of the answer is right: one step of the rule, as in PosGen's teacher-forced accuracy.
`exact_match` is 1 if all digits asked for are, each from the model's own ones before it, in order and first in the
answer; what it says after them doesn't count.
"""

from __future__ import annotations

import re
from typing import Any


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The metrics of one answer.

    Args:
        doc: A row of the data set; `answers` are the digits.
        results: The answer, alone in a list.
    """
    expected = doc["answers"]
    given = re.findall(r"[0-9]+", results[0])
    if given and len(given[0]) == len(expected):
        given = list(given[0])  # written without blanks; any other number of several digits is none of the sequence
    return {
        "accuracy": float(given[:1] == expected[:1]),
        "exact_match": float(given[: len(expected)] == expected),
    }
