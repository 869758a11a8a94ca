"""Models run by Hugging Face transformers in this process."""
