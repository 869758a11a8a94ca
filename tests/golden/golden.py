"""How results are compared with what is kept under `expected/`, and how that is written anew.

Nothing here or in the tests beside it knows the inside of the program: `conftest.py` has the one call of it.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
EXPECTED = HERE / "expected"
WRITE = os.environ.get("LONGEVAL_WRITE_GOLDEN") == "1"

REPORT_TOLERANCE = 1e-9
"""Of numbers that are computed from stored files; it leaves room for the order in which numpy adds."""

RUN_TOLERANCE = 1e-4
"""Of numbers that a model computed, whose last digits differ between machines."""

NUMBER = re.compile(r"-?\d+\.\d+(?:e[+-]?\d+)?")
PLAIN_LIST = re.compile(r"\[\s([^\[\]{}\"]*)\]")
DURATION = re.compile(r"(?:\d[\d.,]* (?:ms|s|min|h|days?)\b ?)+")
AMOUNT = re.compile(r"\d[\d.,]* (?=GiB|MiB|GFLOP/s)")


class Answer(NamedTuple):
    """What a command line left behind."""

    status: int
    out: str
    err: str


def check_text(name: str, text: str, *, tolerance: float) -> None:
    """Fails unless `text` is that of `expected/<name>`, up to the last digits of its decimal numbers."""
    path = EXPECTED / name
    if WRITE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        return
    expected = path.read_bytes().decode()
    if not same_text(text, expected, tolerance):
        lines = difflib.unified_diff(expected.split("\n"), text.split("\n"), "expected", "found", n=1, lineterm="")
        raise AssertionError("\n".join([f"{name} has changed:", *lines]))


def check_json(name: str, value: object, *, tolerance: float) -> None:
    """Fails unless `value` is that of `expected/<name>`: keys, their order and strings exactly, floats nearly."""
    path = EXPECTED / name
    if WRITE:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(value, indent=1, ensure_ascii=False)
        text = PLAIN_LIST.sub(lambda found: f"[{' '.join(found[1].split())}]", text)  # numbers side by side
        path.write_text(f"{text}\n", encoding="utf-8")
        return
    found = differences(value, json.loads(path.read_text(encoding="utf-8")), tolerance)
    if found:
        raise AssertionError("\n".join([f"{name} has changed:", *found[:40]]))


def differences(found: object, expected: object, tolerance: float, where: str = "") -> list[str]:
    """One line for each place where two JSON values differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        if list(found) != list(expected):
            return [f"{where}: keys {list(found)}, expected {list(expected)}"]
        inner = [differences(found[key], expected[key], tolerance, f"{where}.{key}") for key in expected]
        return [line for lines in inner for line in lines]
    if isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            return [f"{where}: {len(found)} items, expected {len(expected)}: {found}, expected {expected}"]
        pairs = enumerate(zip(found, expected, strict=True))
        return [line for i, (one, other) in pairs for line in differences(one, other, tolerance, f"{where}[{i}]")]
    if isinstance(found, float) and isinstance(expected, float):
        same = math.isclose(found, expected, rel_tol=tolerance, abs_tol=1e-12)
    elif isinstance(found, str) and isinstance(expected, str):
        same = same_text(found, expected, tolerance)
    else:
        same = type(found) is type(expected) and found == expected
    return [] if same else [f"{where}: {found!r}, expected {expected!r}"]


def same_text(found: str, expected: str, tolerance: float) -> bool:
    """Whether texts are equal but for decimal numbers that are nearly so, or that differ by one in the last digit."""
    if found == expected:
        return True
    if NUMBER.sub("#", found) != NUMBER.sub("#", expected):
        return False
    numbers = zip(NUMBER.findall(found), NUMBER.findall(expected), strict=True)
    return all(_same_number(one, other, tolerance) for one, other in numbers)


def _same_number(found: str, expected: str, tolerance: float) -> bool:
    """Numbers with few digits may be rounded differently: one in the last digit is no difference."""
    if found == expected:
        return True
    decimals = len(expected.partition("e")[0].partition(".")[2])
    last_digit = 1.01 * 10.0**-decimals if tolerance == RUN_TOLERANCE and "e" not in expected else 0.0
    return math.isclose(float(found), float(expected), rel_tol=tolerance, abs_tol=max(last_digit, 1e-12))


def shown_lines(text: str) -> list[str]:
    """Lines of a table or message without what the clock, the machine or the width of columns decides."""
    masked = AMOUNT.sub("… ", DURATION.sub("… ", text))
    lines = [re.sub(r"[━─═┏┓┡┩└┘├┤┬┴┼┳╇┻╈╪]+", "─", line) for line in masked.splitlines()]
    return [re.sub(r"\s+", " ", line).strip() for line in lines if line.strip() and set(line.strip()) != {"─"}]


def messages(err: str) -> list[str]:
    """What the program itself says on stderr, without progress and without what it says once a machine."""
    lines = [line for line in shown_lines(err) if line.startswith("longeval: ")]
    return [line for line in lines if "(once)" not in line]


def file_names(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
