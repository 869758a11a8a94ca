"""What was asked: values as users write them, and the frozen requests that runs are made from.

A request comes from flags or from YAML (`longeval run FILE`), is checked here as far as it can be without looking
anything up (names of methods, models, data and tasks are looked up by the plan), and is written into the run folder as
it was understood.
"""

from longeval.request.base import StudyRequest
from longeval.request.model import LAYERS, SCALE_FROM, Layers, ModelRequest, ScaleFrom
from longeval.request.posgen import PosGenRequest, Regime
from longeval.request.ppl import PplRequest
from longeval.request.requests import Request, Spec, request_from_mapping, requests_from_yaml, requests_to_yaml
from longeval.request.tasks import TasksRequest

HOW_ONLY = PosGenRequest.how_only

__all__ = [
    "HOW_ONLY",
    "LAYERS",
    "SCALE_FROM",
    "Layers",
    "ModelRequest",
    "PosGenRequest",
    "PplRequest",
    "Regime",
    "Request",
    "ScaleFrom",
    "Spec",
    "StudyRequest",
    "TasksRequest",
    "request_from_mapping",
    "requests_from_yaml",
    "requests_to_yaml",
]
