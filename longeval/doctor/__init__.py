"""What works on this machine (`checks`), and whether vLLM computes what transformers computes (`parity`)."""
