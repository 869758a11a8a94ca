"""Requests: the settings of a run, read from flags, YAML (`longeval run FILE`) or Python.

Values are checked here as far as possible without looking anything up; the plan looks up names of methods, models, data
and tasks. A request is written into the run folder. The class of a study's request is in the study's folder.
"""

from longeval.request.base import StudyRequest, requests_from_yaml, requests_to_yaml
from longeval.request.model import LAYERS, SCALE_FROM, Layers, ModelRequest, ScaleFrom

__all__ = [
    "LAYERS",
    "SCALE_FROM",
    "Layers",
    "ModelRequest",
    "ScaleFrom",
    "StudyRequest",
    "requests_from_yaml",
    "requests_to_yaml",
]
