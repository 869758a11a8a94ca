"""The commands that README.md and docs/*.md name: in blocks of a shell, in indented blocks, and in the text."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^    (longeval [a-z].*)$", re.MULTILINE)
_LINE = re.compile(r"^(?:\$ )?longeval ([a-z][^|\n#]*?) *(?:[|#].*)?$", re.MULTILINE)
_IN_TEXT = re.compile(r"`longeval ([a-z][^`]*)`")


def commands_in_blocks(page: Path) -> list[str]:
    """The command lines of a page's blocks, each without the program's name and what follows `#` or `|`."""
    text = re.sub(r"\\\n +", "", page.read_text(encoding="utf-8"))
    blocks = [match[2] for match in _FENCE.finditer(text) if match[1] in ("sh", "console")]
    blocks += _INDENTED.findall(_FENCE.sub("", text))
    return [match[1] for block in blocks for match in _LINE.finditer(block)]


def commands_in_text(page: Path) -> list[str]:
    """Those that stand between backticks; one that goes over two lines is one."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(match[1].split()) for match in _IN_TEXT.finditer(text)]


def all_commands() -> list[str]:
    """Every command of every page, each once."""
    return list(dict.fromkeys(found for page in PAGES for found in commands_in_blocks(page) + commands_in_text(page)))
