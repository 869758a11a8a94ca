"""How attention falls off with distance: the mean over features of cos(Δ·θ̃_j).

That is the logit of a query and an equal key, Δ tokens apart, whose features all have the same length; its slow fall
is what RoPE was chosen for (Su et al. 2021, arXiv 2104.09864, section 3.4.3). The attention factor is left out: logits
are multiplied by its square at every distance.

Shapes: F features, K distances.
"""

from __future__ import annotations

import numpy as np

from longeval.rope.base import FloatArray, Geometry, IntArray, RopeTable

# Log-spaced distances; with the round ones and repeats taken out, a curve has at most about 400.
_NUM_SPACED = 370
# Distances whose angles exist at once.
_ROWS = 1024


def decay_distances(geometry: Geometry) -> IntArray:
    """Distances at which a curve is drawn, shape (K,): 0, then about log-spaced up to L'−1, tokens.

    Among them are all powers of two and the native length L, so that tables can name round distances.
    """
    last = geometry.target_length - 1
    if last < 1:
        return np.zeros(1, dtype=np.int64)
    spaced_K = np.rint(np.geomspace(1, last, _NUM_SPACED)).astype(np.int64)
    round_K = 2 ** np.arange(last.bit_length(), dtype=np.int64)
    distance_K = np.unique(np.concatenate(([0, geometry.native_length, last], round_K, spaced_K)))
    return distance_K[distance_K <= last]


def mean_cosines(table: RopeTable, distance_K: IntArray) -> FloatArray:
    """Mean over features of cos(Δ·θ̃_j) for every distance Δ, shape (K,); exact periods are reduced first."""
    mean_K = np.empty(len(distance_K))
    for first in range(0, len(distance_K), _ROWS):
        rows = slice(first, first + _ROWS)
        mean_K[rows] = np.cos(table.angles(distance_K[rows])).mean(axis=1)
    return mean_K
