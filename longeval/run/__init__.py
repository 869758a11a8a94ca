"""The engine that all studies share: cells, work, outcomes, executors."""
