"""What a frequency table is worth beyond the native length: gaps, collisions, decay and precision, as numbers."""
