"""Metrics of token NLLs: perplexity with its interval, and bits per byte."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from longeval.metrics.base import Metric, Value, register
from longeval.stats.bootstrap import interval, resampling_units
from longeval.store.nll import LARGEST_EXPONENT, NLL, TokenNll


def _perplexity(nll: TokenNll, protocol: str | None, params: Mapping[str, Any]) -> Value:
    mean = nll.mean(protocol)
    value = float(np.exp(mean)) if mean < LARGEST_EXPONENT else math.inf
    found = interval(resampling_units(nll, protocol), seed=params["seed"])
    if found is None:
        return Value(value=value)
    how = dataclasses.asdict(found)
    return Value(value=value, low=how.pop("low"), high=how.pop("high"), how=how)


def _bits_per_byte(nll: TokenNll, protocol: str | None, params: Mapping[str, Any]) -> Value | None:
    bits = nll.bits_per_byte()
    return None if bits is None else Value(value=bits)


PERPLEXITY = register(
    Metric(
        name="perplexity",
        artefact=NLL,
        higher_is_better=False,
        number="significant",
        definition="Exponential of the mean negative log-likelihood of the scored tokens.",
        function=_perplexity,
    )
)

BITS_PER_BYTE = register(
    Metric(
        name="bits_per_byte",
        artefact=NLL,
        higher_is_better=False,
        number="significant",
        definition="Bits of all scored tokens over their UTF-8 bytes, a unit that does not depend on the tokenizer.",
        function=_bits_per_byte,
    )
)
