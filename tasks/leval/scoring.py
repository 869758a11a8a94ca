"""Right and wrong in L-Eval's closed-ended tasks, by L-Eval's own rules (An et al. 2023, arXiv 2307.11088).

Scores of these tasks were published with rules that are sometimes crude (the first capital A, B, C or D anywhere in an
answer is its choice, so "Because …" chooses B). They are kept, since a stricter or kinder reader would make scores that
can't be compared; where a rule here is not that of L-Eval's repository, a comment says so.

Each task has a function `(doc, results) → {metric: value}` for lm-eval's `process_results`. Before it stand the readers
of answers: pure functions of a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_PLACES = ("first", "second", "third")
_GUESS = "A"
# What may stand between an answer of codeU and the end of the sentence, and isn't counted among its last words.
_FILLER = re.compile(r"\b(?:the value of|the result of|of the code|would be|will be|printed|is)\b")
_FINAL = "the final output"
_MARGIN_WORDS = 3


def reference_letters(reference: str) -> frozenset[str]:
    """Letters A–D of the first word of a reference: `(B) They …` is B, `ACD` is A, C and D."""
    return frozenset(re.findall("[A-D]", reference.split(maxsplit=1)[0]))


def chosen_letter(answer: str) -> str:
    """The first letter A–D of an answer; none counts as A, and an empty answer is no letter."""
    if not answer.strip():
        return ""
    found = re.search("[A-D]", answer)
    return found[0] if found else _GUESS


def chosen_letters(answer: str) -> frozenset[str]:
    """All letters A–D that an answer chooses, where several may be right; none counts as A.

    They are its leading run of letters (`ACD`); where that is shorter than two, it and the letters that stand before a
    space, a point or a closing bracket (`A) and C)`), up to where a new "Question" begins.
    """
    answer = answer.lstrip()
    if not answer:
        return frozenset()
    run = re.match("[A-D]*", answer)
    assert run is not None
    letters = set(run[0])
    if len(run[0]) < 2:
        letters.update(re.findall(r"[A-D](?=[\s.)])", answer[run.end() :].partition("Question")[0]))
    return frozenset(letters or _GUESS)


def final_number(answer: str) -> str:
    """The number an answer ends with, its digits before any point; empty where there is none.

    It is in the word after "The answer is", else in the last word with a digit of the first paragraph.
    """
    said = re.search(r"The answer is (\S+)", answer)
    words = [said[1]] if said else re.findall(r"\S*[0-9]\S*", answer.split("\n\n")[0])
    if not words:
        return ""
    digits = re.sub("[^0-9]", "", words[-1].partition(".")[0])
    return digits.lstrip("0") or digits[:1]  # equal as numbers: 007 is 7, and 0 stays 0


def verdicts(answer: str) -> tuple[bool | None, bool | None]:
    """The two verdicts of `True [fact: False]`: on the story, and on the real world; None where unreadable."""
    story, _, world = answer.lower().partition("[fact:")
    return _verdict(story), _verdict(world.partition("]")[0])


def _verdict(text: str) -> bool | None:
    found = re.search("true|false", text)
    return None if found is None else found[0] == "true"


def squeezed(text: str) -> str:
    """A text without its spaces and its upper case."""
    return "".join(text.split()).lower()


def plain_output(text: str) -> str:
    """What code printed, without quotes, commas, backslashes, ".0" and the space between brackets."""
    for mark in ("'", '"', ",", "\\", ".0"):
        text = text.replace(mark, "")
    text = re.sub(r"\s+", " ", text)
    for spaced in ("] [", "[ [", "] ]"):
        text = text.replace(spaced, spaced.replace(" ", ""))
    return text


def last_words(answer: str, count: int) -> str:
    """The part of an answer about code that holds its result.

    That is its last `count` words, or, where it says "the final output", the first `count` words after that.
    """
    # L-Eval drops the letters of fillers inside other words, too ("list" → "lt"), but not in the reference, which can
    # then not be found; here a filler is a whole word. As there, space at a border makes an empty word, which counts.
    text = _FILLER.sub(" ", plain_output(answer))
    _, found, after = text.rpartition(_FINAL)
    words = re.split(r"\s+", after if found else text)
    return " ".join(words[:count] if found else words[-count:])


def choice(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """For quality and toefl: one letter, which must be the reference's."""
    return {"accuracy": float({chosen_letter(results[0])} == reference_letters(doc["reference"]))}


def choices(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """For coursera: the right letters score 1; some of them, and no wrong one, 0.25."""
    chosen, right = chosen_letters(results[0]), reference_letters(doc["reference"])
    exact = float(chosen == right)
    return {"accuracy": 0.25 if chosen and chosen < right else exact, "exact_match": exact}


def number(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """For gsm100: the same whole number."""
    given = final_number(results[0])
    return {"accuracy": float(given != "" and given == final_number(doc["reference"]))}


def loyalty_and_fact(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """For sfiction: half a point for each right verdict, on the story and on the world; unreadable is wrong."""
    given, right = verdicts(results[0]), verdicts(doc["reference"])
    loyalty, fact = (float(g is not None and g == r) for g, r in zip(given, right, strict=True))
    return {"accuracy": (loyalty + fact) / 2, "accuracy_loyalty": loyalty, "accuracy_fact": fact}


def topic(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """For topic_retrieval: the topic's name is in the answer; also by whether it was the first, second or third."""
    found = float(squeezed(doc["reference"]) in squeezed(results[0]))
    return {"accuracy": found, f"accuracy_{_PLACES[doc['index']]}": found}


def output(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """For codeu: what the code prints is in the answer's last words: as many as the reference has, and three more."""
    reference = doc["reference"]
    words = last_words(results[0], len(reference.split()) + _MARGIN_WORDS)
    # The same fillers go from both, so that a reference with "is" in it can be found.
    return {"accuracy": float(squeezed(_FILLER.sub(" ", plain_output(reference))) in squeezed(words))}
