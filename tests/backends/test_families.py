"""Every family: queries and keys as attention gets them, against rotation computed independently in float64.

From the same measurements it writes `docs/families.md`, where LONGEVAL_WRITE_DOCS is set.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from families import FAMILIES
from family import NATIVE, Family
from family_table import MARK, RefusedRow, Row, page
from huggingface_hub.errors import StrictDataclassClassValidationError
from refused_families import REFUSED
from rotation_reference import Seen, observe, rotation, rounded, shipped_rotation
from transformers import AutoConfig, AutoModelForCausalLM

from longeval.backends.hf.backend import HFBackend
from longeval.errors import LongEvalError
from longeval.export.encoding import encode
from longeval.export.form import new_config
from longeval.export.stock import check_stock, vllm_reason
from longeval.models.scaling import ModelRope, model_rope
from longeval.rope.build import method_names, parse_method_name

BY_NAME = {family.name: family for family in FAMILIES}
PAGE = Path(__file__).parents[2] / "docs" / "families.md"
METHODS = ("none", "resonance", "yarn", "resonance_yarn")
FACTOR = 4.0
NUM_TOKENS = 100
TOKENS_T = np.random.default_rng(0).integers(1, 64, NUM_TOKENS)
"""More tokens than the native length of 64."""

OURS = 1e-6
"""Largest difference, relative to the largest query or key, that float32 explains where longeval rotates."""
THEIRS = 2e-5
"""The same where transformers' own module does, which multiplies positions and frequencies in float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiny:
    """A family's tiny random model, as transformers runs it and as longeval does."""

    family: Family
    stock: list[Seen]
    """What attention got before the rotary module was replaced."""
    backend: HFBackend
    rope: ModelRope
    model_type: str
    seen: dict[str, list[Seen]]
    """What attention got under each method that was served so far."""


def make_config(family, scaling):
    return getattr(transformers, family.config)(**family.constructor(scaling))


def make_model(config):
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def read_rope(family, config, **settings):
    return model_rope("tiny", config, native=None if family.tells_native else NATIVE, **settings)


@pytest.fixture(scope="module")
def tiny():
    """A function from a family to its `Tiny`, each built once."""
    built = {}

    def build(family):
        if family.name not in built:
            config = make_config(family, family.shipped)
            model = make_model(config)
            built[family.name] = Tiny(
                family=family,
                stock=observe(model, TOKENS_T),
                backend=HFBackend(model),
                rope=read_rope(family, config),
                model_type=config.model_type,
                seen={},
            )
        return built[family.name]

    return build


def expected(family, layer, method, num_tokens=NUM_TOKENS, scale_local=False):
    """What a layer should rotate by under a method, or None: by the family's facts and the papers' formulas alone."""
    if layer in family.unrotated_layers:
        return None
    if layer in family.local_layers:
        by = rotation(method if scale_local else "none", family.rotated, family.local_theta, NATIVE, FACTOR)
    elif method in ("none", "resonance"):
        by = shipped_rotation(family.rotated, family.theta, family.shipped, NATIVE, family.reach, num_tokens)
        by = rounded(by) if method == "resonance" else by
    else:
        by = rotation(method, family.rotated, family.theta, NATIVE, FACTOR)
    return dataclasses.replace(by, factor=1.0) if family.normalised_after else by


def served(tiny_model, method):
    """What attention gets when longeval serves a method's table."""
    if method not in tiny_model.seen:
        tiny_model.seen[method] = serve(tiny_model, method)
    return tiny_model.seen[method]


def serve(tiny_model, method, tokens_T=TOKENS_T, rope=None):
    """As `served`, of any tokens, and by any reading of the configuration."""
    rope = rope or tiny_model.rope
    geometry = dataclasses.replace(rope.geometry, factor=FACTOR)
    tiny_model.backend.serve(rope.tables(parse_method_name(method), geometry, {})(len(tokens_T)), len(tokens_T))
    return observe(tiny_model.backend.model, tokens_T)


def difference(family, seen, method, layers=None, **settings):
    """The largest difference from the reference over the layers of one model."""
    return max(
        one.difference_from(expected(family, one.layer, method, **settings), family.pairing, family.first)
        for one in seen
        if layers is None or one.layer in layers
    )


def attention_layers(family):
    return list(family.attention_layers or range(family.layers))


def our_layers(family):
    return [layer for layer in attention_layers(family) if layer not in family.local_layers]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BY_NAME)
def test_attention_gets_what_the_formulas_say(tiny, name, method):
    family = BY_NAME[name]
    seen = served(tiny(family), method)
    assert [one.layer for one in seen] == attention_layers(family)
    assert difference(family, seen, method, our_layers(family)) <= OURS
    assert difference(family, seen, method) <= THEIRS  # sliding-window layers: the model's own module, its own base
    for one in seen:
        rotates = one.layer not in family.unrotated_layers
        assert (np.abs(one.query - one.query_unrotated).max() > 0.1 * np.abs(one.query).max()) == rotates


@pytest.mark.parametrize("name", BY_NAME)
def test_none_is_what_the_model_does_by_itself(tiny, name):
    family = BY_NAME[name]
    assert difference(family, tiny(family).stock, "none") <= THEIRS


@pytest.mark.parametrize("name", [family.name for family in FAMILIES if family.shipped.get("rope_type") == "longrope"])
def test_lists_are_chosen_by_the_length_of_the_sequence(tiny, name):
    family = BY_NAME[name]
    seen = serve(tiny(family), "none", TOKENS_T[:40])
    assert difference(family, seen, "none", num_tokens=40) <= OURS
    assert difference(family, seen, "none", num_tokens=100) > 0.01


@pytest.mark.parametrize("method", ["resonance", "yarn", "resonance_yarn"])
@pytest.mark.parametrize("name", [family.name for family in FAMILIES if family.local_layers])
def test_sliding_window_layers_are_scaled_when_asked(tiny, name, method):
    family = BY_NAME[name]
    rope = read_rope(family, make_config(family, family.shipped), layers="all")
    assert difference(family, serve(tiny(family), method, rope=rope), method, scale_local=True) <= OURS


@pytest.mark.parametrize("name", ["Llama 1, 2", "Cohere", "GPT-NeoX, Pythia", "DeepSeek-V3", "nanochat"])
def test_logits_depend_on_distance_alone(tiny, name):
    one_token_T = np.full(100, 7)
    seen = serve(tiny(BY_NAME[name]), "resonance_yarn", one_token_T)[0]
    logits_TT = seen.query[0, 0] @ seen.key[0, 0].T
    for distance in range(-99, 100):
        diagonal = np.diagonal(logits_TT, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5 * np.abs(logits_TT).max())
    assert np.ptp(logits_TT) > 0.01 * np.abs(logits_TT).max()


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.name)
def test_models_that_cannot_be_served_are_refused_by_name(refused):
    message = refusal(refused)
    assert getattr(transformers, refused.config).model_type in message
    assert refused.says in message


def refusal(refused):
    """What is said of a model that is read as a run reads it: by its configuration, or once it is loaded."""
    config = getattr(transformers, refused.config)(**refused.settings)
    torch.manual_seed(1)
    with pytest.raises(LongEvalError) as caught:
        if refused.from_config:
            model_rope("tiny", config)
        else:
            HFBackend(AutoModelForCausalLM.from_config(config))
    return caught.value.problem


def test_the_page_says_what_was_measured(tiny, tmp_path):
    rows = [measured(tiny(family), tmp_path) for family in FAMILIES]
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Model families"
    now = page(text.partition(MARK)[0], rows, [refused_row(refused) for refused in REFUSED])
    if os.environ.get("LONGEVAL_WRITE_DOCS") == "1":
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(now, encoding="utf-8")
        return
    assert text == now, "run LONGEVAL_WRITE_DOCS=1 pytest tests/backends/test_families.py and look at the difference"


def measured(tiny_model, folder):
    """A family's row, every cell of it from something that was run just now."""
    family, shipped = tiny_model.family, tiny_model.rope.shipped
    worst = max(difference(family, served(tiny_model, method), method, our_layers(family)) for method in METHODS)
    by_length = ", by the length of the sequence" if shipped.length_dependent else ""
    return Row(
        name=family.name,
        model_type=tiny_model.model_type,
        examples=family.examples,
        part=family.part,
        pairing=family.pairing,
        difference="≤ 1e-6" if worst <= OURS else f"{worst:.0e}",
        methods=servable_methods(tiny_model),
        none_means="plain RoPE" if shipped.base == "none" else f"its {shipped.rope_type} scaling{by_length}",
        training=in_training_script(family),
        export=exported(tiny_model, folder),
        remark=family.remark,
    )


def servable_methods(tiny_model):
    """`all`, or what can't be built for this model or served by it."""
    features = tiny_model.family.rotated // 2
    lists = {"short_factor": (1.0,) * features, "long_factor": (2.0,) * features}
    arguments = {"abf": {"base": 500000.0}, "longrope": lists}
    geometry = dataclasses.replace(tiny_model.rope.geometry, factor=FACTOR)
    failed = []
    for name in map(parse_method_name, method_names()):
        try:
            tables = tiny_model.rope.tables(name, geometry, arguments.get(name.base, {}))
            tiny_model.backend.serve(tables(len(TOKENS_T)), len(TOKENS_T))
        except LongEvalError:
            failed.append(name.canonical)
    return f"all but {', '.join(failed)}" if failed else "all"


def in_training_script(family):
    """Whether a model built with our rope type turns as longeval's does, by transformers' own module."""
    from longeval import hf

    hf.register()
    scaling = {"rope_type": "resonance_yarn", "factor": FACTOR, "original_max_position_embeddings": NATIVE}
    try:
        model = make_model(make_config(family, scaling))
    except (StrictDataclassClassValidationError, LongEvalError) as error:
        return f"no, its config refuses: {str(error).splitlines()[-1].strip().removeprefix('ValueError: ')}"
    assert difference(family, observe(model, TOKENS_T), "resonance_yarn") <= THEIRS
    return "works"


def exported(tiny_model, folder):
    """Whether stock transformers, given the exported configuration, turns as longeval does."""
    family = tiny_model.family
    config = make_config(family, family.shipped)
    config.save_pretrained(folder)
    path = folder / "config.json"
    try:
        encoding = encode(tiny_model.rope, "resonance_yarn", factor=FACTOR, arguments={})
        path.write_text(json.dumps(new_config(json.loads(path.read_text()), config, encoding)))
        check_stock(str(folder), encoding, config)
    except LongEvalError as error:
        return f"no: {re.sub('^--model tiny: ', '', error.problem)}"
    model = make_model(AutoConfig.from_pretrained(folder))
    for _ in range(2):  # a second pass beyond the native length fails in some modules
        assert difference(family, observe(model, TOKENS_T), "resonance_yarn") <= THEIRS
    return "works" if vllm_reason(tiny_model.rope.model_type) is None else "works, but not in vLLM: neighbouring pairs"


def refused_row(refused):
    return RefusedRow(
        name=refused.name,
        model_type=getattr(transformers, refused.config).model_type,
        examples=refused.examples,
        message=re.sub("^--model[^:]*: ", "", refusal(refused)),
    )
