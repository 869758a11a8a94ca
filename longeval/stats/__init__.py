"""Statistics on arrays of numbers: bootstrap intervals, scores of tasks, means over seeds."""
