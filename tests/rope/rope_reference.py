"""RoPE methods a second time, in plain Python with loops and the paper's own words, to compare the package with.

Written from the formulas (cases, no blending of arrays), not from the package.
"""

import math


def base_frequencies(d, b):
    return [b ** (-2 * j / d) for j in range(d // 2)]


def ntk(d, b, s, rule="power"):
    return base_frequencies(d, b * s ** (d / (d - 2)) if rule == "power" else b * s)


def by_parts(d, b, native, s, fast=32.0, slow=1.0):
    def index(rotations):
        # The j whose wavelength is native / rotations.
        return d / 2 * math.log(native / rotations / (2 * math.pi), b)

    low, high = max(math.floor(index(fast)), 0), min(math.ceil(index(slow)), d - 1)
    high = max(high, low + 0.001)
    out = []
    for j, theta in enumerate(base_frequencies(d, b)):
        if j <= low:
            out.append(theta)
        elif j >= high:
            out.append(theta / s)
        else:
            gamma = (high - j) / (high - low)
            out.append(gamma * theta + (1 - gamma) * theta / s)
    return out


def llama3(d, b, native, s, low=1.0, high=4.0):
    out = []
    for theta in base_frequencies(d, b):
        wavelength = 2 * math.pi / theta
        if wavelength < native / high:
            out.append(theta)
        elif wavelength > native / low:
            out.append(theta / s)
        else:
            x = (native / wavelength - low) / (high - low)
            out.append((1 - x) * theta / s + x * theta)
    return out


def feature_gap(native, target, theta=None, period=None, turns=1):
    """By the definition: two loops over all pairs of positions."""
    worst = 0.0
    for m in range(native, target):
        nearest = 2.0
        for n in range(native):
            angle = (m - n) * theta if period is None else 2 * math.pi * ((m - n) * turns % period) / period
            nearest = min(nearest, 2 * abs(math.sin(angle / 2)))
        worst = max(worst, nearest)
    return worst
