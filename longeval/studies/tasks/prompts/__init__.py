"""From samples of a task to token ids that a model reads."""
