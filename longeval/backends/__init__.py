"""Backends, which run the models."""
