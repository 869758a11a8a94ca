"""The functions that the YAML files of this folder name: one for each task's samples, and one that marks answers.

lm-eval loads this file by its path, outside any package, so that it could not import the modules beside it. The folder
therefore becomes a package here, under a name of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

_PACKAGE = "longeval_synthetic"


def _import_folder() -> None:
    """Makes this folder the package `longeval_synthetic`; in place of another copy's, if one was loaded before."""
    folder = os.path.dirname(os.path.abspath(__file__))
    loaded = sys.modules.get(_PACKAGE)
    if loaded is not None and list(loaded.__path__) == [folder]:
        return
    for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        _PACKAGE, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = package
    spec.loader.exec_module(package)


_import_folder()

passkey = importlib.import_module(f"{_PACKAGE}.passkey").passkey
niah_single = importlib.import_module(f"{_PACKAGE}.niah").niah_single
niah_multi_key = importlib.import_module(f"{_PACKAGE}.niah").niah_multi_key
niah_multi_value = importlib.import_module(f"{_PACKAGE}.niah").niah_multi_value
niah_multi_query = importlib.import_module(f"{_PACKAGE}.niah").niah_multi_query
kv_retrieval = importlib.import_module(f"{_PACKAGE}.key_value").kv_retrieval
variable_tracking = importlib.import_module(f"{_PACKAGE}.variables").variable_tracking
frequent_words = importlib.import_module(f"{_PACKAGE}.words").frequent_words
score = importlib.import_module(f"{_PACKAGE}.scoring").score
