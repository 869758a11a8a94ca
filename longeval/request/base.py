"""The base class of requests, a frozen pydantic model whose fields declare settings; and requests as YAML.

A command is made from the class of its request: fields become flags and YAML keys, and the docstring becomes the text
of `--help`. Everything that needs no look-up is checked when a request is made; the plan looks up names of methods,
models, data and tasks. The `spec.yaml` of a run folder holds requests, one YAML document each, with values as in flags.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ValidationInfo, field_validator, model_validator

from longeval.errors import LongEvalError, check_word, did_you_mean
from longeval.plain import canonical_json
from longeval.request.setting import Declare


class StudyRequest(BaseModel, frozen=True, extra="forbid"):
    """The settings of one request. A subclass's docstring is the text of `--help`."""

    command: ClassVar[str]
    """Name of the study in YAML and in stored plans."""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """By name, the values that differ from the defaults; the first preset has none. `--preset` chooses one."""
    presets_help: ClassVar[str] = ""
    """What each preset is for, as help of `--preset`."""
    former_presets: ClassVar[dict[str, str]] = {}
    """Former names of presets, which are still read, with their names."""
    can_show: ClassVar[bool] = False
    """Whether its command has `--show`, which prints what the model is given."""
    how_only: ClassVar[frozenset[str]] = frozenset()
    """Fields that say only how to compute. Requests that differ only in these count as equal."""
    retired: ClassVar[frozenset[str]] = frozenset()
    """Names of former settings that decided no value. Files that were written with them can still be read."""

    @classmethod
    def read(cls, given: Mapping[str, Any], origin: str | None = None) -> Self:
        """Makes a request from a user's values: texts of flags, YAML, or Python values.

        Args:
            given: Values by name of the field or of the flag, with - or _. May include `preset` if there are presets.
            origin: The file of the values, for messages; None: messages name flags.

        Raises:
            LongEvalError: A name is unknown or missing, or a value is refused.
        """
        by_flag = {cls.flag(name).lstrip("-").replace("-", "_"): name for name in cls.model_fields}
        by_flag |= {former: name for name in cls.model_fields if (former := cls.setting(name).former) is not None}
        values: dict[str, Any] = {}
        for written, value in given.items():
            key = str(written).replace("-", "_")
            name = key if key in cls.model_fields else by_flag.get(key)
            if name is not None:
                values[name] = value
            elif origin is not None and key in cls.retired:
                continue
            elif key != "command" and not (key == "preset" and cls.presets):
                known = ("command", *(["preset"] if cls.presets else []), *cls.model_fields)
                where = "" if origin is None else f"{origin}: "
                raise LongEvalError(f"{where}unknown key {written}", did_you_mean(key, known))
        if cls.presets:
            preset = str(given.get("preset", next(iter(cls.presets))))
            preset = cls.former_presets.get(preset, preset)
            check_word("--preset", preset, cls.presets)
            values = cls.presets[preset] | values
        for name, field in cls.model_fields.items():
            if field.is_required() and name not in values:
                example = cls.setting(name).example
                if origin is None:
                    raise LongEvalError(f"{cls.flag(name)}: missing", f"Give it, such as {cls.flag(name)} {example}.")
                raise LongEvalError(f"{origin}: {name} is missing", f"Add a line such as {name}: {example}.")
        return cls.model_validate(values, context=origin)

    @classmethod
    def setting(cls, name: str) -> Declare:
        """The declaration of a field."""
        (found,) = (item for item in cls.model_fields[name].metadata if isinstance(item, Declare))
        return found

    @classmethod
    def flag(cls, name: str) -> str:
        """The flag of a field, such as `--batch-size`."""
        return cls.setting(name).flag or f"--{name.replace('_', '-')}"

    @classmethod
    def default(cls, name: str) -> Any:
        """The default of a field."""
        return cls.model_fields[name].get_default(call_default_factory=True)

    def is_default(self, name: str) -> bool:
        """Whether a field has its default value."""
        return bool(getattr(self, name) == self.default(name))

    def replaced(self, **changes: Any) -> Self:
        """A copy of the request with other values in some fields, checked again."""
        return type(self).model_validate(dict(self) | changes)

    def to_mapping(self) -> dict[str, Any]:
        """The request as plain YAML values, without empty fields, and with lengths as users write them."""
        plain: dict[str, Any] = {"command": self.command}
        for name, value in self:
            unsaid = name in self.how_only and self.is_default(name)
            if value is not None and value not in ({}, ()) and not unsaid:
                plain[name] = self.setting(name).write(value)
        untyped: dict[str, Any] = json.loads(canonical_json(plain))  # tuples to lists, also within pe_args
        return {key: untyped[key] for key in plain}

    def digest(self) -> str:
        """A short digest of the request, for the name of its run folder."""
        named = {name: value for name, value in self.to_mapping().items() if name not in self.how_only}
        return hashlib.sha256(canonical_json(named).encode()).hexdigest()[:8]

    def check(self) -> None:
        """Raises LongEvalError for settings that contradict each other."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.check()
        return self

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        """Reads a value with the reader of its setting."""
        name = str(info.field_name)
        field, setting = cls.model_fields[name], cls.setting(name)
        if value is None and field.default is None:
            return None
        found = setting.read(value, cls.flag(name) if info.context is None else f"{info.context}: {name}")
        if found == () and field.default != ():
            raise LongEvalError(f"{cls.flag(name)}: nothing named", f"Give at least one, such as {setting.example}.")
        return found


def requests_to_yaml(requests: list[dict[str, Any]]) -> str:
    """The requests as YAML, one document each."""
    import yaml  # imported here, because --help imports the classes of requests

    head = "# What was asked of this run folder; `longeval run` on this file computes what is missing.\n"
    dumped = [
        yaml.safe_dump(request, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000)
        for request in requests
    ]
    return head + "---\n".join(dumped)


def requests_from_yaml(text: str, *, origin: str) -> list[dict[str, Any]]:
    """The requests in a YAML text, one mapping per document. Raises LongEvalError if it is not such a text."""
    from longeval.bounded_yaml import UNREADABLE, documents, why_unreadable

    try:
        requests = [document for document in documents(text, keys_repeat=False) if document is not None]
    except UNREADABLE as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise LongEvalError(
            f"{origin}{where}: not YAML ({why_unreadable(error)})", "A run folder's spec.yaml is an example."
        ) from None
    if not requests or not all(isinstance(request, dict) for request in requests):
        raise LongEvalError(f"{origin}: holds no request", "It needs keys such as command, model, pe, lengths.")
    return requests
