"""Marks the answers of the synthetic tasks.

`recall` is the share of the expected strings that the answer contains, as RULER counts (arXiv 2404.06654), but each as
a whole number or word: 12345 is not in 9123456. An answer that lists all it saw has full recall, so there is `accuracy`
besides: with k strings asked for, the first k different ones of their kind that the answer gives must be the expected
ones, in any order. What a base model rambles on with after that doesn't count, nor does the question said again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_IDENTIFIER = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_GROUPED = re.compile(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,]*\d)")
"""A number with commas between thousands."""


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The metrics of one answer: `accuracy`, and `recall` where several strings are asked for.

    Args:
        doc: A row of the data set (see `rows.make_row`).
        results: The answer, alone in a list.
    """
    answer = results[0]
    expected = {text.casefold() for text in doc["answers"]}
    given = list(dict.fromkeys(_candidates(answer, doc)))[: len(expected)]
    accuracy = float(set(given) == expected)
    if len(expected) == 1:
        return {"accuracy": accuracy}
    found = set(_whole(answer, doc["form"]))
    return {"recall": len(expected & found) / len(expected), "accuracy": accuracy}


def _candidates(answer: str, doc: dict[str, Any]) -> Iterator[str]:
    """Strings of the kind asked for, in order: numbers of as many digits, identifiers, names or words of the text."""
    question = doc["question"].casefold()
    text = doc["input"][: -len(doc["question"])]
    length = len(doc["answers"][0])
    for found in _whole(answer, doc["form"]):
        if len(found) != length or found in question:
            continue
        if doc["form"] == "name":
            # Only in capitals is it a name: five letters are also what many a word of the filler has.
            if re.search(rf"\b{found.upper()}\b", text):
                yield found
        elif doc["form"] != "word" or re.search(rf"\b{found}\b", text):
            yield found


def _whole(answer: str, form: str) -> Iterator[str]:
    """The numbers, identifiers or words of an answer, whole and in lower case."""
    if form == "number":
        answer = _GROUPED.sub(lambda match: match.group().replace(",", ""), answer)
        yield from re.findall(r"\d+", answer)
    elif form == "identifier":
        yield from (match.casefold() for match in _IDENTIFIER.findall(answer))
    else:
        yield from (match.casefold() for match in re.findall(r"[^\W\d_]+", answer))
