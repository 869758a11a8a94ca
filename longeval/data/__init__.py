"""Long documents: where they come from (`sources`), and what a model reads of them (`tokens`).

    name or path ─▶ Source ─▶ Document ─▶ TokenisedDocument

Named corpora are YAML files in tasks/perplexity/ (`corpora`); adding one adds no Python.
"""
