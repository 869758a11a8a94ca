"""Metrics of LongPPL (Fang et al. 2024, arXiv 2410.23771): perplexity over key tokens, and the number of these."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from longeval.metrics.base import Metric, Value, register
from longeval.stats.bootstrap import interval, resampling_units
from longeval.store.keys import KEY_NLL, KEYS, KeyNll, Keys
from longeval.store.nll import LARGEST_EXPONENT


def _long_ppl(found: KeyNll, protocol: str | None, params: Mapping[str, Any]) -> Value | None:
    if not found.num_keys:
        return None
    mean = found.mean()
    value = float(np.exp(mean)) if mean < LARGEST_EXPONENT else math.inf
    drawn = interval(resampling_units(found.nll, protocol, found.key_S), seed=params["seed"])
    if drawn is None:
        return Value(value=value)
    how = dataclasses.asdict(drawn)
    return Value(value=value, low=how.pop("low"), high=how.pop("high"), how=how)


def _key_tokens(keys: Keys, protocol: str | None, params: Mapping[str, Any]) -> Value:
    return Value(value=float(keys.is_key_S().sum()))


LONG_PPL = register(
    Metric(
        name="long_ppl",
        artefact=KEY_NLL,
        higher_is_better=False,
        number="significant",
        definition="Exponential of the mean negative log-likelihood of the key tokens, which need a long context.",
        function=_long_ppl,
    )
)

KEY_TOKENS = register(
    Metric(
        name="key_tokens",
        artefact=KEYS,
        higher_is_better=None,
        number="significant",
        definition="Number of key tokens of the evaluator under the published thresholds, α = 2 and β = −2.",
        function=_key_tokens,
    )
)
