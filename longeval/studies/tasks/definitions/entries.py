"""What is known of a task or group without loading it: its name, its file, what it needs, who its members are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OURS = "longeval"
LM_EVAL = "lm_eval"
NOTHING = "nothing"
"""What a task needs that runs anywhere, offline."""

Kind = Literal["task", "group"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregate:
    """One average that a group asks for (`aggregate_metric_list` in lm-eval's YAML, or our `average_over`)."""

    metric: str | None
    """lm-eval's name of the metric, `acc`; null: the main metric of each member."""
    filters: tuple[str, ...] | None
    """Filters whose results are averaged, one average each; null: every filter that the members have."""
    weight_by_size: bool
    """Whether a member counts as often as it has samples; otherwise all members count alike."""
    over: tuple[str, ...] | None
    """Members that it is over; null: all leaves of the group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskEntry:
    """A task or a group as `longeval tasks --list` shows it, and where it is written."""

    name: str
    """What the user types after `--tasks`."""
    kind: Kind
    """`task` or `group`; lm-eval's tags are groups too."""
    source: str
    """`longeval`, `lm_eval`, or the path of the user's YAML file."""
    needs: str
    """One line: `nothing`, or what must be downloaded or installed."""
    description: str
    """One line; empty where its file has none."""
    members: tuple[str, ...] = ()
    """Names of a group's direct members, tasks or groups."""
    path: str | None = None
    """Its YAML file; null for lm-eval's tags, which have none."""
    refusal: str | None = None
    """Why longeval doesn't run it; null: it does."""
    within: str | None = None
    """Group in whose file it is written or changed; null: it has a file of its own."""
    aggregates: tuple[Aggregate, ...] = ()
    """Averages that a group asks for."""
    own_name: str | None = None
    """What its file calls it, where `name` is the path that the user typed; null: `name`."""

    @property
    def title(self) -> str:
        """What results are shown under."""
        return self.own_name or self.name
