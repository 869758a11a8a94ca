"""How far an answer's words are a reference's, for L-Eval's open-ended tasks: ROUGE for summaries, F1 for answers.

L-Eval (An et al. 2023, arXiv 2307.11088) reports both, and says itself that n-grams judge long answers badly. As there:
rouge_score's F-measures without stemming; F1 of words as for SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250). All are
from 0 to 1. Functions `(doc, results) → {metric: value}` are for lm-eval's `process_results`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

_ROUGE = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rouge_l"}
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Shared words, pairs of words, and the longest common subsequence, each as the F-measure of both texts."""
    scores = _scorer().score(doc["reference"], results[0])
    return {metric: float(scores[name].fmeasure) for name, metric in _ROUGE.items()}


def f1(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """F1 of the bags of words."""
    return {"f1": token_f1(results[0], doc["reference"])}


def token_f1(answer: str, reference: str) -> float:
    """F1 of two texts as bags of words, in lower case, without punctuation and without a, an, the.

    With c words in common, counted as often as both have them: 2c / (words of the answer + words of the reference).
    Two texts without any word are equal, which is 1.
    """
    given, right = content_words(answer), content_words(reference)
    if not given or not right:
        return float(given == right)
    common = sum((Counter(given) & Counter(right)).values())
    return 2 * common / (len(given) + len(right))


def content_words(text: str) -> list[str]:
    """Words in lower case, without punctuation and without articles, in order."""
    return re.sub(r"\b(?:a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


@cache
def _scorer() -> Any:
    from rouge_score import rouge_scorer  # type: ignore[import-untyped]

    return rouge_scorer.RougeScorer(list(_ROUGE), use_stemmer=False)
