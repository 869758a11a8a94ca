"""Requests as YAML: one document each, in the words of the flags, as in the `spec.yaml` of a run folder."""

from __future__ import annotations

from typing import Any

from longeval.errors import LongEvalError


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
