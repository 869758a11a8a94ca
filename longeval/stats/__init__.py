"""Numbers to numbers: intervals, scores, means over seeds."""
