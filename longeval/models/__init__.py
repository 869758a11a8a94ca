"""Models: names, catalogue, embedded models, GGUF conversion, loading, and the position encoding in their configs."""
