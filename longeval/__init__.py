"""longeval measures how well a RoPE model works when its context is longer than in training.

The Python interface: `longeval.ppl(…)`, `longeval.tasks(…)`, `longeval.finetune(…)` and `longeval.posgen(…)` carry out
a request, and `longeval.load(path)` opens a run folder; all return `Results`. They are imported when they are first
used, so importing `longeval` alone is fast. CONTRIBUTING.md describes the structure of the package.
"""

TYPE_CHECKING = (
    False  # not from typing: a typing.py in the current folder would be imported before __main__ shuts it out
)
if TYPE_CHECKING:
    from longeval.results import Results, finetune, load, posgen, ppl, tasks

__all__ = ["DISTRIBUTION", "Results", "__version__", "finetune", "load", "posgen", "ppl", "tasks"]

__version__ = "0.1.0"

DISTRIBUTION = "longeval-rope"
"""The name of this package for pip. The package `longeval` on the index is another project."""


def __getattr__(name: str) -> object:
    """Imports the Python interface at its first use. Every study has a function, not only those in `__all__`."""
    import importlib.util

    if name in __all__:
        return getattr(importlib.import_module("longeval.results"), name)
    if not name.startswith("_") and importlib.util.find_spec(f"longeval.studies.{name}") is not None:
        return importlib.import_module("longeval.results").function_of(name)
    raise AttributeError(f"module 'longeval' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
