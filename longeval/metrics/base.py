"""What a metric is, and the registry of all metrics.

A metric is one function over an artefact of a cell, with a name, a direction and a way to write its values:

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

Every cell with this artefact then has a record of the metric, and reports have a table of it.
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
"""How reports write a metric's values: four significant digits; two decimals, or three where the standard error is
small; hundredths with one decimal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A metric of one cell: its value, and what else of a record differs from metric to metric."""

    value: float
    low: float | None = None
    """Lower end of the 95% interval; None where there is none."""
    high: float | None = None
    how: dict[str, Any] | None = None
    """How the interval was drawn, plain JSON for the record's `params.ci`."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the record that differ from metric to metric: `protocol`, `n`, `tokens`, `nll_sum`."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """The same for the record's `params`: `stderr`."""

    def record(self, metric: str, common: Mapping[str, Any]) -> Record:
        """The record of this value.

        Args:
            metric: Name of the metric.
            common: Fields that all records of the cell share.
        """
        params = {**common["params"], **self.params}
        ends = {"ci_low": self.low, "ci_high": self.high}
        return Record(**{**common, **ends, **self.fields, "params": params, "metric": metric, "value": self.value})


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric(Generic[T]):
    """A metric: one name for one definition."""

    name: str
    """As records have it, lower case."""
    artefact: Artefact[T]
    """What it is derived from."""
    higher_is_better: bool | None
    """None where that is not known."""
    number: NumberFormat
    """How reports write its values."""
    definition: str
    """What it is, in one sentence."""
    function: Callable[[T, str | None, Mapping[str, Any]], Value | None]
    """(artefact, the cell's protocol, the cell's params) → value; None where the metric does not apply."""


METRICS: Registry[Metric[Any]] = Registry("metric")
"""All registered metrics, in the order in which records list them."""


def register(metric: Metric[T]) -> Metric[T]:
    """Adds a metric to all metrics; ValueError if its name is taken."""
    METRICS.register(metric.name, metric)
    # Stored records of the metric are then compared with their artefact as those of every other metric are.
    metric.artefact.values.setdefault(metric.name, lambda found, record: _value_of(metric, found, record))
    return metric


def _value_of(metric: Metric[T], found: T, record: Record) -> float | None:
    """The value that a stored record must have."""
    value = metric.function(found, record.protocol, record.params)
    return None if value is None else value.value


def derived(
    artefact: Artefact[T], found: T, protocol: str | None, params: Mapping[str, Any]
) -> list[tuple[Metric[T], Value]]:
    """All registered metrics of a kind of artefact that apply to one cell, with their values.

    Args:
        artefact: The kind.
        found: The cell's artefact.
        protocol: The cell's protocol.
        params: The cell's params.
    """
    values = [
        (metric, metric.function(found, protocol, params)) for metric in METRICS.values() if metric.artefact is artefact
    ]
    return [(metric, value) for metric, value in values if value is not None]


def metrics_of(artefact: Artefact[T]) -> list[Metric[T]]:
    """All registered metrics of a kind of artefact."""
    return [metric for metric in METRICS.values() if metric.artefact is artefact]


def metric_of(record: Record) -> Metric[Any] | None:
    """The registered metric of a record; None for those that a downstream task defines itself."""
    return METRICS.get(record.metric) if record.task is None else None


def higher_is_better(record: Record) -> bool | None:
    """Whether more of a record's metric is better; None where nobody says."""
    found = metric_of(record)
    return record.params.get("higher_is_better") if found is None else found.higher_is_better
