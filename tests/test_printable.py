"""Control characters of text from outside are shown, not obeyed: the function, and the console that uses it."""

from __future__ import annotations

import io
import unicodedata

from rich.table import Table

from longeval.cli.terminal import console, say, show
from longeval.printable import as_markup, printable

DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
INVISIBLE = {0x61C, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF}


def test_every_control_character_and_mark_of_direction_is_escaped():
    for number in range(0x11000):
        character = chr(number)
        obeyed = unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs")
        obeyed |= unicodedata.bidirectional(character) in DIRECTIONS
        shown = printable(character)
        assert (shown != character) == (obeyed or number in INVISIBLE), hex(number)
        assert shown.encode().decode("unicode_escape" if shown != character else "utf-8") == character


def test_what_is_kept_stays():
    assert printable("a\tb\nc\x1b", keep="\n") == "a\\tb\nc\\x1b"


def test_a_console_shows_texts_of_data_as_text():
    for terminal in (False, True):
        file = io.StringIO()
        screen = console(file=file, force_terminal=terminal, width=80, color_system=None)
        table = Table(title=as_markup("title \x1b[2J"))
        table.add_column("name")
        table.add_row(as_markup("[red]x\x1b]0;t\x07\x9b1m"))
        screen.print(table)
        screen.print("from elsewhere \x1b[2J", markup=False)
        text = file.getvalue()
        assert "from elsewhere \\x1b[2J" in text
        assert "\\x1b[2J" in text and "[red]x\\x1b]0;t\\x07\\x9b1m" in text
        assert not any(unicodedata.category(character) == "Cc" for character in text.replace("\n", ""))


def test_messages_and_lines_are_one_line_each(capsys):
    say("model \x1b[31m\nlongeval: all is well")
    show("a\tb\rc")
    out, err = capsys.readouterr()
    assert err == "longeval: model \\x1b[31m\\nlongeval: all is well\n"
    assert out == "a\tb\\rc\n"
