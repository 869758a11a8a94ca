"""Does accuracy drop where the fast features look as they did before?

Prints lookalikes.md from posgen_files/positions.csv.gz:

    python lookalikes.py posgen_files/positions.csv.gz > lookalikes.md

The next token can be computed from the last one and the one NEAR places before it. A place d tokens further back looks
like that one where the fastest features have turned nearly whole times in d tokens: their mean cosine is near 1. The
first such place exists at position NEAR + 1 + d. Each form's drops are compared with its own cosines and, as a
control, with those of the same form of the other base.
"""

import csv
import gzip
import sys
from collections import defaultdict

import numpy as np

from longeval.rope.base import Geometry
from longeval.rope.build import build_table, parse_method_name, read_arguments

NEAR = {"cot": 15, "recursive": 16}
"""Places between the query and the token it needs: t(l) = 2·t(l−1) − t(l−16), or − t(l−17); the query is at l − 1."""

FASTEST = 5
"""Features whose cosines are averaged."""

LENGTH = 1024
FIRST = 60
"""Shorter distances occur in training."""

WINDOW = 8
"""Tokens before and after a position whose accuracies are compared; also the least distance between two drops."""

AROUND = 2
"""A drop may begin so many tokens from the distance of the highest cosine."""

LEAST = 3.0
"""Points of accuracy; less is no drop."""

CONTROL = {"none": "yarn", "yarn": "none", "resonance": "resonance_yarn", "resonance_yarn": "resonance"}


def cosines_of(pe: str, *, control: bool = False) -> np.ndarray:
    """Mean cosine of the fastest features at each distance, shape (LENGTH,)."""
    method, _, max_period = pe.partition(" (max_period=")
    name = parse_method_name(CONTROL[method] if control else method)
    parameters, resonance = read_arguments(name, {"max_period": max_period.rstrip(")")} if max_period else {})
    geometry = Geometry(head_dim=64, theta=10000.0, native_length=64, factor=16.0 if name.base == "yarn" else 1.0)
    table = build_table(name.canonical, geometry, parameters, LENGTH, resonance=resonance)
    return np.cos(np.outer(np.arange(LENGTH), table.inv_freq_F[:FASTEST])).mean(axis=1)


def highest_first(values: np.ndarray) -> list[int]:
    """Places by value, highest first, each at least WINDOW from all before it."""
    found: list[int] = []
    for place in np.argsort(-values, kind="stable"):
        if all(abs(place - other) >= WINDOW for other in found):
            found.append(int(place))
    return found


def near(cosines: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """The highest cosine within AROUND tokens of each distance."""
    return np.array([cosines[at - AROUND : at + AROUND + 1].max() for at in distances])


def main(path: str) -> None:
    """Prints the table and the summary."""
    accuracy: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    with gzip.open(path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            if row["curve"] == "accuracy":
                accuracy[row["task"], row["pe"]][int(row["position"])] = 100 * float(row["mean"])
    lines = [
        "# Where accuracy drops, and where fast features look alike\n",
        f"The largest drops of the mean accuracy over seeds (at most three of each form, of at least {LEAST:g} points "
        f"within {2 * WINDOW} tokens), and the distances beyond training at which the {FASTEST} fastest features look "
        "most alike. [lookalikes.py](lookalikes.py) makes this page.\n",
        "| task | form | drops: distance (points; mean cosine) | most alike: distance (mean cosine) |",
        "|---|---|---|---|",
    ]
    ranks: dict[bool, list[float]] = {False: [], True: []}
    for (task, pe), by_position in accuracy.items():
        values = np.array([by_position[at] for at in sorted(by_position)])
        distances = np.arange(FIRST, LENGTH - NEAR[task] - 1 - WINDOW)
        starts = distances + NEAR[task] + 1 - min(by_position)
        drop = np.array([values[at - WINDOW : at].mean() - values[at : at + WINDOW].mean() for at in starts])
        drops = [place for place in highest_first(drop)[:3] if drop[place] >= LEAST]
        for control, found in ranks.items():
            similar = near(cosines_of(pe, control=control), distances)
            found += [100 * float((similar >= similar[place]).mean()) for place in drops]
        cosines = cosines_of(pe)
        similar = near(cosines, distances)
        fell = ", ".join(f"{distances[at]} ({drop[at]:.1f}; {similar[at]:.2f})" for at in drops) or "–"
        peaks = [FIRST + place for place in highest_first(cosines[distances])[:3]]
        alike = ", ".join(f"{at} ({cosines[at]:.2f})" for at in peaks)
        lines.append(f"| {task} | `{pe}` | {fell} | {alike} |")
    own, other = (
        f"half of them are among the {np.median(found):.1f}% of distances that are most alike, "
        f"{np.mean(np.array(found) <= 5):.0%} of them among 5%"
        for found in ranks.values()
    )
    lines.append(
        f"\n{len(ranks[False])} drops. By their form's own cosines, {own}. By those of the same form of the other base "
        f"(`none` for `yarn`, and the reverse), as a control, {other}. Without any relation it would be 50% and 5%."
    )
    sys.stdout.write("\n".join(lines) + "\n")


main(sys.argv[1])
