"""What was asked of a study: a frozen pydantic model whose fields declare its settings, and requests as YAML.

The class of a request is all that a command needs: its fields become flags and YAML keys, its docstring becomes the
text of `--help`. What can be checked without looking anything up is checked here, when a request is made; names of
methods, models, data and tasks are looked up by the plan. The `spec.yaml` of a run folder holds requests in the words
of the flags, one YAML document each.
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
    """The settings of one request. A subclass's docstring is what `--help` says of its command."""

    command: ClassVar[str]
    """What the study is called in YAML and in stored plans."""
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """By name, the values that differ from the defaults; the first preset has none. `--preset` chooses one."""
    how_only: ClassVar[frozenset[str]] = frozenset()
    """Fields that say how to compute, not what: requests that differ in nothing else are one."""
    retired: ClassVar[frozenset[str]] = frozenset()
    """Names of former settings that decided no value. Files that were written with them can still be read."""

    @classmethod
    def read(cls, given: Mapping[str, Any], origin: str | None = None) -> Self:
        """A request from what a user wrote: texts of flags, YAML, or Python values.

        Args:
            given: Values by name of the field or the flag, with - or _; `preset` among them where there are presets.
            origin: The file that they are from, for messages; None: messages name flags.

        Raises:
            LongEvalError: An unknown or missing name, or a value that is refused.
        """
        by_flag = {cls.flag(name).lstrip("-").replace("-", "_"): name for name in cls.model_fields}
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
            values = _preset(str(given.get("preset", next(iter(cls.presets)))), cls.presets) | values
        for name, field in cls.model_fields.items():
            if field.is_required() and name not in values:
                example = cls.setting(name).example
                if origin is None:
                    raise LongEvalError(f"{cls.flag(name)}: missing", f"Give it, such as {cls.flag(name)} {example}.")
                raise LongEvalError(f"{origin}: {name} is missing", f"Add a line such as {name}: {example}.")
        return cls.model_validate(values, context=origin)

    @classmethod
    def setting(cls, name: str) -> Declare:
        """What the field called `name` declares."""
        (found,) = (item for item in cls.model_fields[name].metadata if isinstance(item, Declare))
        return found

    @classmethod
    def flag(cls, name: str) -> str:
        """The flag of a field: `--batch-size`."""
        return cls.setting(name).flag or f"--{name.replace('_', '-')}"

    @classmethod
    def default(cls, name: str) -> Any:
        """The value that a field has when it isn't given."""
        return cls.model_fields[name].get_default(call_default_factory=True)

    def is_default(self, name: str) -> bool:
        """Whether a field has the value that it has when it isn't given."""
        return bool(getattr(self, name) == self.default(name))

    def replaced(self, **changes: Any) -> Self:
        """The same request with other values in some fields, checked again."""
        return type(self).model_validate(dict(self) | changes)

    def to_mapping(self) -> dict[str, Any]:
        """As plain YAML: every field that says something, lengths as users write them."""
        plain: dict[str, Any] = {"command": self.command}
        for name, value in self:
            if value is not None and value not in ({}, ()):
                plain[name] = self.setting(name).write(value)
        untyped: dict[str, Any] = json.loads(canonical_json(plain))  # tuples to lists, also within pe_args
        return {key: untyped[key] for key in plain}

    def digest(self) -> str:
        """A short digest of what is asked for, for naming its run folder."""
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
        """One value, read as its setting says."""
        name = str(info.field_name)
        field, setting = cls.model_fields[name], cls.setting(name)
        if value is None and field.default is None:
            return None
        found = setting.read(value, cls.flag(name) if info.context is None else f"{info.context}: {name}")
        if found == () and field.default != ():
            raise LongEvalError(f"{cls.flag(name)}: nothing named", f"Give at least one, such as {setting.example}.")
        return found


def _preset(name: str, presets: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The values of a preset."""
    check_word("--preset", name, presets)
    return presets[name]


def requests_to_yaml(requests: list[dict[str, Any]]) -> str:
    """One YAML document per request."""
    import yaml  # here, because --help imports the classes of requests

    head = "# What was asked of this run folder; `longeval run` on this file computes what is missing.\n"
    dumped = [
        yaml.safe_dump(request, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000)
        for request in requests
    ]
    return head + "---\n".join(dumped)


def requests_from_yaml(text: str, *, origin: str) -> list[dict[str, Any]]:
    """The mappings of a request file, one per YAML document; what is no such file raises LongEvalError."""
    from longeval.bounded_yaml import UNREADABLE, documents, why_unreadable

    try:
        requests = [document for document in documents(text) if document is not None]
    except UNREADABLE as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise LongEvalError(
            f"{origin}{where}: not YAML ({why_unreadable(error)})", "A run folder's spec.yaml is an example."
        ) from None
    if not requests or not all(isinstance(request, dict) for request in requests):
        raise LongEvalError(f"{origin}: holds no request", "It needs keys such as command, model, pe, lengths.")
    return requests
