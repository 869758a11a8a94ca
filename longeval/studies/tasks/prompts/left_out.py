"""What `--overlong skip` leaves of a request: said before anything is computed where it leaves nothing."""

from __future__ import annotations

from collections.abc import Sequence

from longeval.errors import LongEvalError
from longeval.studies.tasks.prompts.prepared import PreparedTask
from longeval.values import format_length


def emptied(title: str, length: int, prepared: PreparedTask) -> list[str]:
    """A note on a task that keeps no sample at one length; none if it keeps some.

    Args:
        title: What the task is shown as.
        length: Window in tokens.
        prepared: The task at this length.
    """
    if prepared.samples or not prepared.skipped:
        return []
    needs = prepared.skipped.values()
    return [
        f"{title}: nothing to compute at {format_length(length)}: --overlong skip leaves every sample out, "
        f"the shortest needs {min(needs):,} tokens"
    ]


def nothing_left(needs: Sequence[int], *, same_samples: bool) -> LongEvalError:
    """The error of a request that keeps no sample of any task at any length.

    Args:
        needs: Tokens of the window that each sample that was left out would take.
        same_samples: Whether a sample that is left out at one length was left out at all of them.
    """
    assert needs, "a task without samples is refused before"
    shortest, longest = min(needs), max(needs)
    alike = " at every length (--same-samples)" if same_samples else ""
    return LongEvalError(
        f"--overlong skip: leaves nothing to compute: no sample fits into its window{alike}; of those left out the "
        f"shortest needs {shortest:,} tokens, the longest {longest:,}",
        f"Use --lengths {shortest} or more, or --overlong middle, which cuts documents.",
    )
