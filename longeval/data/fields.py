"""The text of one record: which field of a JSON object or a parquet row holds it, and what is wrong where none does."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

from longeval.errors import LongEvalError

DEFAULT_FIELDS = ("text", "input", "content")
"""Fields tried when none is named; which one is used is decided by a file's first record and holds for all of it."""

FORMATS_REMEDY = "Give UTF-8 text, .jsonl, .jsonl.gz, .json, .parquet or a folder of these."


class TextField:
    """Takes the text out of a file's records, one after the other.

    Args:
        path: What messages call the file.
        text_field: Its name; null: the first of DEFAULT_FIELDS that the first record has, from then on.
    """

    def __init__(self, path: str, text_field: str | None) -> None:
        self._path = path
        self._name = text_field
        self._asked = "" if text_field is None else f"--text-field {text_field}: "

    def choose(self, names: Sequence[str], where: str) -> str:
        """Returns the field to read, settled by the first record; LongEvalError if `names` don't have it."""
        if self._name is None:
            self._name = next((field for field in DEFAULT_FIELDS if field in names), None)
        if self._name is None or self._name not in names:
            wanted = repr(self._name) if self._name is not None else " or ".join(map(repr, DEFAULT_FIELDS))
            fields = ", ".join(itertools.islice(names, 20)) or "none"
            raise LongEvalError(
                f"{self._asked}{self._path}, {where}: no field {wanted}; its fields: {fields}",
                "Name the one that holds the text: give the file by its path, with --text-field NAME.",
            )
        return self._name

    def text_of(self, record: object, where: str) -> str:
        """Returns the text of one record; LongEvalError names `where` if it is no object with a string in the field."""
        if not isinstance(record, dict):
            raise LongEvalError(
                f"{self._path}, {where}: {json_kind(record)}, not an object",
                'Every record must be an object with the text in a field: {"text": "…"}.',
            )
        name = self.choose(list(record), where)
        return self.checked(record[name], where)

    def checked(self, value: object, where: str) -> str:
        """Returns `value`; LongEvalError if it is no string that can be written as UTF-8."""
        if not isinstance(value, str):
            raise LongEvalError(
                f"{self._path}, {where}: field {self._name!r} is {json_kind(value)}, not a string",
                "Choose the field that holds the whole text with --text-field NAME.",
            )
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise LongEvalError(
                f"{self._path}, {where}: field {self._name!r} has half a surrogate pair at character {error.start}",
                "It is no Unicode text there; repair or remove the record.",
            ) from error
        return value


def parse_json(content: bytes, path: str, *, first_line: int) -> Any:
    """Parses JSON whose first line is line `first_line` of the file; LongEvalError names the line if it is none."""
    try:
        return json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        problem = f"{path}, line {line}, column {error.colno}: malformed JSON ({error.msg})"
        remedy = "Repair or remove the record."
        if path.lower().endswith(".json") and error.msg == "Extra data":
            remedy = "It looks like one object a line: rename it to .jsonl."
        raise LongEvalError(problem, remedy) from error
    except UnicodeDecodeError as error:
        raise LongEvalError(f"{path}, line {first_line}: not UTF-8 (byte {error.start})", FORMATS_REMEDY) from error
    except RecursionError as error:
        raise LongEvalError(f"{path}, line {first_line}: JSON nested too deeply", "Repair the record.") from error
    except ValueError as error:  # Python refuses numbers of thousands of digits.
        raise LongEvalError(f"{path}, line {first_line}: JSON can't be read ({error})", "Repair the record.") from error


def json_kind(value: object) -> str:
    """What JSON calls a value."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
