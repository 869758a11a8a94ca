"""Synthetic long-text tasks: samples made for any window, offline, from a seed.

`synthetic.py` is what the YAML files name. `passkey.py`, `niah.py`, `key_value.py`, `variables.py` and `words.py` make
the samples of one kind each; `filler.py` is the text that hides them, `fitting.py` brings a prompt to its length,
`rows.py` keeps what was made, `scoring.py` marks the answers.
"""
