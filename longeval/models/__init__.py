"""Models: names and catalogue, the embedded one, GGUF conversion, opening and loading, and what their configs say."""
