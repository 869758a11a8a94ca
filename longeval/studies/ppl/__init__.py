"""Perplexity at growing context lengths."""
