"""Long documents: their sources (`sources`), and their tokens (`tokens`).

    name or path ─▶ Source ─▶ Text ─▶ TokenisedDocument

Named corpora are YAML files in tasks/perplexity/ (`corpora`), so adding one needs no Python.
"""
