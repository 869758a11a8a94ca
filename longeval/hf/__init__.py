"""Our methods as rope types of transformers, for use in any training script.

    import longeval.hf  # registers the names; so does longeval.hf.register()

    rope = {"rope_type": "resonance_yarn", "rope_theta": 10000.0, "factor": 8, "original_max_position_embeddings": 4096}
    model = AutoModelForCausalLM.from_pretrained(name, rope_parameters=rope, dtype=torch.bfloat16)

The canonical names of `longeval rope --list` are registered, except yarn, llama3 and longrope, which remain
transformers' own functions; plain RoPE is called default. The frequencies are those of `longeval rope`. The keys:

- `rope_theta`: the model's own base. It is required, because transformers would silently take its family's default.
- `factor`: s, for the methods that use it.
- `original_max_position_embeddings`: L. If it isn't given here or beside `rope_parameters`, `max_position_embeddings`
  is taken and written into the config, so that saving and later changes of `max_position_embeddings` don't affect it.
  Give it if you also change `max_position_embeddings`.
- `partial_rotary_factor`: the rotated part of a head, if it isn't the whole head (GPT-NeoX, StableLM, Phi).
- The method's parameters, such as `beta_fast`, `base_rule`, `attention_factor`, or `base` of abf; `max_period` of every
  resonance form.

A key that is missing, unknown or would be ignored raises LongEvalError when the config or the model is built. A key
that a family reads before it calls us raises transformers' KeyError with its name (`partial_rotary_factor` of StableLM
and Phi at loading, a layer type of Gemma 3). Families with a RoPE per layer type need a dictionary for each type:
`{"full_attention": {…}, "sliding_attention": {…}}`. Phi-3's config refuses every type except default and longrope; use
`longeval export`, which writes our frequencies as longrope. Methods whose table depends on the length of the sequence
are refused: transformers treats every name that contains "dynamic" as its own type, which remembers the longest
sequence so far, so that results would depend on the order of the data.

The process that loads a saved model needs the import too. Without it transformers warns "Missing validation function
in 'RotaryEmbeddingConfigMixin' for 'rope_type'='resonance_yarn'", and then fails with `KeyError: 'resonance_yarn'`.

Two limits, because the rotation is done by transformers' own modules:

- Periods are not exact. The modules multiply positions and frequencies in float32, so resonant features repeat only
  approximately; longeval's own runs reduce positions modulo the period first.
- `model.to(torch.bfloat16)` and `.half()` also cast the frequencies, and wavelengths then differ from their integers by
  up to half a token. Give `dtype=` at loading instead, which leaves the frequencies in float32.

Source of the interface: transformers 5, `modeling_rope_utils` (ROPE_INIT_FUNCTIONS, RotaryEmbeddingConfigMixin).
"""

from longeval.hf.parameters import ROPE_TYPES, RopeSettings, read_parameters
from longeval.hf.rope_types import RopeInit, register

__all__ = ["ROPE_TYPES", "RopeInit", "RopeSettings", "read_parameters", "register"]

register()
