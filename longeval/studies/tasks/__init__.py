"""Downstream tasks in long contexts."""
