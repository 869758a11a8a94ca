"""Downstream tasks: our own in lm-eval's YAML format, every task of lm-eval, and YAML files of the user."""
