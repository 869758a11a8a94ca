"""What is measured: protocols and texts."""
