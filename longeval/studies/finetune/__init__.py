"""Training models on at a longer context, with measurements before and after."""
