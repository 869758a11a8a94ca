"""Analysis of a frequency table beyond the native length: feature gaps, collisions, decay and precision."""
