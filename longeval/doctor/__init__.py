"""Checks of this machine (`checks`), and a comparison of vLLM with transformers (`parity`)."""
