"""What was asked: values as users write them, and the frozen requests that runs are made from.

A request comes from flags or from YAML (`longeval run FILE`), is checked here as far as it can be without looking
anything up (names of methods, models, data and tasks are looked up by the plan), and is written into the run folder as
it was understood. The request of a study is in the study's folder.
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
