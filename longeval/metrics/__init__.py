"""All metrics. They are computed from a cell's artefact, without the model.

Importing this package imports each of its files, which registers every metric in `base.METRICS`. To add a metric, add a
file that calls `base.register`. Records list a cell's metrics in the order of registration.
"""

import importlib
import pkgutil

from longeval.metrics import accuracy, perplexity  # noqa: F401  (imported first, so that records list them first)
from longeval.metrics.base import METRICS, Metric, Value, derived, higher_is_better, metric_of, metrics_of, register

__all__ = ["METRICS", "Metric", "Value", "derived", "higher_is_better", "metric_of", "metrics_of", "register"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
