"""The `Metric` class and the registry of all metrics.

A metric is one function over a cell's artefact, with a name, a direction and a number format:

    register(
        Metric(
            name="median_token_nll",
            artefact=NLL,
            higher_is_better=False,
            number="significant",
            definition="Median negative log-likelihood of the scored tokens, nats.",
            function=lambda nll, protocol, params: Value(value=float(np.median(nll.nll_S))),
        )
    )

Every cell with this kind of artefact then gets a record of the metric, and reports get a table of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from longeval.registry import Registry
from longeval.store.artefact import Artefact
from longeval.store.records import Record

T = TypeVar("T")

NumberFormat = Literal["significant", "score", "percent"]
"""How reports write a metric's values.

- `significant`: four significant digits.
- `score`: two decimals, or three if the standard error is small.
- `percent`: percent with one decimal.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """The value of a metric for one cell, with the fields of its record that depend on the metric."""

    value: float
    low: float | None = None
    """Lower end of the 95% interval; None without an interval."""
    high: float | None = None
    how: dict[str, Any] | None = None
    """How the interval was computed, as plain JSON for the record's `params.ci`."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of the record that depend on the metric, such as `protocol`, `n`, `tokens`, `nll_sum`."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the record's `params` that depend on the metric, such as `stderr`."""

    def record(self, metric: str, common: Mapping[str, Any]) -> Record:
        """Makes the record of this value from the fields that all records of the cell share."""
        params = {**common["params"], **self.params}
        ends = {"ci_low": self.low, "ci_high": self.high}
        return Record(**{**common, **ends, **self.fields, "params": params, "metric": metric, "value": self.value})


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric(Generic[T]):
    """A metric: one name for one definition."""

    name: str
    """Its name in records, lower case."""
    artefact: Artefact[T]
    """The kind of artefact that it is computed from."""
    higher_is_better: bool | None
    """None if unknown."""
    number: NumberFormat
    definition: str
    """Its definition in one sentence, for reports."""
    function: Callable[[T, str | None, Mapping[str, Any]], Value | None]
    """Takes (artefact, the cell's protocol, the cell's params); returns None if the metric does not apply."""


METRICS: Registry[Metric[Any]] = Registry("metric")
"""All registered metrics, in the order in which records list them."""


def register(metric: Metric[T]) -> Metric[T]:
    """Registers a metric; raises ValueError if its name is taken."""
    METRICS.register(metric.name, metric)
    # The store checks records of this metric against their artefact with this function.
    metric.artefact.values.setdefault(metric.name, lambda found, record: _value_of(metric, found, record))
    return metric


def _value_of(metric: Metric[T], found: T, record: Record) -> float | None:
    """The metric's value for a stored record."""
    value = metric.function(found, record.protocol, record.params)
    return None if value is None else value.value


def derived(
    artefact: Artefact[T], found: T, protocol: str | None, params: Mapping[str, Any]
) -> list[tuple[Metric[T], Value]]:
    """Computes all registered metrics that apply to a cell from its artefact, protocol and params."""
    values = [
        (metric, metric.function(found, protocol, params)) for metric in METRICS.values() if metric.artefact is artefact
    ]
    return [(metric, value) for metric, value in values if value is not None]


def metrics_of(artefact: Artefact[T]) -> list[Metric[T]]:
    """All registered metrics of a kind of artefact."""
    return [metric for metric in METRICS.values() if metric.artefact is artefact]


def metric_of(record: Record) -> Metric[Any] | None:
    """The registered metric of a record; None for metrics that a downstream task defines."""
    return METRICS.get(record.metric) if record.task is None else None


def higher_is_better(record: Record) -> bool | None:
    """Whether higher values of a record's metric are better; None if unknown."""
    found = metric_of(record)
    return record.params.get("higher_is_better") if found is None else found.higher_is_better
