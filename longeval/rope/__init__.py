"""RoPE scaling methods as pure functions, Resonance rounding, and the analysis of their frequency tables.

Importing this package registers every method in `base.METHODS`, in the order in which users see them. It does not
depend on torch, transformers or an inference engine.
"""

from longeval.rope import none, pi, ntk, ntk_by_parts, yarn, llama3, longrope, abf  # noqa: F401, I001  (order shown)
