"""Our methods as rope types of transformers: the tables they give in every family, saving, and every refusal."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from rope.rope_reference import base_frequencies, by_parts
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPTNeoXConfig, LlamaConfig, Phi3Config, StableLmConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import longeval.hf
from longeval.cli.app import run_app
from longeval.errors import LongEvalError
from longeval.hf import ROPE_TYPES, read_parameters
from longeval.rope.base import METHODS, Geometry
from longeval.rope.build import build_table, method_names

NATIVE = 64
ROPE = {
    "rope_type": "resonance_yarn",
    "rope_theta": 1e4,
    "factor": 8,
    "original_max_position_embeddings": NATIVE,
    "beta_fast": 4,  # so that the ramp of so short a native length has a middle
}

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 50,
    "max_position_embeddings": NATIVE,
    "initializer_range": 0.3,  # so that positions matter
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
"""Two heads of 32 dimensions."""

EXPERTS = {"num_experts_per_tok": 1, "moe_intermediate_size": 16}

FAMILIES = {
    "Llama": ({}, 32),
    "Mistral": ({}, 32),
    "Mixtral": ({"num_local_experts": 2, "head_dim": None}, 32),
    "Qwen2": ({}, 32),
    "Qwen3": ({"head_dim": 16}, 16),
    "Qwen3Moe": ({"num_experts": 2, "head_dim": 16, **EXPERTS}, 16),
    "Gemma2": ({"head_dim": 16}, 16),
    "Gemma3Text": ({"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}, 16),
    "GPTNeoX": ({}, 8),
    "StableLm": ({}, 8),
    "Phi": ({}, 16),
    "Olmo2": ({}, 32),
    "Falcon": ({"alibi": False}, 32),
    "Granite": ({}, 32),
    "DeepseekV3": (
        {
            "num_key_value_heads": 2,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 2,
            "n_group": 1,
            "topk_group": 1,
            **EXPERTS,
        },
        16,
    ),
}
"""Of each family: settings beside SIZES, and how many dimensions of a head rotate, by its published models."""

BY_LAYER_TYPE = {"Gemma3Text"}
LOCAL = {"rope_type": "default", "rope_theta": 100.0}


def in_form_of(family, rope):
    """`rope_parameters` flat, or for the global layers of a family that rotates by layer type."""
    return {"sliding_attention": dict(LOCAL), "full_attention": dict(rope)} if family in BY_LAYER_TYPE else dict(rope)


def build(family="Llama", **settings):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SIZES | FAMILIES[family][0] | settings))
    return AutoModelForCausalLM.from_config(config).eval()


def rotary(model):
    (module,) = [module for module in model.modules() if type(module).__name__.endswith("RotaryEmbedding")]
    return module


def global_buffer(family):
    return "full_attention_inv_freq" if family in BY_LAYER_TYPE else "inv_freq"


def logits(model, num_tokens=100):
    with torch.no_grad():
        return model(torch.arange(num_tokens)[None] * 7 % 50).logits


def resonance_yarn(d, b=1e4):
    """Frequencies by the plain loops, wavelengths rounded, as float32."""
    wavelengths = [round(2 * math.pi / theta) for theta in by_parts(d, b, NATIVE, 8.0, fast=4.0)]
    return torch.tensor([2 * math.pi / wavelength for wavelength in wavelengths], dtype=torch.float32)


def llama_config(**rope):
    return LlamaConfig(**SIZES, rope_parameters=rope)


@pytest.fixture
def warned(monkeypatch):
    """What transformers warns about while a test runs."""
    told = []
    for name in ("warning", "warning_once"):
        monkeypatch.setattr(logging.Logger, name, lambda self, text, *a, **k: told.append(text), raising=False)
    return told


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_turns_by_our_table(family, warned):
    stretched = build(family, rope_parameters=in_form_of(family, ROPE))
    assert warned == []
    expected_F = resonance_yarn(FAMILIES[family][1])
    name = global_buffer(family)
    assert torch.equal(getattr(rotary(stretched), name), expected_F)
    factor = 0.1 * math.log(8) + 1
    scaling = name.replace("inv_freq", "attention_scaling")
    assert getattr(rotary(stretched), scaling) == factor

    plain = build(family, rope_parameters=in_form_of(family, {"rope_type": "default", "rope_theta": 1e4}))
    as_shipped = logits(plain)
    assert (logits(stretched) - as_shipped).abs().max() > 1e-3
    setattr(rotary(plain), name, expected_F)
    setattr(rotary(plain), scaling, factor)
    assert torch.equal(logits(stretched), logits(plain))


def test_local_layers_keep_their_own_or_take_ours():
    own = rotary(build("Gemma3Text", rope_parameters=in_form_of("Gemma3Text", ROPE)))
    assert torch.allclose(own.sliding_attention_inv_freq, torch.tensor(base_frequencies(16, 100.0)))
    ours = {"sliding_attention": {"rope_type": "resonance", "rope_theta": 100.0}, "full_attention": dict(ROPE)}
    both = rotary(build("Gemma3Text", rope_parameters=ours))
    rounded = [2 * math.pi / round(2 * math.pi / theta) for theta in base_frequencies(16, 100.0)]
    assert torch.equal(both.sliding_attention_inv_freq, torch.tensor(rounded))
    assert torch.equal(both.full_attention_inv_freq, resonance_yarn(16))


@pytest.mark.parametrize("name", ROPE_TYPES)
def test_every_type_gives_the_frequencies_of_the_command_line(name, capsys):
    base = name.removeprefix("resonance_") if name != "resonance" else "none"
    given = {"rope_theta": 1e4, "original_max_position_embeddings": 4096}
    flags = ["--head-dim", "32", "--theta", "10000", "--native", "4k", "--json", "-"]
    if METHODS[base].uses_factor:
        given["factor"] = 8
        flags += ["--factor", "8"]
    arguments = {
        "ntk": {"base_rule": "linear"},
        "abf": {"base": 2e5},
        "ntk_by_parts": {"beta_fast": 16},
        "yarn": {"beta_slow": 2, "attention_factor": 1.25},
        "llama3": {"high_freq_factor": 6.0},
        "longrope": {"short_factor": [1.0] * 16, "long_factor": [1 + j / 3 for j in range(16)]},
    }.get(base, {})
    for key, value in arguments.items():
        text = ",".join(map(repr, value)) if isinstance(value, list) else value
        flags += ["--pe-arg", f"{base}.{key}={text}"]
    assert run_app(["rope", name, *flags]) == 0
    described = json.loads(capsys.readouterr().out)
    config = llama_config(rope_type=name, **given, **arguments)
    inv_freq_F, attention_factor = ROPE_INIT_FUNCTIONS[name](config)
    assert inv_freq_F.dtype == torch.float32
    assert inv_freq_F.tolist() == np.float32(described["inv_freq"]).tolist()
    assert attention_factor == described["attention_factor"]


def test_names_are_ours_and_never_those_of_transformers():
    assert (
        "resonance",
        *("pi", "resonance_pi", "ntk", "resonance_ntk", "ntk_by_parts", "resonance_ntk_by_parts"),
        *("resonance_yarn", "resonance_llama3", "resonance_longrope", "abf", "resonance_abf"),
    ) == ROPE_TYPES
    own = {name for name, function in ROPE_INIT_FUNCTIONS.items() if function.__module__.startswith("transformers.")}
    assert own == {"linear", "dynamic", "yarn", "longrope", "llama3", "proportional"}
    assert set(ROPE_INIT_FUNCTIONS) - own == set(method_names()) - {"yarn", "llama3", "longrope"}


def test_registering_again_changes_nothing():
    before = dict(ROPE_INIT_FUNCTIONS), PreTrainedConfig.__post_init__.longeval_original
    longeval.hf.register()
    assert (dict(ROPE_INIT_FUNCTIONS), PreTrainedConfig.__post_init__.longeval_original) == before
    assert not hasattr(before[1], "longeval_original"), "a wrapper in a wrapper"


def test_a_name_that_another_package_took_is_an_error(monkeypatch):
    def theirs(config, device=None, seq_len=None, layer_type=None):
        raise AssertionError

    monkeypatch.setitem(ROPE_INIT_FUNCTIONS, "ntk", theirs)
    monkeypatch.delitem(ROPE_INIT_FUNCTIONS, "resonance")
    with pytest.raises(LongEvalError, match=r"rope_type ntk already, from .*test_hf_entry.* only one"):
        longeval.hf.register()
    assert ROPE_INIT_FUNCTIONS["ntk"] is theirs and "resonance" not in ROPE_INIT_FUNCTIONS


@pytest.mark.parametrize("family", ["Llama", "Mixtral", "GPTNeoX", "StableLm", "Gemma3Text"])
def test_given_at_loading_it_is_saved_and_loaded_again(family, tmp_path):
    part = {"GPTNeoX": 0.25, "StableLm": 0.25}.get(family)
    rope = in_form_of(family, {**ROPE, **({"partial_rotary_factor": part} if part else {})})
    build(family).save_pretrained(tmp_path / "plain")
    mine = copy.deepcopy(rope)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", rope_parameters=mine)
    assert mine == rope
    assert torch.equal(getattr(rotary(model), global_buffer(family)), resonance_yarn(FAMILIES[family][1]))
    assert torch.equal(logits(model), logits(build(family, rope_parameters=rope)))
    model.save_pretrained(tmp_path / "stretched")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "stretched")
    assert again.config.rope_parameters == model.config.rope_parameters
    assert torch.equal(logits(again), logits(model))


FRESH_PROCESS = """
import sys, warnings
import longeval
assert not {"torch", "transformers", "numpy"} & set(sys.modules), "import longeval is light"
import torch
from transformers import AutoModelForCausalLM
folder, out = sys.argv[1:]
try:
    AutoModelForCausalLM.from_pretrained(folder)
except Exception as error:
    print(repr(error))
import longeval.hf
with torch.no_grad():
    torch.save(AutoModelForCausalLM.from_pretrained(folder)(torch.arange(100)[None] * 7 % 50).logits, out)
"""


def test_a_trained_model_lives_on_in_a_fresh_process(tmp_path):
    model = build(rope_parameters=dict(ROPE)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens_BT = torch.arange(4 * 96).reshape(4, 96) % 13
    losses = []
    for _ in range(4):
        loss = model(tokens_BT, labels=tokens_BT).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    model.eval().save_pretrained(tmp_path / "trained")
    saved = json.loads((tmp_path / "trained" / "config.json").read_text())
    assert saved["rope_parameters"] == ROPE

    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path / "trained"), str(tmp_path / "logits.pt")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    # Without the import; the documentation of longeval.hf says so.
    assert answer.stdout.strip() == "KeyError('resonance_yarn')"
    warning = "Missing validation function in 'RotaryEmbeddingConfigMixin' for 'rope_type'='resonance_yarn'"
    assert answer.stderr.count(warning) == 1 and warning in longeval.hf.__doc__.replace("\n", " ")
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), logits(model))


def test_the_native_length_is_written_once_and_for_all(caplog):
    rope = {"rope_type": "resonance_yarn", "rope_theta": 1e4, "factor": 8}
    config = LlamaConfig(**SIZES, rope_parameters=rope)
    assert rope == {"rope_type": "resonance_yarn", "rope_theta": 1e4, "factor": 8}, "the caller's own"
    assert config.rope_parameters["original_max_position_embeddings"] == NATIVE
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("longeval")]
    assert "max_position_embeddings = 64" in message and "factor 8 reaches 512" in message
    config.max_position_embeddings = 8 * NATIVE
    again = LlamaConfig.from_dict(config.to_dict())
    inv_freq_F, _ = ROPE_INIT_FUNCTIONS["resonance_yarn"](again)
    geometry = Geometry(head_dim=32, theta=1e4, native_length=NATIVE, factor=8)
    assert inv_freq_F.tolist() == np.float32(build_table("resonance_yarn", geometry).inv_freq_F).tolist()


def test_the_native_length_is_not_guessed_aloud_where_it_is_known_or_does_not_matter(caplog):
    llama_config(**ROPE)
    llama_config(rope_type="resonance", rope_theta=1e4)
    assert caplog.records == []


def test_an_edited_config_is_checked_and_completed_when_the_model_is_built():
    config = LlamaConfig(**SIZES)
    config.rope_parameters = rope = {"rope_type": "pi", "rope_theta": 1e4, "factor": 4}
    model = AutoModelForCausalLM.from_config(config)
    assert model.config.rope_parameters == {**rope, "original_max_position_embeddings": NATIVE}
    assert "original_max_position_embeddings" not in rope
    assert torch.equal(rotary(model).inv_freq, torch.tensor([x / 4 for x in base_frequencies(32, 1e4)]))
    config.rope_parameters = {"rope_type": "pi", "rope_theta": 1e4}
    with pytest.raises(LongEvalError, match="rope_type pi: rope_parameters have no factor"):
        AutoModelForCausalLM.from_config(config)


def test_families_that_check_in_their_own_way_are_completed_too(monkeypatch):
    monkeypatch.setattr(LlamaConfig, "validate_rope", lambda self: None)
    config = LlamaConfig(**SIZES)
    config.rope_parameters = {key: value for key, value in ROPE.items() if key != "original_max_position_embeddings"}
    model = AutoModelForCausalLM.from_config(config)
    assert torch.equal(rotary(model).inv_freq, resonance_yarn(32))
    assert model.config.rope_parameters == ROPE


def test_the_length_before_scaling_comes_from_the_config_where_it_has_one():
    config = LlamaConfig(**SIZES, original_max_position_embeddings=32, rope_parameters={**ROPE, "rope_type": "yarn"})
    given = {key: ROPE[key] for key in ("rope_type", "rope_theta", "factor")}
    config.rope_parameters = given
    model = AutoModelForCausalLM.from_config(config)
    assert model.config.rope_parameters["original_max_position_embeddings"] == 32


def test_keys_of_a_family_are_left_to_it():
    config = transformers.Ministral3Config(**SIZES, head_dim=16, rope_parameters={**ROPE, "llama_4_scaling_beta": 0.1})
    model = AutoModelForCausalLM.from_config(config)
    assert torch.equal(rotary(model).inv_freq, resonance_yarn(16))
    assert model.config.rope_parameters["llama_4_scaling_beta"] == 0.1


def test_older_forms_of_configs_are_read():
    scaling = {"type": "resonance_pi", "factor": 2.0}
    old = LlamaConfig(**SIZES, rope_theta=5e5, rope_scaling=scaling)
    assert scaling == {"type": "resonance_pi", "factor": 2.0}, "the caller's own"
    assert old.rope_parameters["rope_theta"] == 5e5 and old.rope_parameters["rope_type"] == "resonance_pi"
    assert AutoModelForCausalLM.from_config(old) is not None
    with pytest.raises(LongEvalError, match="no rope_theta"):
        LlamaConfig(**SIZES, rope_scaling={"type": "resonance_pi", "factor": 2.0})
    neox = GPTNeoXConfig(rotary_emb_base=5e4, rope_parameters={"rope_type": "resonance_pi", "factor": 2.0})
    assert neox.rope_parameters["rope_theta"] == 5e4


REFUSALS = [
    ({"rope_type": "resonance_yarn", "factor": 8}, "have no rope_theta.* the model's own base"),
    ({"rope_type": "pi", "rope_theta": 1e4}, "rope_type pi: rope_parameters have no factor.* such as 8"),
    ({"rope_type": "resonance_longrope", "rope_theta": 1e4, "factor": 2, "short_factor": [1.0]}, "no long_factor"),
    ({**ROPE, "beta_fats": 16}, "unknown key beta_fats.* Did you mean beta_fast"),
    ({**ROPE, "low_freq_factor": 1.0}, "unknown key low_freq_factor"),
    ({**ROPE, "mscale": 1.0}, "unknown key mscale"),
    ({"rope_type": "resonance", "rope_theta": 1e4, "factor": 8}, "factor 8 would be ignored.* pi, ntk, ntk_by_parts"),
    ({"rope_type": "abf", "rope_theta": 1e4, "factor": 8.0}, "factor 8.0 would be ignored"),
    ({**ROPE, "beta_fast": 1}, "resonance_yarn: beta_fast 1: must be greater than beta_slow"),
    ({**ROPE, "beta_fast": "@/etc/hostname"}, "beta_fast '@/etc/hostname' is text"),
    ({**ROPE, "beta_fast": "16"}, "beta_fast '16' is text"),
    ({**ROPE, "attention_factor": "1.25"}, "attention_factor '1.25' is text"),
    ({**ROPE, "attention_factor": [1.0]}, r"attention_factor=\[1.0\].*not a finite number"),
    ({"rope_type": "ntk", "rope_theta": 1e4, "factor": 2, "base_rule": "cubic"}, "base_rule=cubic: unknown"),
    ({**ROPE, "factor": 0.5}, "factor 0.5 must be a finite number of at least 1"),
    ({**ROPE, "factor": True}, "factor True must be"),
    ({**ROPE, "factor": float("inf")}, "factor inf must be"),
    ({**ROPE, "factor": "8"}, "factor '8' must be"),
    ({**ROPE, "rope_theta": -1.0}, "rope_theta -1.0 must be"),
    ({**ROPE, "partial_rotary_factor": 1.5}, "partial_rotary_factor 1.5 must be"),
    ({**ROPE, "original_max_position_embeddings": 4096.5}, "original_max_position_embeddings 4096.5 must be a whole"),
    ({**ROPE, "original_max_position_embeddings": 0}, "original_max_position_embeddings 0 must be"),
    ({"rope_type": "none"}, "rope_type none: not a rope type.* Use default"),
    ({"rope_type": "dynamic_ntk"}, "follows the length.* Use ntk with a factor.* longeval ppl --pe dynamic_ntk"),
    ({"rope_type": "resonance_dynamic_yarn", "rope_theta": 1e4}, "earlier sequences.* Use resonance_yarn with"),
    ({"full_attention": dict(ROPE)}, "would be ignored.* not as given in llama models"),
]


@pytest.mark.parametrize(("rope", "message"), REFUSALS)
def test_a_config_with_mistakes_is_not_built(rope, message):
    with pytest.raises(LongEvalError, match=message):
        llama_config(**rope)


@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "dynamic_ntk", "rope_theta": 1e4}, "Use ntk with a factor"),
        ({"rope_type": "none", "rope_theta": 1e4}, "Use default"),
        ({"rope_type": "resonance_yarn", "factor": 8}, "have no rope_theta"),
        ({**ROPE, "rope_theta": 1.0}, "resonance_yarn: rope_theta 1: .*need a base above 1"),
        ({**ROPE, "rope_theta": 1e-9}, "resonance_yarn: rope_theta 1e-09: "),
        (
            {
                **ROPE,
                "rope_type": "resonance_longrope",
                "short_factor": [1, 2],
                "long_factor": [1, 2],
                "beta_fast": None,
            },
            "resonance_longrope: short_factor: 2 numbers, but 32 rotary dimensions need 16",
        ),
        ({**ROPE, "partial_rotary_factor": 0.3}, "resonance_yarn: rotary dimensions 9: must be a positive even number"),
    ],
)
def test_a_model_with_mistakes_is_not_built(rope, message):
    config = LlamaConfig(**SIZES)
    config.rope_parameters = rope
    with pytest.raises(LongEvalError, match=message):
        AutoModelForCausalLM.from_config(config)


def test_forms_that_a_family_would_ignore_are_refused():
    with pytest.raises(
        LongEvalError, match=r"not as given in gemma3_text models.*\(full_attention, sliding_attention\)"
    ):
        Gemma3TextConfig(**SIZES, rope_parameters=dict(ROPE))
    with pytest.raises(LongEvalError, match="no rope_theta"):
        Gemma3TextConfig(**SIZES, rope_parameters={"full_attention": {"rope_type": "resonance_yarn", "factor": 8}})


def test_the_rotated_part_of_a_head_is_never_forgotten():
    assert GPTNeoXConfig(**SIZES, rope_parameters=dict(ROPE)).rope_parameters["partial_rotary_factor"] == 0.25
    config = GPTNeoXConfig(**SIZES)
    config.rope_parameters = dict(ROPE)
    with pytest.raises(LongEvalError, match=r"have no partial_rotary_factor.* a part of the head"):
        AutoModelForCausalLM.from_config(config)
    # The attention of this family looks for it before its rotary module does; the documentation says so.
    stablelm = StableLmConfig(**SIZES)
    stablelm.rope_parameters = dict(ROPE)
    with pytest.raises(KeyError, match="partial_rotary_factor"):
        AutoModelForCausalLM.from_config(stablelm)
    # This family keeps it beside rope_parameters as well.
    glm = transformers.GlmConfig(**SIZES, head_dim=32)
    glm.rope_parameters = dict(ROPE)
    model = AutoModelForCausalLM.from_config(glm)
    assert torch.equal(rotary(model).inv_freq, resonance_yarn(16))
    assert model.config.rope_parameters == {**ROPE, "partial_rotary_factor": 0.5}


def test_a_family_that_refuses_foreign_types_does_so_before_training():
    with pytest.raises(Exception, match=r"must be one of \['longrope'\], got resonance_yarn"):
        Phi3Config(**SIZES, rope_parameters=dict(ROPE))
    config = Phi3Config(**SIZES)
    config.rope_parameters = {**ROPE, "partial_rotary_factor": 1.0}
    with pytest.raises(LongEvalError, match=r"refused by the config of phi3 models .*longrope.* longeval export"):
        AutoModelForCausalLM.from_config(config)


def test_others_configs_are_left_to_transformers():
    rope = {"rope_type": "yarn", "factor": 2.0}
    config = LlamaConfig(**SIZES, rope_parameters=rope)
    assert config.rope_parameters is rope and rope["rope_theta"] == 10000.0


def test_settings_are_read_in_our_terms():
    read = read_parameters(
        "resonance_yarn", {**ROPE, "attention_factor": None, "mrope_section": [1]}, ignore={"mrope_section"}
    )
    assert (read.name.base, read.name.resonance, read.factor, read.native_length) == ("yarn", True, 8.0, NATIVE)
    assert read.arguments == {"beta_fast": 4.0} and isinstance(read.arguments["beta_fast"], float)
    with pytest.raises(LongEvalError, match=r"partial_rotary_factor 1\.5 must be"):
        read_parameters(
            "pi", {"rope_theta": 1, "factor": 1, "partial_rotary_factor": 1.5}, ignore={"partial_rotary_factor"}
        )
    lists = {"short_factor": [1, 2], "long_factor": [3, 4]}
    assert read_parameters("resonance_longrope", {"rope_theta": 1e4, "factor": 2, **lists}).arguments == {
        "short_factor": (1.0, 2.0),
        "long_factor": (3.0, 4.0),
    }
    read = read_parameters("resonance", {"rope_theta": 1e4, "factor": 1})
    assert (read.name.base, read.arguments, read.factor, read.native_length) == ("none", {}, 1.0, None)


def test_dtype_at_loading_keeps_the_frequencies_and_casting_loses_them(tmp_path):
    build(rope_parameters=dict(ROPE)).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(rotary(loaded).inv_freq, resonance_yarn(32))
    cast = loaded.to(torch.float32).to(torch.bfloat16)
    wavelengths_F = 2 * math.pi / rotary(cast).inv_freq.to(torch.float64)
    assert (wavelengths_F - wavelengths_F.round()).abs().max() > 0.1


def test_a_stock_module_repeats_only_nearly():
    far = 2**17
    cos_BTD, _ = rotary(build(rope_parameters=dict(ROPE)))(torch.zeros(1), torch.tensor([[far, far + 6]]))
    table = build_table("resonance_yarn", Geometry(head_dim=32, theta=1e4, native_length=NATIVE, factor=8))
    assert table.period_F[0] == 6
    exact_TF = table.cos_sin(np.array([far, far + 6])).cos_TF
    assert exact_TF[0, 0] == exact_TF[1, 0]
    assert 1e-4 < abs(cos_BTD[0, 0, 0] - cos_BTD[0, 1, 0]) < 0.02


def test_models_can_be_copied_and_pickled():
    model = build(rope_parameters=dict(ROPE))
    assert torch.equal(logits(copy.deepcopy(model)), logits(pickle.loads(pickle.dumps(model))))
    function = ROPE_INIT_FUNCTIONS["resonance_yarn"]
    assert pickle.loads(pickle.dumps(function)) == function


@pytest.mark.parametrize("family", ["gpt2", "gptj", "mpt", "bloom", "opt"])
def test_a_family_that_would_ignore_it_refuses(family):
    rope = {"rope_type": "resonance_yarn", "rope_theta": 1e4, "factor": 4, "original_max_position_embeddings": 64}
    with pytest.raises(LongEvalError, match=f"rope_type resonance_yarn: would be ignored, {family} models"):
        transformers.AutoConfig.for_model(family, rope_parameters=rope)
    assert transformers.AutoConfig.for_model(family).model_type == family
