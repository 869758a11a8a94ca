"""What attention should have multiplied, computed without the package, and what it did multiply, seen from outside.

The reference: frequencies in plain Python floats from the papers' formulas (RoPE: arXiv 2104.09864; YaRN: 2309.00071;
Resonance: 2403.00071; LongRoPE: 2402.13753; Llama 3.1's blend), and rotation as a product of complex numbers.

The observation: queries and keys as they reach `scaled_dot_product_attention`, per attention module, and once more from
the same inputs with every cosine 1 and every sine 0. The second are the unrotated ones, whatever a family does before
(norms, biases, fused projections), so nothing has to be known about its code.

Shapes: B batch (1), H heads, T tokens, D head_dim, F features.
"""

from __future__ import annotations

import functools
import inspect
import math
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotation:
    """What one layer should rotate by."""

    theta_F: tuple
    """rad/token."""
    period_F: tuple | None = None
    """Tokens; the position is reduced modulo these where they are given."""
    factor: float = 1.0
    """Multiplies cosine and sine."""

    def angles(self, num_tokens):
        """Radians at positions 0 … num_tokens−1, (T, F)."""
        return _angles(self.theta_F, self.period_F, num_tokens)


@functools.cache
def _angles(theta_F, period_F, num_tokens):
    if period_F is None:
        return np.array([[m * theta for theta in theta_F] for m in range(num_tokens)])
    return np.array([[2 * math.pi * (m % p) / p for p in period_F] for m in range(num_tokens)])


def plain(dims, base):
    return tuple(base ** (-2 * j / dims) for j in range(dims // 2))


def yarn(dims, base, native, s):
    """Features that turn 32 times or more in the native length stay, those that turn once or less are divided by s."""

    def feature_with(turns):
        return dims * math.log(native / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(math.floor(feature_with(32)), 0), min(math.ceil(feature_with(1)), dims - 1)
    if high <= low:
        high = low + 0.001
    ramp = [min(max((j - low) / (high - low), 0.0), 1.0) for j in range(dims // 2)]
    return tuple((1 - r) * t + r * t / s for t, r in zip(plain(dims, base), ramp, strict=True))


def llama3(dims, base, native, s, low=1.0, high=4.0):
    """Wavelengths below native/high stay, those above native/low are stretched by s, with a blend between."""
    out = []
    for theta in plain(dims, base):
        turns = native * theta / (2 * math.pi)
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        out.append(share * theta + (1 - share) * theta / s)
    return tuple(out)


def rotation(method, dims, base, native, s):
    """The rotation of `none`, `resonance`, `pi`, `yarn` or `resonance_yarn`, set up for s times the native length."""
    if method.endswith("yarn"):
        unrounded = Rotation(theta_F=yarn(dims, base, native, s), factor=0.1 * math.log(s) + 1)
    elif method == "pi":
        unrounded = Rotation(theta_F=tuple(theta / s for theta in plain(dims, base)))
    else:
        unrounded = Rotation(theta_F=plain(dims, base))
    return rounded(unrounded) if method.startswith("resonance") else unrounded


def rounded(by):
    """Every wavelength 2π/θ to the nearest whole number of tokens."""
    period_F = tuple(round(2 * math.pi / theta) for theta in by.theta_F)
    return Rotation(theta_F=tuple(2 * math.pi / p for p in period_F), period_F=period_F, factor=by.factor)


def shipped_rotation(dims, base, given, native, reach, num_tokens):
    """The rotation that a model's own `rope_parameters` stand for, in a sequence of `num_tokens`.

    `native` is the length before the scaling, `reach` the length that it was stretched to.
    """
    kind, s = given.get("rope_type", "default"), given.get("factor")
    if kind == "default":
        return Rotation(theta_F=plain(dims, base))
    if kind == "linear":
        return rotation("pi", dims, base, native, s)
    if kind == "llama3":
        return Rotation(theta_F=llama3(dims, base, native, s, given["low_freq_factor"], given["high_freq_factor"]))
    if kind == "yarn":
        factor = 0.1 * math.log(s) + 1
        if "mscale" in given:  # DeepSeek's quotient
            factor = (0.1 * given["mscale"] * math.log(s) + 1) / (0.1 * given["mscale_all_dim"] * math.log(s) + 1)
        return Rotation(theta_F=yarn(dims, base, native, s), factor=factor)
    assert kind == "longrope"
    divisors = given["long_factor"] if num_tokens > native else given["short_factor"]
    factor = math.sqrt(1 + math.log(reach / native) / math.log(native))
    return Rotation(theta_F=tuple(t / d for t, d in zip(plain(dims, base), divisors, strict=True)), factor=factor)


PAIRINGS = {
    "halves": lambda f: (slice(0, f), slice(f, 2 * f)),
    "interleaved": lambda f: (slice(0, 2 * f, 2), slice(1, 2 * f, 2)),
    "halves, backwards": lambda f: (slice(f, 2 * f), slice(0, f)),
}
"""Where the real and the imaginary parts of f features stand: (j, j+f), (2j, 2j+1), and (j+f, j)."""


def rotate(x_BHTD, by, pairing, first=0):
    """Rotates dimensions first … first+2F−1 of every head, position by position; the others pass."""
    num_features = len(by.theta_F)
    real, imaginary = PAIRINGS[pairing](num_features)
    out_BHTD = x_BHTD.copy()
    part = out_BHTD[..., first : first + 2 * num_features]
    z_BHTF = (part[..., real] + 1j * part[..., imaginary]) * np.exp(1j * by.angles(x_BHTD.shape[2])) * by.factor
    part[..., real], part[..., imaginary] = z_BHTF.real, z_BHTF.imag
    return out_BHTD


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """Queries and keys of one attention module in one pass, float64, (B, H, T, D)."""

    layer: int
    query: np.ndarray
    key: np.ndarray
    query_unrotated: np.ndarray
    key_unrotated: np.ndarray

    def difference_from(self, by, pairing, first=0):
        """Largest difference of rotated queries and keys from the reference, relative to the largest of them.

        `by` None: a layer that shall not rotate at all.
        """
        worst = 0.0
        for got, unrotated in ((self.query, self.query_unrotated), (self.key, self.key_unrotated)):
            expected = unrotated if by is None else rotate(unrotated, by, pairing, first)
            worst = max(worst, float(np.abs(got - expected).max() / np.abs(expected).max()))
        return worst


@torch.no_grad()
def observe(model, tokens_T):
    """Runs a model over tokens; returns a `Seen` per attention module, in the order in which they ran."""
    calls, seen = [], []

    def keep(module, args, kwargs):
        calls.append((module, args, dict(kwargs)))

    modules = attention_modules(model)
    hooks = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    try:
        with _attention_inputs() as rotated:
            model(torch.as_tensor(np.asarray(tokens_T))[None].long(), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(rotated) == len(calls), "an attention module that didn't attend exactly once"
    for (module, args, kwargs), (query, key) in zip(calls, rotated, strict=True):
        cos, sin = kwargs["position_embeddings"]
        unrotated = kwargs | {"position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}
        with _attention_inputs() as again:
            module(*args, **unrotated)
        seen.append(
            Seen(layer=module.layer_idx, query=query, key=key, query_unrotated=again[0][0], key_unrotated=again[0][1])
        )
    return seen


def attention_modules(model):
    """The modules that are given cosines and sines and attend."""
    return [
        module
        for module in model.modules()
        if type(module).__name__.endswith("Attention")
        and "position_embeddings" in inspect.signature(type(module).forward).parameters
    ]


@contextmanager
def _attention_inputs():
    """Yields a list to which every scaled_dot_product_attention adds its query and key as float64 arrays."""
    original, pairs = torch.nn.functional.scaled_dot_product_attention, []

    def watched(query, key, value, *args, **kwargs):
        pairs.append((query.detach().double().numpy().copy(), key.detach().double().numpy().copy()))
        return original(query, key, value, *args, **kwargs)

    torch.nn.functional.scaled_dot_product_attention = watched
    try:
        yield pairs
    finally:
        torch.nn.functional.scaled_dot_product_attention = original
