"""GGUF files, read into folders that transformers can load."""
