"""`python -m bench.gpu`: what only a GPU can settle, measured within a time budget; a reduced form runs on a CPU."""
