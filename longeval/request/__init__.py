"""What was asked: values as users write them, and the frozen requests that runs are made from.

A request comes from flags or from YAML (`longeval run FILE`), is checked here as far as it can be without looking
anything up (names of methods, models, data and tasks are looked up by the plan), and is written into the run folder as
it was understood.
"""

from longeval.request.model import LAYERS, SCALE_FROM, Layers, ModelRequest, ScaleFrom
from longeval.request.posgen import (
    HOW_ONLY,
    INITS,
    PRECISIONS,
    PRESETS,
    REGIMES,
    Init,
    PosGenRequest,
    Precision,
    Regime,
    preset_fields,
)
from longeval.request.ppl import PplRequest
from longeval.request.requests import Request, Spec, request_from_mapping, requests_from_yaml, requests_to_yaml
from longeval.request.tasks import CHAT_TEMPLATES, OVERLONG, ChatTemplate, Overlong, TasksRequest

__all__ = [
    "CHAT_TEMPLATES",
    "HOW_ONLY",
    "INITS",
    "LAYERS",
    "OVERLONG",
    "PRECISIONS",
    "PRESETS",
    "REGIMES",
    "SCALE_FROM",
    "ChatTemplate",
    "Init",
    "Layers",
    "ModelRequest",
    "Overlong",
    "PosGenRequest",
    "PplRequest",
    "Precision",
    "Regime",
    "Request",
    "ScaleFrom",
    "Spec",
    "TasksRequest",
    "preset_fields",
    "request_from_mapping",
    "requests_from_yaml",
    "requests_to_yaml",
]
