"""The engine that every study shares: cells, work, outcomes, executors."""
