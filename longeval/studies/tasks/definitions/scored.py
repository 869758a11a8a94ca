"""Which metrics lm-eval scores by itself for which kind of answer: known before anything is computed.

lm-eval takes any registered metric for any output type. What doesn't fit is left out of the scores without a word, or
fails when they are averaged, after everything was computed. Source: `ConfigurableTask.process_results` of lm-eval
0.4.13 (api/task.py) and its metrics (api/metrics.py); a test holds this table against both.
"""

from __future__ import annotations

from collections.abc import Mapping

SCORED: Mapping[str, tuple[str, ...]] = {
    "multiple_choice": ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "mcc", "brier_score"),
    "loglikelihood": ("acc", "perplexity"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    "generate_until": ("exact_match", "bleu", "chrf", "chrf++", "ter", "mcc"),
}
"""Output type → metrics that give a score without code of the task's own."""

_RAW = {"multiple_choice": ("likelihood",)}
"""Metrics whose values only an aggregation of the task's own can make a number of."""

NO_SCORE = "bypass"
"""lm-eval's metric for tasks that only collect answers."""


def is_scored(metric: str, output_type: str, *, own_metric: bool, own_aggregation: bool) -> bool:
    """Whether a metric of a task without `process_results` comes to a number.

    Args:
        metric: Its name, or that of the task's own function.
        output_type: The task's.
        own_metric: Whether it is a function of the task's own. Generated answers go through it; elsewhere lm-eval never
            calls it, and looks at its name alone.
        own_aggregation: Whether a function of the task's own makes the samples' values one; it may take any values.
    """
    if output_type == "generate_until" and (own_metric or (own_aggregation and metric != NO_SCORE)):
        return True
    raw = _RAW.get(output_type, ()) if own_aggregation else ()
    return metric in (*SCORED.get(output_type, ()), *raw)


def remedy(metric: str, output_type: str) -> str:
    """What to write instead: metrics that fit, or another output type that the metric fits."""
    fitting = [name for name, metrics in SCORED.items() if metric in metrics]
    other = f", or output_type {' or '.join(fitting)}" if fitting else ""
    return f"For it: {', '.join(SCORED[output_type])}{other}; or a process_results of the task's own."
