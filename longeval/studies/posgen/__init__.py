"""PosGen: sequences whose next token is equally easy everywhere, so that unseen positions are all that can be hard.

Wang et al. 2024 (arXiv 2403.00071), section 5. `rules.py` says which tokens are summed, `data.py` makes the
sequences; the model, its training and its evaluation are in the other modules.
"""
