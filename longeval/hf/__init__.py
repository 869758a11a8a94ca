"""Our methods as rope types of transformers, for anybody's training script.

    import longeval.hf  # registers the names; so does longeval.hf.register()

    rope = {"rope_type": "resonance_yarn", "rope_theta": 10000.0, "factor": 8, "original_max_position_embeddings": 4096}
    model = AutoModelForCausalLM.from_pretrained(name, rope_parameters=rope, dtype=torch.bfloat16)

Registered are the canonical names of `longeval rope --list` but transformers' own: yarn, llama3 and longrope stay its
own functions, and plain RoPE is called default. The frequencies are those of `longeval rope`. The keys:

- `rope_theta`: the model's own base. Needed, because transformers would silently take its family's default.
- `factor`: s, for the methods that use it.
- `original_max_position_embeddings`: L. Where it isn't given, here or beside `rope_parameters`,
  `max_position_embeddings` is taken and written into the config, so that it survives saving and later changes of that
  number. Give it if you change that number as well.
- `partial_rotary_factor`: the rotated part of a head, where that isn't all of it (GPT-NeoX, StableLM, Phi).
- The method's parameters, such as `beta_fast`, `base_rule`, `attention_factor`, or `base` of abf.

What is missing, unknown or would be ignored is a LongEvalError when the config or the model is built; what a family
looks for before it asks us is transformers' KeyError that names the key (`partial_rotary_factor` of StableLM and Phi at
loading, a layer type of Gemma 3). Families that rotate by layer type take a dictionary for each:
`{"full_attention": {…}, "sliding_attention": {…}}`. Phi-3's config refuses every type but default and longrope;
`longeval export` says our frequencies as longrope. Methods that follow the length of the sequence are refused:
transformers takes every name with "dynamic" in it for a kind of its own, which remembers the longest sequence so far,
so that results would depend on the order of the data.

A saved model needs the import in the process that loads it. Without it transformers warns "Missing validation function
in 'RotaryEmbeddingConfigMixin' for 'rope_type'='resonance_yarn'", and then fails with `KeyError: 'resonance_yarn'`.

What this route can't give, because transformers' own modules do the rotation:

- Exact periods. They multiply positions and frequencies in float32, so that rounded features repeat only nearly;
  longeval's own runs reduce positions modulo the wavelength first.
- Frequencies that survive `model.to(torch.bfloat16)` or `.half()`: these cast them too, and wavelengths miss their
  integers by up to half a token. Give `dtype=` at loading instead, which leaves them in float32.

Source of the interface: transformers 5, `modeling_rope_utils` (ROPE_INIT_FUNCTIONS, RotaryEmbeddingConfigMixin).
"""

from longeval.hf.parameters import ROPE_TYPES, RopeSettings, read_parameters
from longeval.hf.rope_types import RopeInit, register

__all__ = ["ROPE_TYPES", "RopeInit", "RopeSettings", "read_parameters", "register"]

register()
