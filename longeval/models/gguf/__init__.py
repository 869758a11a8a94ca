"""Converts GGUF files into folders that transformers can load."""
