"""RoPE scaling methods as pure functions, Resonance rounding, and what their frequency tables are worth.

Importing this package registers every method in `base.METHODS`, in the order in which users see them. Nothing here
knows torch, transformers or an engine.
"""

from longeval.rope import none, pi, ntk, ntk_by_parts, yarn, llama3, longrope, abf  # noqa: F401, I001  (order shown)
