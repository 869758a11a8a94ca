"""What was asked: values as users write them, and the frozen requests that runs are made from.

A request comes from flags or from YAML (`longeval run FILE`), is checked here as far as it can be without looking
anything up (names of methods, models, data and tasks are looked up by the plan), and is written into the run folder as
it was understood.
"""

from longeval.spec.model import LAYERS, SCALE_FROM, Layers, ModelRequest, ScaleFrom
from longeval.spec.posgen import (
    HOW_ONLY,
    INITS,
    PRECISIONS,
    PRESETS,
    REGIMES,
    Init,
    PosGenSpec,
    Precision,
    Regime,
    preset_fields,
)
from longeval.spec.ppl import PplSpec
from longeval.spec.requests import Request, Spec, requests_from_yaml, requests_to_yaml, spec_from_mapping
from longeval.spec.tasks import CHAT_TEMPLATES, OVERLONG, ChatTemplate, Overlong, TasksSpec
from longeval.spec.values import (
    check_word,
    format_length,
    parse_count,
    parse_factor,
    parse_length,
    parse_lengths,
    parse_number,
    split_list,
    split_paths,
)

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
    "PosGenSpec",
    "PplSpec",
    "Precision",
    "Regime",
    "Request",
    "ScaleFrom",
    "Spec",
    "TasksSpec",
    "check_word",
    "format_length",
    "parse_count",
    "parse_factor",
    "parse_length",
    "parse_lengths",
    "parse_number",
    "preset_fields",
    "requests_from_yaml",
    "requests_to_yaml",
    "spec_from_mapping",
    "split_list",
    "split_paths",
]
