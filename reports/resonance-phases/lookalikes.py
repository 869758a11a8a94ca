"""Does accuracy drop where the fast features look as they did before?

Prints lookalikes.md from posgen_files/positions.csv.gz:

    python lookalikes.py posgen_files/positions.csv.gz > lookalikes.md

To predict token l, the model sees the tokens up to l − 1 (the query). With k = 15 the next token follows from the query
and one other: t(l) = 2·t(l−1) − t(l−16) on cot, − t(l−17) on recursive. So the model has to find the token 15 or 16
places before the query. A token d places further back looks like it where the fast features have turned nearly whole
times in d tokens, which is where the mean of their cosines cos(θ·d) is near 1. Such a token first exists for l = 16 + d
or 17 + d. In training (64 tokens) that is so for d up to 47.
"""

import csv
import gzip
import sys
from collections import defaultdict

import numpy as np

from longeval.rope.base import Geometry
from longeval.rope.build import build_table, parse_method_name, read_arguments

FIRST_TOKEN = {"cot": 16, "recursive": 17}
"""l − d of the first token l for which a token d places further back exists."""

FASTEST = 5
"""Features whose cosines are averaged."""

LENGTH = 1024
UNSEEN = 48
"""The shortest distance d that training doesn't have."""

WINDOW = 8
"""A drop is the mean accuracy of so many tokens minus that of so many tokens after; drops are so far apart at least."""

LARGEST = 3
"""Drops that are shown of each form."""

LEAST = 3.0
"""Points; smaller drops are not shown."""

SHIFTS = 2000
OTHER_BASE = {"none": "yarn", "yarn": "none", "resonance": "resonance_yarn", "resonance_yarn": "resonance"}


def cosines_of(pe: str, *, other_base: bool = False) -> np.ndarray:
    """Mean cosine of the fastest features at each distance, shape (LENGTH,), for a form of the preset `small`."""
    method, _, max_period = pe.partition(" (max_period=")
    name = parse_method_name(OTHER_BASE[method] if other_base else method)
    parameters, resonance = read_arguments(name, {"max_period": max_period.rstrip(")")} if max_period else {})
    geometry = Geometry(head_dim=64, theta=10000.0, native_length=64, factor=16.0 if name.base == "yarn" else 1.0)
    table = build_table(name.canonical, geometry, parameters, LENGTH, resonance=resonance)
    return np.cos(np.outer(np.arange(LENGTH), table.inv_freq_F[:FASTEST])).mean(axis=1)


def highest_first(values: np.ndarray) -> list[int]:
    """Indices by value, highest first, each at least WINDOW from all before it."""
    found: list[int] = []
    for index in np.argsort(-values, kind="stable"):
        if all(abs(index - other) >= WINDOW for other in found):
            found.append(int(index))
    return found


def read(path: str) -> dict[tuple[str, str], dict[int, float]]:
    """(task, form) → position → accuracy in percent, mean over seeds."""
    accuracy: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    with gzip.open(path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            if row["curve"] == "accuracy":
                accuracy[row["task"], row["pe"]][int(row["position"])] = 100 * float(row["mean"])
    return accuracy


def ranks(cosines_D: np.ndarray, indices: list[int]) -> list[float]:
    """Percent of all distances that are at least as alike as the given ones."""
    return [100 * float((cosines_D >= cosines_D[index]).mean()) for index in indices]


def summary(found: list[float]) -> tuple[float, float]:
    """The median of ranks, and the percentage of them that are at most 5."""
    return float(np.median(found)), 100 * float(np.mean(np.array(found) <= 5))


def main(path: str) -> None:
    """Prints the page."""
    rows, own, other, rises = [], [], [], 0
    of_form: list[tuple[str, np.ndarray, list[int]]] = []
    fell_by = declined_by = 0.0
    for (task, pe), by_position in read(path).items():
        values = np.array([by_position[at] for at in sorted(by_position)])
        distances_D = np.arange(UNSEEN, LENGTH - FIRST_TOKEN[task] - WINDOW + 1)
        starts_D = distances_D + FIRST_TOKEN[task] - min(by_position)
        drop_D = np.array([values[at - WINDOW : at].mean() - values[at : at + WINDOW].mean() for at in starts_D])
        drops = [index for index in highest_first(drop_D)[:LARGEST] if drop_D[index] >= LEAST]
        rises += sum(-drop_D[index] >= LEAST for index in highest_first(-drop_D)[:LARGEST])
        cosines_D = cosines_of(pe)[distances_D]
        own += ranks(cosines_D, drops)
        other += ranks(cosines_of(pe, other_base=True)[distances_D], drops)
        of_form.append((pe, cosines_D, drops))
        fell_by += sum(drop_D[index] for index in drops)
        declined_by += values[starts_D[0] - WINDOW : starts_D[0]].mean() - values[-WINDOW:].mean()
        shown = [
            f"{d} ({round(drop, 1) + 0.0:.1f}; {cosine:.2f})"
            for d, drop, cosine in zip(distances_D, drop_D, cosines_D, strict=True)
        ]
        fell, peaks = ([shown[at] for at in indices] for indices in (drops, highest_first(cosines_D)[:3]))
        rows.append(f"| {task} | `{pe}` | {', '.join(fell) or '–'} | {', '.join(peaks)} |")
    random = np.random.default_rng(0)
    shifted = []
    for _ in range(SHIFTS):
        by = {pe: int(random.integers(LENGTH)) for pe, _, _ in of_form}  # both rules of a form are shifted alike
        shifted.append(
            summary([rank for pe, cosines_D, drops in of_form for rank in ranks(np.roll(cosines_D, by[pe]), drops)])
        )
    medians, shares = np.array(shifted).T
    lines = [
        "# Where accuracy drops, and where fast features look alike",
        "",
        f"Left: the largest drops of the mean accuracy over seeds, at most {LARGEST} of each form, of at least "
        f"{LEAST:g} points from the mean of {WINDOW} tokens to that of the next {WINDOW}. Right: the distances beyond "
        f"training at which the {FASTEST} fastest features look most alike. Distances d are those beyond the token "
        "that the rule needs; what they mean, and how this page is made, is said in [lookalikes.py](lookalikes.py). In "
        "brackets: points by which accuracy drops there; mean cosine.",
        "",
        "| task | form | largest drops | most alike |",
        "|---|---|---|---|",
        *rows,
        "",
        f"- {len(own)} drops (and, as a measure of noise, {rises} rises of that size). They make up {fell_by:.0f} of "
        f"the {declined_by:.0f} points by which the {len(of_form)} curves decline.",
        f"- By the mean cosine of their own form, half of them are among the {summary(own)[0]:.1f}% of distances that "
        f"are most alike, and {summary(own)[1]:.0f}% of them among 5%.",
        f"- By that of the same form of the other base (`none` for `yarn`, and the reverse): {summary(other)[0]:.0f}% "
        f"and {summary(other)[1]:.0f}%. By cosines that are shifted by a random distance, one for each form: 50% and "
        f"5% are expected, and 95% of {SHIFTS} shifts give {np.quantile(medians, 0.025):.0f}% to "
        f"{np.quantile(medians, 0.975):.0f}% and at most {np.quantile(shares, 0.95):.0f}%.",
        "- Drops of one form on the two rules are not independent, nor are those of different forms, which share "
        "features. Curves are means over seeds, and a drop may be that of one seed.",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
