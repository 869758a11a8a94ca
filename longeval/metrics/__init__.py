"""All metrics: numbers that are derived from what a cell left behind, without the model.

Importing this package registers every metric in `base.METRICS`. A new metric is one new file here that calls
`base.register`: every file here is imported. Records list a cell's metrics in the order of registration.
"""

import importlib
import pkgutil

from longeval.metrics import accuracy, perplexity  # noqa: F401  (records list these first, further ones behind)
from longeval.metrics.base import METRICS, Metric, Value, derived, higher_is_better, metric_of, metrics_of, register

__all__ = ["METRICS", "Metric", "Value", "derived", "higher_is_better", "metric_of", "metrics_of", "register"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
